"""RLlib's LearnerGroup for learners that share one copy of weights and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup


class TPPOLearnerGroup(LearnerGroup):
    """A LearnerGroup of `TPPOLearner`s.

    RLlib asks one learner alone for the state of the group. Sharded learners first have to gather it together.
    """

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Returns RLlib's state of the group, with whole weights and moments even if the learners hold slices."""
        if self._check_component(COMPONENT_LEARNER, components, not_components):
            self._gather(inference_only=bool(kwargs.get("inference_only", False)))
        return super().get_state(components, not_components=not_components, **kwargs)

    def on_first_learner(self, function: Callable[[Any], Any]) -> Any:
        """Calls a function with the learner that has the policy's whole weights, where it is, and returns its result.

        Raises:
            Exception: what the function raises.
        """
        self._gather(inference_only=True)
        first = None if self.is_local else self._worker_manager.healthy_actor_ids()[:1]
        (call,) = self.foreach_learner(function, remote_actor_ids=first)
        return call.get()

    def _gather(self, *, inference_only: bool) -> None:
        if self.config.distributed != "fsdp":
            return
        for call in self.foreach_learner(lambda learner: learner.gather_state(inference_only=inference_only)):
            if not call.ok:
                raise call.get()

    def save_to_path(self, path: Any = None, *, state: dict[str, Any] | None = None, **kwargs: Any) -> str:
        """Saves `state`, or by default the state of the group, as RLlib does."""
        return super().save_to_path(path, state=self.get_state() if state is None else state, **kwargs)
