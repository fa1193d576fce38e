"""The figures of the laboratory: what could be known, and what each critic knows, over all states and by parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from tppo_rl.lab.samples import Samples
from tppo_rl.maths.cluster_bootstrap import Estimate
from tppo_rl.maths.value_quality import (
    States,
    agreement,
    agreement_of_differences,
    auroc,
    calibration,
    ceiling,
    explained_by_true_values,
    explained_of_returns,
    explained_of_true_values,
    mean_error,
    neighbors,
    root_mean_square_error,
)

_MOST_WINDOWS = 8
_LEAST_STATES = 20
"""States of a part below which it has no figures."""
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
_LENGTHS = ("short", "middle", "long")


class Part(NamedTuple):
    """Some of the states."""

    kind: str
    """`all`, `position`, `window`, `share` or `length`."""
    name: str
    states: States
    chosen: np.ndarray
    """int64, which of all states."""


def figures_of(
    samples: Samples, values: Mapping[str, Sequence[np.ndarray]], *, gamma: float, window: int
) -> dict[str, Any]:
    """Returns all figures, ready for JSON.

    Args:
        samples: Of the policy.
        values: By name of the critic: its values along each response, float [n] for n tokens.
        gamma: Discount of each token.
        window: Tokens of a window.

    Returns:
        `sampled` (counts), `parts` (rows, see `Part`, with explained variances), `ceilings` of quantities that critics are
        judged by, and `critics` by name. Estimates are the fields of `Estimate`; what is not defined is None.
    """
    states, known = samples.states(gamma), samples.known()
    positives = _positives(samples, known, states)
    at = {name: _at_states(samples, known, along) for name, along in values.items()}
    both = 0.5 * (states.first + states.second)
    return {
        "sampled": _counts(samples, states),
        "parts": [_part(part, at) for part in parts_of(states, window)],
        "ceilings": {
            "explained_of_returns": written(ceiling(states)),
            "auroc": written(auroc(states, both, positives)),
        },
        "critics": {name: _critic(samples, states, known, of, positives, values[name]) for name, of in at.items()},
    }


def parts_of(states: States, window: int) -> Iterator[Part]:
    """Gives all states, all responses with equal weight, and parts by position, window, share and length of the response."""

    def part(kind: str, name: str, chosen: np.ndarray) -> Part:
        index = np.flatnonzero(chosen)
        return Part(kind, name, states.where(index), index)

    everything = np.ones(len(states), bool)
    yield part("all", "tokens", everything)
    yield part("all", "responses", everything)._replace(states=states.by_response())
    yield part("all", "prompts", states.positions == 0)
    low = 1
    while low <= states.positions.max(initial=0):
        inside = (states.positions >= low) & (states.positions < 2 * low)
        yield part("position", f"{low} to {2 * low - 1}" if low > 1 else "1", inside)
        low *= 2
    index = np.minimum(states.positions // window, _MOST_WINDOWS - 1)
    for number in range(int(index.max(initial=0)) + 1):
        last = number == _MOST_WINDOWS - 1
        yield part("window", f"{number + 1}{' and later' if last else ''}", index == number)
    share = states.positions / states.lengths
    for number, name in enumerate(_QUARTERS):
        yield part("share", name, (share >= number / 4) & (share < (number + 1) / 4))
    by_response = states.by_response().weights
    edges = _quantiles(states.lengths, by_response, len(_LENGTHS))
    for number, name in enumerate(_LENGTHS):
        inside = (states.lengths > edges[number]) & (states.lengths <= edges[number + 1])
        if inside.any():
            lengths = states.lengths[inside]
            yield part("length", f"{name}, {lengths.min()} to {lengths.max()} tokens", inside)


def written(estimate: Estimate) -> dict[str, Any]:
    """Returns an estimate for JSON, which has no NaN."""
    return {key: None if np.isnan(value) else value for key, value in asdict(estimate).items()}


def _counts(samples: Samples, states: States) -> dict[str, Any]:
    lengths = np.array(list(map(len, samples.responses)))
    correct = [response.correct for response in samples.responses]
    return {
        "tokens": samples.num_tokens,
        "responses": len(samples.responses),
        "problems": len({response.problem for response in samples.responses}),
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "truncated": float(np.mean([response.truncated for response in samples.responses])),
        "accuracy": None if None in correct else float(np.mean([bool(one) for one in correct])),
        "mean_return": float(np.mean([response.reward for response in samples.responses])),
        "states": len(samples.places),
        "known_states": len(states),
        "continuations_per_state": len(samples.continuations) / len(samples.places),
    }


def _part(part: Part, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    states = part.states
    enough = len(states) >= _LEAST_STATES
    row: dict[str, Any] = {"kind": part.kind, "name": part.name, "states": len(states)}
    row["ceiling"] = written(ceiling(states)) if enough else None
    row["by_true_values"] = written(explained_by_true_values(states)) if enough else None
    row["critics"] = {
        name: {
            "explained_of_returns": written(explained_of_returns(states, of[part.chosen])),
            "explained_of_true_values": written(explained_of_true_values(states, of[part.chosen])),
            "mean_error": written(mean_error(states, of[part.chosen])),
            "root_mean_square_error": written(root_mean_square_error(states, of[part.chosen])),
        }
        for name, of in values.items()
        if enough
    }
    return row


def _critic(
    samples: Samples,
    states: States,
    known: np.ndarray,
    values: np.ndarray,
    positives: np.ndarray,
    along: Sequence[np.ndarray],
) -> dict[str, Any]:
    levels, differences = agreement(states, values), agreement_of_differences(states, values)
    before, after = neighbors(states)
    distances = states.positions[after] - states.positions[before]
    return {
        "correlation": written(levels.correlation),
        "slope": written(levels.slope),
        "correlation_of_differences": written(differences.correlation),
        "slope_of_differences": written(differences.slope),
        "mean_distance": float(distances.mean()) if len(distances) else None,
        "auroc": written(auroc(states, values, positives)),
        "calibration": [row._asdict() for row in calibration(states, values)],
        "boundaries": boundaries(samples, states, known, along),
    }


def boundaries(
    samples: Samples, states: States, known: np.ndarray, along: Sequence[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Returns the errors of the values that stand for a state at which a window is cut, against its true value.

    `hold` is the value of the state before, `bootstrap` that of the state itself; `tail_corrected` uses the latter with other
    weights (`tppo_rl.maths.advantages`). Every state but prompts may be the end of a window.

    Args:
        samples: Of the policy.
        states: N states.
        known: int64 [N], their indices.
        along: The critic's values along each response.

    Returns:
        By name: `mean_error` and `root_mean_square_error`, estimates.
    """
    later = np.flatnonzero(states.positions > 0)
    ends, places = states.where(later), [samples.places[index] for index in known[later]]
    found = {}
    for name, back in (("hold", 1), ("bootstrap", 0), ("tail_corrected", 0)):
        values = np.array([along[place.response][place.position - back] for place in places])
        found[name] = {
            "mean_error": written(mean_error(ends, values)),
            "root_mean_square_error": written(root_mean_square_error(ends, values)),
        }
    return found


def _at_states(samples: Samples, known: np.ndarray, along: Sequence[np.ndarray]) -> np.ndarray:
    places = [samples.places[index] for index in known]
    return np.array([along[place.response][place.position] for place in places], np.float64)


def _positives(samples: Samples, known: np.ndarray, states: States) -> np.ndarray:
    """Whether the responses are right; without verdicts, whether their returns are above the mean."""
    correct = [samples.responses[samples.places[index].response].correct for index in known]
    if None in correct:
        return states.returns > np.average(states.returns, weights=states.weights)
    return np.array(correct, bool)


def _quantiles(lengths: np.ndarray, weights: np.ndarray, parts: int) -> np.ndarray:
    """Edges of parts with about the same weight; the first one lies below all."""
    order = np.argsort(lengths, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    places = [min(int(np.searchsorted(share, (part + 1) / parts - 1e-9)), len(order) - 1) for part in range(parts)]
    return np.concatenate([[0], lengths[order][places]])
