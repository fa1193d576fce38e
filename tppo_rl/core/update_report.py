"""What learners are told before an update, and what they report of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of one update that follow from earlier ones."""

    unfinished_scale: float | None = None
    """Factor on the advantages of unfinished windows, 0 to 1; None: the options say it."""
    policy_is_frozen: bool = False
    """Whether the critic trains alone."""


DEFAULT_SETTINGS = UpdateSettings()


@dataclass(frozen=True, eq=False)
class UpdateReport:
    """One update, all learners together."""

    metrics: Mapping[str, float]
    """Scalars by the names of `tppo_rl.learner.metrics`."""
    fragments: pa.Table
    """A row for each fragment (`tppo_rl.learner.update.FRAGMENT_REPORT_SCHEMA`)."""
    staleness_histogram: np.ndarray
    """int64: trained tokens by staleness, from 0 versions on."""
    of_learners: Sequence[dict[str, Any]] = field(default_factory=list)
    """RLlib's metrics, a dictionary for each learner."""

    @property
    def trained_tokens(self) -> int:
        """Tokens that were trained for the first time."""
        return int(self.metrics["trained_tokens"])

    @property
    def largest_staleness(self) -> int:
        """Largest staleness of a trained token, in policy versions."""
        return int(self.metrics["staleness_max"])
