"""Ends a run before weights that are no good leave the learner: they are not finite, have blown up, or no step can be taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor

from tppo_rl.core.errors import RunError
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.optimizers import StepReport, parameters_of, squared_norm

LARGEST_GROWTH = 10.0
"""Factor by which the norm of a model's weights may grow in one update. No run that learns comes near it."""


class WeightGuard:
    """Looks at one model after each update.

    Args:
        optimizer: Of the model's trained weights.
        collective: Sums the parts of sharded weights.
        name: Of the model, "policy" or "critic".
        lr_key: Option that sets its learning rate.
        most_skipped: Updates in a row that may have none of their steps taken.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, collective: Collective, *, name: str, lr_key: str, most_skipped: int
    ) -> None:
        self._optimizer = optimizer
        self._collective = collective
        self._name = name
        self._lr_key = lr_key
        self._most_skipped = most_skipped
        self._norm: float | None = None
        self._skipped = 0

    def before(self) -> None:
        """Notes the weights' norm, if it is not known; all learners must call it."""
        if self._norm is None:
            self._norm = self._measured()

    def forget(self) -> None:
        """Is told that other weights were loaded."""
        self._norm = None
        self._skipped = 0

    def after(self, reports: Sequence[StepReport], lr: float) -> None:
        """Checks the weights after an update; all learners must call it.

        Args:
            reports: Of the update's optimizer steps; none: the model was not trained.
            lr: Learning rate of these steps.

        Raises:
            RunError: the weights are not finite or have blown up, or too many updates in a row took no step.
        """
        if not reports:
            return
        applied = any(report.applied for report in reports)
        self._skipped = 0 if applied else self._skipped + 1
        if self._skipped >= self._most_skipped:
            raise RunError(
                f"{self._name}: no optimizer step of {self._skipped} updates in a row was taken, because no gradient was finite "
                f"(learner/{self._name}_skipped_steps); lower {self._lr_key}={lr:g}, look for rewards beyond all bounds "
                "(rollout/return_mean), and go on from the last checkpoint (max_skipped_updates sets how many are waited for)"
            )
        if not applied:
            return
        assert self._norm is not None, "before() was not called"
        norm = self._measured()
        if not math.isfinite(norm) or norm > LARGEST_GROWTH * max(self._norm, 1.0):
            raise RunError(
                f"{self._name}: one update took the norm of its weights from {self._norm:.3g} to {norm:.3g}; they were given to no engine "
                f"and to no checkpoint. Lower {self._lr_key}={lr:g} and go on from the last checkpoint"
            )
        self._norm = norm

    def _measured(self) -> float:
        weights = [parameter.detach() for parameter in parameters_of(self._optimizer)]
        sharded = [weight.to_local() for weight in weights if isinstance(weight, DTensor)]
        if sharded:
            return math.sqrt(float(self._collective.sum_(squared_norm(sharded))))
        return math.sqrt(float(squared_norm(weights)))
