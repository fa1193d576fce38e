"""Options of a run as a whole: its seed, its log and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from tppo_rl.config.section import Section, option, refuse
from tppo_rl.config.trackers import check_trackers
from tppo_rl.core.storage import is_uri, without_secrets

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


LARGEST_SEED = 2**31 - 1
"""Env-runners add to it, and NumPy takes seeds of 32 bits."""


def _by_name(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(arguments, Mapping) for arguments in value.values()):
        raise ValueError("give the arguments of each tracker by its name, such as {wandb: {project: words}}")
    return value


class RunOptions(Section):
    """Seed, log and folder of a run, and what its processes find on other nodes."""

    seed: int = option(0, "Seed of prompts, sampling and minibatches.", ge=0, le=LARGEST_SEED)
    rollout_log_fragments: int = option(
        64, "Most fragments of an iteration that are kept in `rollouts/*.parquet`.", ge=0
    )
    record_episodes: int = option(
        8,
        "Most episodes of an iteration of which all windows are kept in `episodes/*.parquet`, with the value and the advantage "
        "of each token; 0: none. About 20 bytes a token: 8 responses of 1,000 tokens are 160 kB an iteration. The same prompts "
        "are chosen whenever they come again, and the answers of a group together. Of each evaluation the responses to the first "
        "held-out prompts are kept, as many.",
        ge=0,
    )
    record_events: bool = option(
        False,
        "Whether `events.jsonl` keeps the order of events and a checksum of the weights after each update, about 20 bytes for a request "
        "to an env-runner and 10 for a response that scoring workers score. `tppo-rl replay` makes the run again from it, to the last bit.",
    )
    record_batches: bool = option(
        False,
        "Whether `batches/` keeps all fragments that updates train. `tppo-rl retrain` trains them again with other options of the "
        "learners, without sampling. 10 to 25 bytes a token: an update of 100,000 tokens is 1 to 2.5 MB.",
    )
    replay_of: str | None = option(
        None, "Folder of a run with `record_events` whose order of events this run follows; `tppo-rl replay` sets it."
    )
    results_folder: str | None = option(
        None, "Folder of TensorBoard events, `rollouts/` and `episodes/`; None: Tune's folder of the trial."
    )
    trackers: Annotated[dict[str, dict[str, Any]], BeforeValidator(_by_name)] = option(
        {},
        "Experiment trackers that get the metrics of TensorBoard and some responses as tables: `{wandb: {project: words}}`, `mlflow` "
        "(`tracking_uri`, `experiment`, `run_name`, `tags`), `trackio`. What stands behind a name are the arguments of its `init`.",
    )
    runtime_env: dict[str, Any] | None = option(
        None,
        "Ray's `runtime_env` of all actors, such as `{working_dir: .}` or `{py_modules: [my_rewards]}`: files, modules and "
        "variables that other nodes of a cluster do not have. None: nothing.",
    )

    def check(self, options: Options) -> None:
        """Checks the trackers and the folder."""
        if self.results_folder == "":
            refuse("results_folder", "", "is no folder; name one, or leave it out")
        if self.results_folder is not None and is_uri(self.results_folder):
            refuse(
                "results_folder",
                without_secrets(self.results_folder),
                "must be a folder of the driver's machine; give the URI to --results, or to Tune as storage_path",
            )
        check_trackers(self.trackers)
