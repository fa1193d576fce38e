"""What a command may name as its model: a model, a checkpoint, or a run; and the options that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tppo_rl.config.checks import check_environment, check_model
from tppo_rl.config.options import Options
from tppo_rl.config.run_files import apply_override
from tppo_rl.core.checkpoint_files import is_checkpoint
from tppo_rl.experiment.checkpoints import checkpoint_in
from tppo_rl.experiment.export import export_policy, options_of

_HERE = {
    "num_env_runners": 0,
    "evaluation_num_env_runners": 0,
    "num_learners": 0,
    "distributed": "ddp",
    "mode": "sync",
    "kl_coef": 0.0,
    "placement": None,
    "gpus": None,
}
"""Options of an engine in this process, without a learner."""

_WITHOUT_WINDOWS = {"hindsight": False, "unfinished_advantage_scale": 1.0}


def options_of_source(source: str, values: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Options, Path | None]:
    """Returns options for an engine in this process, and the checkpoint if the source is one.

    Args:
        source: A model (folder, hub id or shipped name), a checkpoint, or a run's folder, whose newest checkpoint is taken.
        values: Options by key; for a checkpoint they are changes to those of its run.
        overrides: Further changes, as `key=value`; parts of an option too (`env_config.source=…`).

    Raises:
        OptionError: an option, a model or environment that there is not, or a run without a checkpoint.
    """
    path = Path(source)
    is_run = path.is_dir() and (is_checkpoint(path) or (path / "checkpoints").is_dir())
    checkpoint = checkpoint_in(path) if is_run else None
    config = {"policy_model": source} if checkpoint is None else options_of(checkpoint).flat()
    body: dict[str, Any] = {"config": config | dict(values)}
    for override in overrides:
        apply_override(body, override)
    env = {"env": body["env"]} if "env" in body else {}
    chosen: dict[str, Any] = body["config"] | env | _HERE
    # No learner is here that the engine would have to make room for.
    engine = {key: value for key, value in chosen.get("engine", {}).items() if key != "enable_sleep_mode"}
    options = Options.of(**(chosen | {"engine": engine}))
    window = options.rollout.window_length
    if window is not None and window > options.rollout.max_response_length:
        # Nothing is trained, so no window is cut.
        options = options.replace(window_length=None, **_WITHOUT_WINDOWS)
    check_model(options)
    if options.environment.env is not None:
        check_environment(options)
    return options, checkpoint


def exported(checkpoint: Path, folder: Path) -> Path:
    """Returns the folder with a checkpoint's model, which is written if it is not there."""
    if not folder.exists():
        export_policy(checkpoint, folder)
    return folder
