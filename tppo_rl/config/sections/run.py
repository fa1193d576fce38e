"""Options of a run as a whole: its seed, its log and its folder."""

from __future__ import annotations

from tppo_rl.config.section import Section, option


class RunOptions(Section):
    """Seed, log and folder of a run."""

    seed: int = option(0, "Seed of prompts, sampling and minibatches.", ge=0)
    rollout_log_fragments: int = option(
        64, "Most fragments of an iteration that are kept in `rollouts/*.parquet`.", ge=0
    )
    results_folder: str | None = option(
        None, "Folder of TensorBoard events and `rollouts/`; None: Tune's folder of the trial."
    )
