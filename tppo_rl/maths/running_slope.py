"""How much of the critic's differences the returns have borne out so far: a regression over updates that forgets old ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_HALF_LIFE = 16
"""Updates after which what was seen counts half: the critic learns, and its differences with it."""
_LEAST_EPISODES = 8
_COLUMNS = 3


class RunningSlope:
    """The b of `tppo_rl.maths.value.difference_slope` over the last updates, with its standard error."""

    def __init__(self) -> None:
        self._moments = np.zeros((_COLUMNS + 1, _COLUMNS + 1))
        self._pairs = 0.0
        self._episodes = 0.0

    def add(self, before: np.ndarray, after: np.ndarray, returns: np.ndarray, num_episodes: int) -> None:
        """Adds what an update has told, and lets all before count less.

        Args:
            before: float [n], V of the state before each window.
            after: float [n], V of the state after it.
            returns: float [n], the return that followed the window.
            num_episodes: Episodes that the windows are of: windows of one episode have one return.
        """
        decay = 0.5 ** (1 / _HALF_LIFE)
        rows = np.stack([np.ones(len(before)), before, after - before, returns], axis=1).astype(np.float64)
        self._moments = decay * self._moments + rows.T @ rows
        self._pairs = decay * self._pairs + len(rows)
        self._episodes = decay * self._episodes + num_episodes

    def estimate(self) -> tuple[float, float] | None:
        """Returns b and its standard error; None: too few episodes were seen, or values that do not differ."""
        inputs, with_returns = self._moments[:_COLUMNS, :_COLUMNS], self._moments[:_COLUMNS, _COLUMNS]
        if self._episodes < _LEAST_EPISODES or np.linalg.cond(inputs) > 1 / np.finfo(np.float64).eps:
            return None
        inverse = np.linalg.inv(inputs)
        coefficients = inverse @ with_returns
        residual = self._moments[_COLUMNS, _COLUMNS] - coefficients @ with_returns
        variance = max(0.0, float(residual)) / max(1.0, self._pairs - _COLUMNS)
        # An episode's windows err together, so that they count as one.
        variance *= max(1.0, self._pairs / self._episodes)
        return float(coefficients[2]), math.sqrt(variance * float(inverse[2, 2]))

    def least(self, errors: float = 1.0) -> float | None:
        """Returns b less so many standard errors; None while nothing is known."""
        found = self.estimate()
        return None if found is None else found[0] - errors * found[1]

    def scale(self) -> float:
        """Returns the factor, 0 to 1, by which differences are worth multiplying: `least`; 0 while nothing is known.

        b is the factor with which a difference predicts the return best.
        """
        return float(np.clip(self.least() or 0.0, 0.0, 1.0))

    def state(self) -> dict[str, Any]:
        """Returns what was seen, as JSON."""
        return {"moments": self._moments.tolist(), "pairs": self._pairs, "episodes": self._episodes}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunningSlope:
        """Goes on from what `state` returned."""
        found = cls()
        found._moments = np.array(state["moments"], dtype=np.float64)
        found._pairs, found._episodes = float(state["pairs"]), float(state["episodes"])
        return found
