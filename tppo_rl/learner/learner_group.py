"""RLlib's LearnerGroup for learners that share one copy of weights and optimizer; what fails in a learner fails here.

RLlib gives the errors of learners back as if they were results, and says nothing of their cause where a learner is gone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from tppo_rl.core.checkpoint_files import begin_checkpoint, learner_state
from tppo_rl.core.errors import ProcessDied
from tppo_rl.learner.sharded_checkpoints import begin_slices, check_seen, end_slices, load_slices, write_slices

logger = logging.getLogger(__name__)

_ANSWER_S = 20.0
"""Time that a learner has to say that it is there, after another one has failed."""

_STEP_S = 5.0


class LearnerDied(ProcessDied):
    """The process of a learner is gone."""


class TPPOLearnerGroup(LearnerGroup):
    """A LearnerGroup of `TPPOLearner`s.

    RLlib asks one learner alone for the state of the group. Sharded learners first have to gather it together. A checkpoint
    (`write_state` or `begin_state`, `load_state`) does without.

    Every method raises `LearnerDied` where a learner's process is gone, also where it is another learner that misses it.
    """

    def __init__(self, *, config: Any, placement_group: PlacementGroup | None = None, **kwargs: Any) -> None:
        """Starts the learners.

        Args:
            config: RLlib's, with `options`.
            placement_group: Room for the learner actors and nothing else, which is given back when they end; None: they are in this
                process, or in the room of a trial of Tune's.
            **kwargs: RLlib's.

        Raises:
            LearnerDied: the actors did not start within `start_timeout_s`, and were killed.
        """
        self._calls: list[Any] = []
        self._workers: Any = None
        self._room = placement_group
        self._room_of_trial = get_current_placement_group() if config.num_learners else None
        self._hung = threading.Event()
        """Set when the learners are killed because they gave no answer."""
        limit_s = config.options.pipeline.start_timeout_s
        try:
            with self._killing_hung(limit_s, remote=config.num_learners > 0):
                super().__init__(config=config, placement_group=placement_group, **kwargs)
        except BaseException as error:
            self.kill()
            if self._hung.is_set() and isinstance(error, Exception):
                raise LearnerDied(_not_started(limit_s)) from error
            raise
        self._hung.clear()

    def kill(self) -> None:
        """Kills the learner actors, whatever they are doing, and gives their room back."""
        for worker in self._workers or ():
            ray.kill(worker)
        if self._room is not None:
            remove_placement_group(self._room)

    def update(self, **kwargs: Any) -> list[dict[str, Any]]:
        """Updates the learners as RLlib does."""
        with self._telling_death():
            return list(super().update(**kwargs))

    def ask(self, function: Callable[[Any], Any]) -> list[Any]:
        """Calls a function with every learner, where it is, and returns the results in the order of the learners.

        Raises:
            Exception: what the function raises in one of them.
        """
        with self._telling_death():
            return list(self._get_results(self.foreach_learner(function)))

    def ask_first(self, function: Callable[[Any], Any]) -> Any:
        """Calls a function with the learner that has the policy's whole weights, where it is, and returns its result.

        Raises:
            Exception: what the function raises.
        """
        with self._telling_death():
            self._gather(inference_only=True)
            first = None if self.is_local else self._worker_manager.healthy_actor_ids()[:1]
            return self._get_results(self.foreach_learner(function, remote_actor_ids=first))[0]

    def ask_beside(self, function: Callable[[Any], Any]) -> list[Any]:
        """Does as `ask`, for a thread beside the one that all other calls come from. Learners answer when they have nothing else to do.

        Raises:
            Exception: what the function raises in one of them.
        """
        with self._telling_death():
            if self.is_local:
                return [function(self._learner)]
            return list(ray.get([worker.apply.remote(function) for worker in self._workers]))

    def check_alive(self) -> None:
        """Looks whether a learner is gone, without a wait; between updates nobody else would see it.

        Raises:
            LearnerDied: one is.
        """
        if self.is_local:
            return
        if not self._calls:
            # Learners that are at work answer later.
            self._calls = [worker.apply.remote(_answer) for worker in self._workers]
        answered, _ = ray.wait(self._calls, num_returns=len(self._calls), timeout=0, fetch_local=False)
        if dead := [index for index, call in enumerate(self._calls) if call in answered and _is_gone(call)]:
            raise self._died(dead, "it gave no sign of life")
        if len(answered) == len(self._calls):
            self._calls = []

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Returns RLlib's state of the group, with whole weights and moments even if the learners hold slices."""
        with self._telling_death():
            if self._check_component(COMPONENT_LEARNER, components, not_components):
                self._gather(inference_only=bool(kwargs.get("inference_only", False)))
            return super().get_state(components, not_components=not_components, **kwargs)

    def set_state(self, state: dict[str, Any]) -> None:
        """Sets the state of all learners.

        Raises:
            Exception: a learner cannot take it.
        """
        if COMPONENT_LEARNER not in state:
            return
        if self.is_local:
            super().set_state(state)
            return
        reference = ray.put(state[COMPONENT_LEARNER])
        self.ask(partial(_take_state, reference=reference))

    def check_sees(self, folder: Path) -> None:
        """Checks that learners can write checkpoints into a folder.

        Raises:
            OptionError: learners are sharded, and do not all see it.
        """
        if self.config.distributed == "fsdp":
            check_seen(self.ask, folder)

    def write_state(self, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Returns the state of the group for a checkpoint. Sharded learners write its tensors, and nothing is gathered.

        Args:
            folder: Of the checkpoint, which sharded learners write their slices to.

        Returns:
            The state, with a `Sliced` in the place of each array that is written, and `Fingerprint.facts` of the written files.

        Raises:
            OptionError: learners are sharded, and do not all see the folder.
        """
        begin_checkpoint(folder)
        if self.config.distributed != "fsdp":
            return self.get_state(), {}
        state, files = write_slices(self.ask, folder)
        return {COMPONENT_LEARNER: state}, files

    def begin_state(self, folder: Path) -> tuple[dict[str, Any], Callable[[], dict[str, dict[str, Any]]]]:
        """Takes the state of the group as it is now; the learners may train on. Sharded ones begin to write its tensors.

        Args:
            folder: As for `write_state`.

        Returns:
            The state as that of `write_state`, and a function for another thread: it waits until all files are written, and
            returns their `Fingerprint.facts`.

        Raises:
            OptionError: learners are sharded, and do not all see the folder.
        """
        begin_checkpoint(folder)
        if self.config.distributed != "fsdp":
            # Arrays of this process are copies, and those of others are in Ray's store, where nothing changes.
            return self.get_state(), dict
        return {COMPONENT_LEARNER: begin_slices(self.ask, folder)}, partial(end_slices, self.ask_beside, folder)

    def load_state(self, folder: Path) -> None:
        """Loads the learners' part of a checkpoint, whatever learners have written it. Sharded learners read their rows.

        Raises:
            OptionError: a file is not as it was written; or learners are sharded, and do not all see it.
            RuntimeError: the weights are those of another model.
        """
        if self.config.distributed == "fsdp":
            load_slices(self.ask, folder)
        else:
            self.set_state({COMPONENT_LEARNER: learner_state(folder)})

    def save_to_path(self, path: Any = None, *, state: dict[str, Any] | None = None, **kwargs: Any) -> str:
        """Saves `state`, or by default the state of the group, as RLlib does."""
        return super().save_to_path(path, state=self.get_state() if state is None else state, **kwargs)

    def _gather(self, *, inference_only: bool) -> None:
        if self.config.distributed == "fsdp":
            self.ask(lambda learner: learner.gather_state(inference_only=inference_only))

    @contextmanager
    def _telling_death(self) -> Iterator[None]:
        with self._killing_hung(self.config.learner_timeout_s, remote=not self.is_local):
            try:
                yield
            except LearnerDied:
                raise
            except Exception as error:
                self._tell_death(error)

    def _tell_death(self, error: Exception) -> None:
        if self._hung.is_set():
            raise LearnerDied(
                f"learners gave no answer for {self.config.learner_timeout_s:g} s (learner_timeout_s), and were killed; what they had "
                "trained since the last checkpoint is gone. Go on from the newest checkpoint, as --resume does; where an update takes so "
                "long, set a larger learner_timeout_s"
            ) from error
        dead = [] if self.is_local else self._dead()
        if not dead:
            self._keep_all_in_use()
            raise error
        raise self._died(dead, str(error).partition("\n")[0]) from error

    @contextmanager
    def _killing_hung(self, limit_s: float, *, remote: bool) -> Iterator[None]:
        """Kills the learners after some seconds: whoever waits for them then gets an error."""
        if not remote:
            yield
            return
        answered = threading.Event()
        threading.Thread(target=self._kill_late, args=(answered, limit_s), name="learner-timeout", daemon=True).start()
        try:
            yield
        finally:
            answered.set()

    def _kill_late(self, answered: threading.Event, limit_s: float) -> None:
        waited, last = 0.0, time.monotonic()
        step = min(_STEP_S, limit_s)
        while not answered.wait(step):
            # Time in which this process itself was stopped does not count.
            waited, last = waited + min(time.monotonic() - last, 2 * step), time.monotonic()
            if waited >= limit_s and not answered.is_set():
                self._hung.set()
                self._kill_hung(limit_s)
                return

    def _kill_hung(self, limit_s: float) -> None:
        if self._workers is not None:
            for worker in self._workers:
                ray.kill(worker)
        elif self._room is not None:
            # RLlib has not told which actors they are; Ray kills all that are in the room.
            remove_placement_group(self._room)
        elif self._room_of_trial is not None:
            # This process is in the room as well, and Tune sees that the trial has died.
            logger.error(_not_started(limit_s))
            remove_placement_group(self._room_of_trial)

    def _died(self, dead: list[int], reason: str) -> LearnerDied:
        return LearnerDied(
            f"learner {', '.join(map(str, dead))} of {len(self._workers)} died (learners count from 0): its process was killed, "
            "often for want of memory, or its node was lost; what it had trained since the last checkpoint is gone. Go on from "
            f"the newest checkpoint, as --resume does (first error: {reason})"
        )

    def _keep_all_in_use(self) -> None:
        """RLlib leaves an actor that has raised out of all later calls, and says nothing of it."""
        if not self.is_local:
            for actor in self._worker_manager.actors():
                self._worker_manager.set_actor_state(actor, healthy=True)

    def _dead(self) -> list[int]:
        """Returns which learners are gone. One that is at work has some time to answer, and counts as alive after it."""
        calls = [worker.apply.remote(_answer) for worker in self._workers]
        ray.wait(calls, num_returns=len(calls), timeout=_ANSWER_S, fetch_local=False)
        return [index for index, call in enumerate(calls) if _is_gone(call)]


def _not_started(limit_s: float) -> str:
    return (
        f"learners have not started after {limit_s:g} s (start_timeout_s), and were killed; where the model only loads slowly, set a larger "
        "start_timeout_s; what they said last is in Ray's logs"
    )


def _take_state(learner: Any, *, reference: Any) -> None:
    learner.set_state(ray.get(reference))


def _answer(learner: Any) -> None:
    """Does nothing."""


def _is_gone(call: Any) -> bool:
    try:
        ray.get(call, timeout=0)
    except RayActorError:
        return True
    except Exception:
        return False
    return False
