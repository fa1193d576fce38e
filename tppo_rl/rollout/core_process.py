"""vLLM's engine core in a process of its own, as a client sees it: steps on demand, and one error when it dies.

                    waits for                        unblocked by
step()              tokens of the step it asked for  the core's answer, or its death
other calls         the core's answer                the same
watching thread     the core's death                 vLLM's monitor of its processes
"""

from __future__ import annotations

import queue
import re
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import InvalidStateError
from typing import Any

from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.insides import VLLM, Contract

CONTRACT: Contract = {
    "vllm.v1.engine.core_client:SyncMPClient": ("get_output", "call_utility", "collective_rpc"),
    "vllm.v1.worker.worker_base:WorkerBase": ("check_health",),
    "vllm.v1.engine.core_client:BackgroundResources": ("engine_dead", "engine_manager"),
    "vllm.v1.engine.core:EngineCoreProc": ("resume_scheduler",),
    "vllm.v1.engine.utils:CoreEngineProcManager": ("finished_procs",),
    "vllm.v1.core.sched.interface:PauseState": ("PAUSED_ALL",),
    "vllm.v1.core.sched.scheduler:Scheduler": ("set_pause_state", "update_from_output"),
}
"""We also use `resources`, `outputs_queue` and `utility_results` of a client. These exist on instances alone, so the engine's tests
check them."""

SCHEDULER = "tppo_rl.rollout.lockstep_scheduler.LockstepScheduler"
"""Name under which the core's process imports its scheduler."""
_LOOK_S = 0.5
_LAST_MOMENT_S = 10.0
"""Longest that a core is given to end after a call that failed in it."""


class EngineDied(ProcessDied):
    """A process of an engine is gone."""

    @classmethod
    def of(cls, exit_codes: Mapping[str, int | None]) -> EngineDied:
        """Returns the error for processes by name, with exit codes as `multiprocessing` gives them."""
        ends = [_end(name, code) for name, code in exit_codes.items() if code]
        return cls(
            f"an engine is dead: {', '.join(ends) or 'its processes are gone'}; signal 9 is often the system's, for want of "
            "memory, and then num_envs_per_env_runner or the memory that `engine` gives to keys and values is too large; what "
            "the process said last is in Ray's log of the env-runner"
        )

    @classmethod
    def at_start(cls, error: BaseException) -> EngineDied | None:
        """Returns the error for what vLLM raises where a core was killed while it started; None: something else went wrong.

        vLLM may see the core's end before it sees how it ended, and then names none.
        """
        named = _CORES_AT_START.search(str(error))
        if named is None:
            return None
        codes = {name: int(code) for name, code in _CODE.findall(named[0])}
        return None if any(code > 0 for code in codes.values()) else cls.of(codes)


_CORES_AT_START = re.compile(r"Failed core proc\(s\): \{.*?\}")
_CODE = re.compile(r"'(\w+)': (-?\d+)")


def _end(name: str, code: int) -> str:
    return f"{name} was killed by signal {-code}" if code < 0 else f"{name} ended with status {code}"


class CoreProcess:
    """Makes a client of vLLM's step its core on demand, and lets nothing wait for a core that is dead.

    Args:
        client: vLLM's `SyncMPClient`; its core's scheduler is `SCHEDULER`.
    """

    def __init__(self, client: Any) -> None:
        with VLLM.insides("SyncMPClient.resources, .outputs_queue, .utility_results"):
            self._resources = client.resources
            waiting = (client.outputs_queue, client.utility_results)
        self._client = weakref.ref(client)
        self._take = client.get_output
        self._asked = False
        # vLLM itself steps by this method too.
        client.get_output = self._step
        watch = threading.Thread(target=_watch, args=(self._resources, *waiting), name="engine-core-watch", daemon=True)
        watch.start()

    def died(self) -> EngineDied | None:
        """Returns the error if the core is dead, or dies of what has just failed in it.

        A core whose worker is gone answers the call that waits for the worker with an error of its own, and ends a moment later.
        """
        deadline = time.monotonic() + _LAST_MOMENT_S
        while not self._resources.engine_dead and time.monotonic() < deadline and not self._has_workers():
            time.sleep(_LOOK_S / 10)
        return _died(self._resources) if self._resources.engine_dead else None

    def _has_workers(self) -> bool:
        client = self._client()
        assert client is not None
        try:
            client.collective_rpc("check_health", timeout=_LAST_MOMENT_S)
        except Exception:
            return False
        return True

    def _step(self) -> Any:
        client = self._client()
        assert client is not None
        # After an error the step that was asked for may still come.
        if not self._asked:
            client.call_utility("resume_scheduler")
            self._asked = True
        batch = self._take()
        self._asked = False
        return batch


def _watch(resources: Any, outputs: queue.Queue, answers: dict[int, Any]) -> None:
    """Waits for the core's death, and then ends every wait for it. vLLM itself sets a flag, and wakes nobody.

    A call registers its answer before it looks at the flag. So after the flag is set no further one comes to wait.
    """
    while not resources.engine_dead:
        time.sleep(_LOOK_S)
    error = _died(resources)
    outputs.put(error)
    while answers:
        _, answer = answers.popitem()
        try:
            answer.set_exception(error)
        except InvalidStateError:
            continue


def _died(resources: Any) -> EngineDied:
    return EngineDied.of({} if resources.engine_manager is None else resources.engine_manager.finished_procs())
