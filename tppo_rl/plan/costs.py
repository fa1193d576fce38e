"""What an engine step and a learner's pass cost on a machine, fitted to measurements.

    engine step     base + per_sequence * running + per_context_token * keys and values read + per_prompt_token * prefilled
    learner's pass  base + per_sequence * sequences + per_position * positions + per_pair * squared lengths

Coefficients are at least 0 and are fitted by least squares of the relative errors, so that short measurements count as
much as long ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from tppo_rl.options import OptionError
from tppo_rl.plan.windows import LearnerWork, PassWork


class EngineCost(Protocol):
    """Seconds of an engine's work; arguments may be arrays of one shape."""

    @property
    def weight_update(self) -> float:
        """Seconds that an engine stands still for new weights, without recomputing what its requests hold."""

    @property
    def room(self) -> float:
        """Tokens whose keys and values the engine's memory holds; infinite where it is not known."""

    def seconds(self, running: Any, context_tokens: Any, prompt_tokens: Any) -> Any:
        """Returns seconds of a step.

        Args:
            running: Sequences that get a token each.
            context_tokens: Tokens of all of them whose keys and values are read.
            prompt_tokens: Tokens that are prefilled in the step.
        """


class LearnerCost(Protocol):
    """Seconds of an update."""

    def seconds(self, work: LearnerWork, updates: float) -> float:
        """Returns seconds of some updates.

        Args:
            work: Of all of them.
            updates: How many; may be a share of one.
        """


@dataclass(frozen=True)
class AffineEngineCost:
    """A measured step-cost curve, seconds."""

    base: float = 0.0
    per_sequence: float = 0.0
    per_context_token: float = 0.0
    per_prompt_token: float = 0.0
    weight_update: float = 0.0

    @property
    def room(self) -> float:
        return math.inf

    def seconds(self, running: Any, context_tokens: Any, prompt_tokens: Any) -> Any:
        return (
            self.base
            + self.per_sequence * running
            + self.per_context_token * context_tokens
            + self.per_prompt_token * prompt_tokens
        )


@dataclass(frozen=True)
class PassCost:
    """A measured pass, seconds."""

    base: float = 0.0
    per_sequence: float = 0.0
    per_position: float = 0.0
    per_pair: float = 0.0

    def seconds(self, work: PassWork, passes: float) -> float:
        return (
            self.base * passes
            + self.per_sequence * work.sequences
            + self.per_position * work.positions
            + self.per_pair * work.pairs
        )


@dataclass(frozen=True)
class MeasuredLearnerCost:
    """A learner's measured passes; epochs are in the work."""

    values: PassCost = PassCost()
    policy: PassCost = PassCost()
    critic: PassCost = PassCost()
    rest: PassCost = PassCost()
    """What else an update does with the fragments: batches, advantages, metrics."""

    def seconds(self, work: LearnerWork, updates: float) -> float:
        return (
            self.values.seconds(work.values, updates)
            + self.policy.seconds(work.policy, updates)
            + self.critic.seconds(work.critic, updates)
            + self.rest.seconds(work.values, updates)
        )


@dataclass(frozen=True)
class Costs:
    """Both sides of a machine's cost."""

    engine: EngineCost
    learner: LearnerCost
    source: str
    """What they are of, for tables."""


ONE_CORE = Costs(
    AffineEngineCost(1.42e-3, 8.17e-5, 0.0, 1.72e-5, 1.36e-2),
    MeasuredLearnerCost(
        values=PassCost(1.8e-3, 0.0, 2.08e-5, 3.65e-8),
        policy=PassCost(8.1e-3, 1.01e-3, 4.25e-5, 1.50e-7),
        critic=PassCost(2.43e-2, 1.26e-3, 2.73e-5, 1.42e-7),
        rest=PassCost(2.6e-3, 0.0, 4.7e-7, 0.0),
    ),
    "one core",
)
"""The shipped model in float32, by `tppo-rl bench plan` on one core of an AMD EPYC."""

_REWEIGHTINGS = 4


def fit_engine(
    running: Sequence[float],
    context_tokens: Sequence[float],
    prompt_tokens: Sequence[float],
    seconds: Sequence[float],
    *,
    weight_update: float = 0.0,
) -> AffineEngineCost:
    """Returns the curve of measured steps.

    Args:
        running: Sequences that got a token, mean over the steps of each measurement; like the next two.
        context_tokens: Tokens of all of them.
        prompt_tokens: Tokens that were prefilled.
        seconds: Of one step, the mean of each measurement.
        weight_update: Measured apart, seconds.
    """
    features = np.column_stack([np.ones(len(seconds)), running, context_tokens, prompt_tokens])
    base, per_sequence, per_context_token, per_prompt_token = _fit(features, seconds)
    return AffineEngineCost(base, per_sequence, per_context_token, per_prompt_token, weight_update)


def fit_pass(works: Sequence[PassWork], seconds: Sequence[float]) -> PassCost:
    """Returns the cost of a pass that was measured on some batches.

    Args:
        works: Of one pass over each batch.
        seconds: That it took.
    """
    features = np.array([[1.0, work.sequences, work.positions, work.pairs] for work in works])
    return PassCost(*_fit(features, seconds))


def _fit(features: np.ndarray, seconds: Sequence[float]) -> list[float]:
    """Returns coefficients >= 0 with the least sum of squared relative errors.

    Errors are relative to what is fitted, for relative to what was measured the slow ones of repeated measurements would
    count less than the fast ones. Columns are brought to one size first: squared lengths are a million times as large as
    numbers of sequences.
    """
    from scipy.optimize import nnls

    measured = np.asarray(seconds, np.float64)
    sizes = np.abs(features).max(axis=0)
    sizes[sizes == 0] = 1.0
    coefficients, scale = np.zeros(features.shape[1]), measured
    for _ in range(_REWEIGHTINGS):
        coefficients, _residual = nnls(features / sizes / scale[:, None], measured / scale)
        scale = np.maximum(features / sizes @ coefficients, 1e-3 * measured)
    return [float(value) for value in coefficients / sizes]


# Files


def write_costs(costs: Costs, path: Path) -> None:
    """Writes measured costs as JSON, in the form that `read_costs` reads."""
    assert isinstance(costs.engine, AffineEngineCost)
    assert isinstance(costs.learner, MeasuredLearnerCost)
    content = {"source": costs.source, "engine": asdict(costs.engine), "learner": asdict(costs.learner)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_costs(path: Path) -> Costs:
    """Reads a file of `write_costs`; missing coefficients are 0.

    Raises:
        OptionError: it is none, or holds unknown keys or negative numbers.
    """
    content = _load(path, "costs")
    if not isinstance(content, Mapping) or not {"engine", "learner"} <= set(content):
        raise OptionError(
            f"costs={str(path)!r}: keys 'engine' and 'learner' are wanted; `tppo-rl bench plan --costs` writes"
        )
    engine = _section(path, "engine", content["engine"], AffineEngineCost)
    parts = content["learner"]
    known = [field.name for field in fields(MeasuredLearnerCost)]
    if not isinstance(parts, Mapping) or set(parts) - set(known):
        raise OptionError(f"costs={str(path)!r}: 'learner' takes {', '.join(known)}")
    passes = {name: _section(path, name, part, PassCost) for name, part in parts.items()}
    return Costs(engine, MeasuredLearnerCost(**passes), str(content.get("source", path.name)))


def engine_of_records(path: Path) -> AffineEngineCost:
    """Returns the curve of what `tppo-rl bench rollout --json` wrote, with at least two numbers of slots.

    Its steps hold the contexts and prompts of their workload, which `base` and `per_sequence` therefore include.

    Raises:
        OptionError: the file is something else, or has too few numbers of slots.
    """
    medians = _records(path, "rollout")
    slots, seconds = [], []
    for name, median in medians.items():
        if name.startswith("rollout_tokens_per_second, "):
            slots.append(int(name.split(", ")[1].split()[0]))
            seconds.append(slots[-1] / median)
    if len(slots) < 2:
        raise OptionError(
            f"rollout_records={str(path)!r}: {len(slots)} numbers of slots; measure two or more with --slots"
        )
    updates = [median for name, median in medians.items() if name.startswith("weight_update_seconds")]
    nothing = np.zeros(len(slots))
    return fit_engine(slots, nothing, nothing, seconds, weight_update=float(np.mean(updates)) if updates else 0.0)  # type: ignore[arg-type]


def learner_of_records(path: Path) -> MeasuredLearnerCost:
    """Returns the passes of what `tppo-rl bench learner --json` wrote, from its whole episodes.

    Its records are of whole updates: a backward pass is taken to cost two forward ones, so an update over whole episodes
    is seven (policy three, values one, critic three).

    Raises:
        OptionError: the file is something else, or holds no whole episodes.
    """
    medians = _records(path, "learner")
    works, seconds = [], []
    for name, speed in medians.items():
        title, _, workload = name.partition(", ")
        if title == "learner_tokens_per_second" and workload.endswith(" tokens"):
            length = int(workload.split()[0])
            positions = medians[f"processed_per_trained_token, {workload}"]
            works.append(PassWork(0.0, positions, positions * length))
            seconds.append(1 / speed / 7)
    if not works:
        raise OptionError(f"learner_records={str(path)!r}: no whole episodes; measure some with --length")
    # One sequence length tells nothing of how the cost grows with it.
    features = np.array([[work.positions, work.pairs] for work in works])
    per_position, per_pair = _fit(features, seconds) if len(works) > 1 else [seconds[0] / works[0].positions, 0.0]
    return forward_and_backward(per_position, per_pair)


def learner_of_speed(tokens_per_second: float) -> MeasuredLearnerCost:
    """Returns the passes of a learner that trains so many positions a second, forwards and backwards, in either model.

    Raises:
        OptionError: a speed that is not above 0.
    """
    if not tokens_per_second > 0:
        raise OptionError(f"learner_speed={tokens_per_second:g} will not do: give positions per second, above 0")
    return forward_and_backward(1 / tokens_per_second / 3, 0.0)


def forward_and_backward(per_position: float, per_pair: float) -> MeasuredLearnerCost:
    """Returns the passes of two models of one shape, given seconds of a forward pass; a backward pass costs twice that."""
    forward = PassCost(per_position=per_position, per_pair=per_pair)
    both = PassCost(per_position=3 * per_position, per_pair=3 * per_pair)
    return MeasuredLearnerCost(values=forward, policy=both, critic=both)


_Section = TypeVar("_Section", AffineEngineCost, PassCost)


def _section(path: Path, name: str, content: Any, kind: type[_Section]) -> _Section:
    known = [field.name for field in fields(kind)]
    if not isinstance(content, Mapping) or set(content) - set(known):
        raise OptionError(f"costs={str(path)!r}: {name!r} takes {', '.join(known)}, seconds each")
    for key, value in content.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise OptionError(f"costs={str(path)!r}: {name}.{key}={value!r} will not do; give seconds, at least 0")
    return kind(**content)


def _records(path: Path, bench: str) -> dict[str, float]:
    content = _load(path, f"{bench}_records")
    try:
        return {str(record["figure"]): float(record["median"]) for record in content}
    except (TypeError, KeyError, ValueError):
        raise OptionError(
            f"{bench}_records={str(path)!r}: no records; give what `tppo-rl bench {bench} --json FILE` writes"
        ) from None


def _load(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{key}={str(path)!r}: not a readable JSON file ({error})") from None
