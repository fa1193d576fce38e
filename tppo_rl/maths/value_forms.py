"""Forms of a value head: how its outputs stand for V(s), and what they regress.

| form | outputs | V(s) | loss of a token |
|---|---|---|---|
| `SquaredError` | 1 | the output | 0.5 (V - G)^2 |
| `CrossEntropy` | 1 | low + (high - low) sigmoid(output) | binary cross-entropy of sigmoid(output) and (G - low) / (high - low) |
| `HLGauss` | K | mean of a histogram with the weights softmax(outputs) | cross-entropy of softmax(outputs) and a Gaussian around G |

The last one is HL-Gauss (Imani and White 2018; Farebrother et al., arXiv 2403.03950). Its histogram goes on beyond the range of the
returns, so that no Gaussian is cut off and the mean of a target is its return.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tppo_rl.maths.value import value_loss

SIGMA_IN_BINS = 0.75
"""Standard deviation of HL-Gauss targets, in widths of a bin (arXiv 2403.03950, section 3.1)."""

_BINS_BEYOND = 3
"""Bins below and above the range: four standard deviations."""

MIN_BINS = 2 * _BINS_BEYOND + 2
"""Fewest bins of HL-Gauss: two inside of the range."""

_SMALLEST_SHARE = 0.01
"""Bound on the share that a sigmoid starts at: from further out it would come back slowly."""
_SMALLEST_BINS = 1e-3
"""Share of all bins together that no return has reached."""


class ValueForm(Protocol):
    """How the K outputs of a value head stand for a value."""

    @property
    def num_outputs(self) -> int:
        """K."""
        ...

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns V(s), [...], of outputs [..., K]."""
        ...

    def targets(self, returns: torch.Tensor) -> torch.Tensor:
        """Returns what the outputs regress, [..., K], for returns [...]; its mean over returns is what `start` takes."""
        ...

    def loss(self, outputs: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
        """Returns the loss of each token, [...]; gradients flow through the outputs [..., K]."""
        ...

    def start(self, mean_targets: torch.Tensor) -> torch.Tensor:
        """Returns the constant outputs [K] that fit best, given the mean of `targets`, [K]."""
        ...


@dataclass(frozen=True)
class SquaredError:
    """The output is the value; it may be any number."""

    num_outputs: int = 1

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs[..., 0]

    def targets(self, returns: torch.Tensor) -> torch.Tensor:
        return returns[..., None]

    def loss(self, outputs: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
        return value_loss(self.values(outputs), returns)

    def start(self, mean_targets: torch.Tensor) -> torch.Tensor:
        return mean_targets


@dataclass(frozen=True)
class CrossEntropy:
    """The value lies between `low` and `high`; returns beyond count as the nearer of the two."""

    low: float
    high: float
    num_outputs: int = 1

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.low + (self.high - self.low) * outputs[..., 0].sigmoid()

    def targets(self, returns: torch.Tensor) -> torch.Tensor:
        return ((returns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)[..., None]

    def loss(self, outputs: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(outputs, self.targets(returns).detach(), reduction="none")[..., 0]

    def start(self, mean_targets: torch.Tensor) -> torch.Tensor:
        return mean_targets.clamp(_SMALLEST_SHARE, 1.0 - _SMALLEST_SHARE).logit()


@dataclass(frozen=True)
class HLGauss:
    """The value is the mean of a histogram; returns beyond `low` and `high` count as the nearer of the two."""

    low: float
    high: float
    num_outputs: int
    """Number of bins, those beyond the range included, at least `MIN_BINS`."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        if self.num_outputs < MIN_BINS:
            raise ValueError(f"num_outputs={self.num_outputs}: a histogram needs {MIN_BINS} bins or more")

    @property
    def width(self) -> float:
        """Width of a bin, in units of reward."""
        return (self.high - self.low) / (self.num_outputs - 2 * _BINS_BEYOND)

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        first = self.low - (_BINS_BEYOND - 0.5) * self.width
        centers = first + self.width * torch.arange(self.num_outputs, dtype=outputs.dtype, device=outputs.device)
        return (outputs.softmax(-1) * centers).sum(-1)

    def targets(self, returns: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(self.num_outputs + 1, dtype=returns.dtype, device=returns.device)
        edges = self.low + (steps - _BINS_BEYOND) * self.width
        distances = (edges - returns.clamp(self.low, self.high)[..., None]) / (SIGMA_IN_BINS * self.width)
        below = torch.erf(distances / math.sqrt(2.0))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def loss(self, outputs: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
        return -(self.targets(returns).detach() * outputs.log_softmax(-1)).sum(-1)

    def start(self, mean_targets: torch.Tensor) -> torch.Tensor:
        return mean_targets.clamp_min(_SMALLEST_BINS / self.num_outputs).log()


def value_form(settings: dict[str, Any] | None) -> ValueForm:
    """Returns the form of a value head.

    Args:
        settings: `loss` ("squared_error", "cross_entropy" or "hl_gauss"); `low` and `high` for the latter two, `bins` for the
            last; None: squared error.

    Raises:
        ValueError: an unknown loss, or a bad range or number of bins.
    """
    settings = settings or {"loss": "squared_error"}
    loss = settings["loss"]
    if loss == "squared_error":
        return SquaredError()
    if loss == "cross_entropy":
        return CrossEntropy(settings["low"], settings["high"])
    if loss == "hl_gauss":
        return HLGauss(settings["low"], settings["high"], settings["bins"])
    raise ValueError(f"loss={loss!r} is unknown: use squared_error, cross_entropy or hl_gauss")


def _check_range(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the range of values is {low} to {high}: both must be finite, and the first below the second")
