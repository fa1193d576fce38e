"""vLLM's scheduler, of an engine core in a process of its own that takes a step only when its client asks for one.

Such a core runs on by itself: unread tokens pile up while the client waits for an update, and come out after it with the old
weights' version. This scheduler is paused but for one step at a time, so that nothing is ever unread:

    client              core
    step() ──resume──▶  steps until one has put tokens out, and is paused again
           ◀─tokens───
    load_weights() ──▶  (paused: no step is under way)

Only vLLM's core imports this module, by its name.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler

from tppo_rl.rollout.lifeline import die_with_starter


class LockstepScheduler(Scheduler):  # type: ignore[misc]
    """Scheduler that pauses itself after every step that has put something out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A core would wait for its client for ever, and keep its memory; its workers end with it.
        die_with_starter()
        super().__init__(*args, **kwargs)
        self.set_pause_state(PauseState.PAUSED_ALL)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        # A step of a long prompt's part puts nothing out, and the client waits for something.
        if outputs:
            self.set_pause_state(PauseState.PAUSED_ALL)
        return outputs
