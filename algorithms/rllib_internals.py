"""RLlib's algorithm and Ray's runtime from inside: what we use of them beside their documented API.

See `tppo_rl.core.insides` for what `CONTRACT` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray

from tppo_rl.core.insides import RAY, Contract

CONTRACT: Contract = {
    "ray.rllib.algorithms.algorithm:Algorithm": (
        "_make_on_env_runners_recreated_callbacks",
        "_run_one_evaluation",
        "cleanup",
        "get_checkpointable_components",
        "restore_env_runners",
        "setup",
        "step",
        "training_step",
    ),
    "ray.rllib.algorithms.algorithm_config:AlgorithmConfig": (
        "_translate_special_keys",
        "build_learner_group",
        "get_default_learner_class",
        "get_default_rl_module_spec",
        "get_multi_rl_module_spec",
    ),
    "ray.rllib.algorithms.registry": ("ALGORITHMS",),
    "ray._private.worker": ("_global_node",),
    "ray._private.utils": ("get_num_cpus",),
}
"""Beside these a config has `_dont_auto_sync_env_runner_states`, and a trainable `_storage` and `_time_total`. They are set when they
are made."""


def attribute_of_key(config: Any, key: str) -> str:
    """The attribute that a key of `update_from_dict` sets: `to_dict`, which Tune calls, renames some, such as `lambda_`."""
    with RAY.insides("AlgorithmConfig._translate_special_keys"):
        return str(config._translate_special_keys(key, warn_deprecated=False))


def leave_env_runner_states(config: Any) -> None:
    """Env-runners have no connectors whose state would have to be synchronized."""
    assert hasattr(config, "_dont_auto_sync_env_runner_states"), RAY.lacks("_dont_auto_sync_env_runner_states")
    config._dont_auto_sync_env_runner_states = True


def report_restored(algorithm: Any, env_runners: Sequence[int]) -> None:
    """Calls `on_env_runners_recreated`, as RLlib does for those that it finds itself."""
    with RAY.insides("Algorithm._make_on_env_runners_recreated_callbacks"):
        call = algorithm._make_on_env_runners_recreated_callbacks
    call(
        config=algorithm.config,
        env_runner_group=algorithm.env_runner_group,
        restored_env_runner_indices=env_runners,
    )


def total_seconds(trainable: Any) -> float:
    """Seconds of all iterations by now, which results tell as `time_total_s`."""
    with RAY.insides("Trainable._time_total"):
        return float(trainable._time_total)


def count_seconds_from(trainable: Any, seconds: float) -> None:
    """Lets `time_total_s` go on from earlier iterations, as Tune does itself for a trial that it restores."""
    total_seconds(trainable)
    trainable._time_total = seconds


def trial_folder(trainable: Any) -> Path | None:
    """Tune's folder of a trial, where it is on this machine."""
    storage = getattr(trainable, "_storage", None)
    if storage is None:
        return None
    with RAY.insides("StorageContext.trial_fs_path"):
        folder, filesystem = Path(storage.trial_fs_path), storage.storage_filesystem
    return folder if isinstance(filesystem, pafs.LocalFileSystem) and folder.is_dir() else None


def ray_started_here() -> bool:
    """Whether Ray's head was started by this process, so that no autoscaler adds nodes to it."""
    with RAY.insides("ray._private.worker._global_node"):
        node = ray._private.worker._global_node
    return node is not None and bool(node.head)


def num_cpus_found() -> int:
    """CPUs that Ray will find here, which in a container are fewer than the machine has."""
    with RAY.insides("ray._private.utils.get_num_cpus"):
        from ray._private.utils import get_num_cpus

        return int(get_num_cpus())
