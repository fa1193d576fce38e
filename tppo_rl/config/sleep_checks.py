"""Whether an engine may sleep while learners train: `engine.enable_sleep_mode`."""

from __future__ import annotations

from tppo_rl.config.options import Options
from tppo_rl.config.section import refuse

KEY = "engine.enable_sleep_mode"


def check_sleep(options: Options) -> None:
    """Refuses sleep where the engine cannot sleep, or would lose what it is to keep.

    Raises:
        OptionError: names key, value, reason and remedy.
    """
    arguments = options.rollout.engine.arguments
    if not arguments.get("enable_sleep_mode"):
        return
    if options.pipeline.mode == "async":
        refuse(
            KEY, True, "in mode='async' the engine samples while learners train; remove the key, or set mode to 'sync'"
        )
    if options.pipeline.kv_on_update == "keep":
        refuse(
            KEY,
            True,
            "an engine that sleeps loses its keys and values, and kv_on_update='keep' keeps them; set kv_on_update to 'recompute', or "
            "remove the key",
        )
    if arguments.get("multiprocessing"):
        refuse(
            KEY,
            True,
            "a core in a process of its own would take a step when it wakes, before it is asked for one; remove this key or "
            "engine.multiprocessing",
        )
    # A placement gives GPUs to env-runners later.
    on_cpu = options.rollout.num_gpus_per_env_runner == 0 and options.placement.placement is None
    if on_cpu or options.rollout.engine.device == "cpu":
        refuse(KEY, True, "vLLM's sleep frees the memory of a GPU, and the engine runs on a CPU; remove the key")


def sleeps(options: Options) -> bool:
    """Whether engines sleep while learners train."""
    return bool(options.rollout.engine.arguments.get("enable_sleep_mode")) and options.pipeline.mode == "sync"
