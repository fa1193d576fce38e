"""Sums and maxima that are collected over micro-batches, and then made global across learners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tppo_rl.learner.collective import Collective


class MetricSums:
    """Named sums and maxima. All learners know the same names, so their numbers line up even if some have seen nothing.

    Names of further metrics need not be known beforehand (`add_metric`): learners agree on them in `reduce_metrics`. Numbers
    stay on their device until they are reduced, so that collecting them does not wait for a GPU.
    """

    def __init__(self, sums: Iterable[str], maxima: Iterable[str]) -> None:
        self._sums: dict[str, list[torch.Tensor | float]] = {name: [] for name in sums}
        self._maxima: dict[str, list[torch.Tensor | float]] = {name: [] for name in maxima}
        self._metrics: dict[str, list[torch.Tensor]] = {}

    def add(self, name: str, value: torch.Tensor | float) -> None:
        """Adds a scalar to the sum `name`, or the sum of a tensor's elements."""
        self._sums[name].append(value.detach().double().sum() if isinstance(value, torch.Tensor) else value)

    def add_metric(self, name: str, value: torch.Tensor) -> None:
        """Adds the sum of a tensor's elements to the metric `name`, which may be new."""
        self._metrics.setdefault(name, []).append(value.detach().double().sum())

    def largest(self, name: str, value: torch.Tensor | float) -> None:
        """Raises the maximum `name` to a scalar, or to a tensor's largest element; empty tensors change nothing."""
        if not isinstance(value, torch.Tensor):
            self._maxima[name].append(value)
        elif value.numel():
            self._maxima[name].append(value.detach().double().max())

    def mark(self) -> dict[str, int]:
        """Returns how much has been collected, for `back_to`."""
        return {name: len(values) for name, values in self._everything()}

    def back_to(self, mark: Mapping[str, int]) -> None:
        """Takes back what was collected since a mark."""
        for name, values in self._everything():
            del values[mark.get(name, 0) :]

    def _everything(self) -> Iterator[tuple[str, list[Any]]]:
        for kind, collected in (("sum", self._sums), ("maximum", self._maxima), ("metric", self._metrics)):
            for name, values in collected.items():
                yield f"{kind} {name}", values

    def reduce(self, collective: Collective) -> dict[str, float]:
        """Returns the global sums and maxima by name, in two exchanges; a maximum that no learner has seen is -inf."""
        sums = _sum_up(self._sums.values(), collective)
        maxima = collective.max_(
            torch.tensor([max(map(float, values), default=float("-inf")) for values in self._maxima.values()]).double()
        )
        return dict(zip([*self._sums, *self._maxima], [*sums.tolist(), *maxima.tolist()], strict=True))

    def reduce_metrics(self, collective: Collective) -> dict[str, float]:
        """Returns the global sums of the metrics that any learner has seen, by name."""
        names = collective.union(self._metrics)
        sums = _sum_up((self._metrics.get(name, []) for name in names), collective)
        return dict(zip(names, sums.tolist(), strict=True))


def _sum_up(values: Iterable[Sequence[torch.Tensor | float]], collective: Collective) -> torch.Tensor:
    return collective.sum_(torch.tensor([sum(map(float, of_name)) for of_name in values]).double())
