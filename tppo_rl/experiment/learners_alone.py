"""The learners of a run without engines: they train what the run has kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tppo_rl.config.options import OPTIONS, Options, algorithm_spec
from tppo_rl.core.errors import OptionError, unknown_key
from tppo_rl.observability.batch_log import run_facts

if TYPE_CHECKING:
    from tppo_rl.learner.client import LearnerClient

CHANGEABLE_SECTIONS = frozenset({"advantages", "compute", "critic", "learners", "optimizer", "policy_loss"})
"""Sections of the options that may be changed: what is sampled does not follow from them."""


def learner_config(run: Path, changes: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Any:
    """Returns RLlib's config of a run that has kept its batches, with other options of its learners. Ray is started.

    Args:
        run: Folder of the run.
        changes: Options that a user changes.
        more: Further options.

    Raises:
        OptionError: the run has not kept its batches, an option says what is sampled, or its value is wrong.
    """
    from tppo_rl.algorithms.ray_start import quiet_libraries, start_ray
    from tppo_rl.algorithms.rllib_classes import rllib_classes

    facts = run_facts(run)
    for key, value in changes.items():
        _check_changeable(key, value)
    quiet_libraries()
    _, config_class = rllib_classes(algorithm_spec(facts["algorithm"]))
    keeps = {"record_events": False, "record_batches": False}
    config = config_class().update_from_dict(
        facts["options"] | facts["rllib"] | keeps | dict(changes) | dict(more or {})
    )
    config.validate()
    start_ray(config.options.run.runtime_env)
    return config


@contextmanager
def learners_alone(config: Any) -> Iterator[LearnerClient]:
    """Gives the learners of a config, and stops them.

    Args:
        config: From `learner_config`.
    """
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    from tppo_rl.config.text_envs import make_text_env
    from tppo_rl.learner.client import LearnerClient

    options: Options = config.options
    env = make_text_env(options.environment, "train")
    group = config.build_learner_group(env=env)
    env.close()
    learners = LearnerClient(group, options, MetricsLogger().peek_results)
    try:
        yield learners
    finally:
        learners.stop()
        group.shutdown()


def _check_changeable(key: str, value: Any) -> None:
    changeable = [name for name, option in OPTIONS.items() if option.section in CHANGEABLE_SECTIONS]
    if key not in OPTIONS:
        raise OptionError(unknown_key(key, value, changeable))
    if key not in changeable:
        raise OptionError(
            f"{key}={value!r}: the batches are those of the run, and this option of the section {OPTIONS[key].section!r} says what "
            f"they are or where they come from; those of {', '.join(sorted(CHANGEABLE_SECTIONS))} can be changed"
        )
