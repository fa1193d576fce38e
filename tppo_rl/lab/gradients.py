"""The policy gradient of unfinished windows by a critic's advantages, beside the true one.

A continuation is the policy's way on from a state s: its first token a, the window that follows, and its return G. So for the
first token of each continuation

    true advantage, without bias:   G minus the mean return of the other continuations of s
    critic's advantage:             EGAE of the rest of the window that s lies in, by the critic's values along the continuation

and both weigh the same grad log pi(a | s). A window is unfinished if the continuation goes on after it. Tokens of finished
windows count 0 in the gradients of unfinished windows, on both sides.

Groups of problems are independent, which `tppo_rl.maths.gradient_alignment` needs. Where a model has many weights, a random
part of them stands for all: products of gradients are then right up to a factor that no figure has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tppo_rl.config.sections.advantages import LENGTH_ADAPTIVE
from tppo_rl.lab.quality import written
from tppo_rl.lab.samples import Samples
from tppo_rl.maths.advantages import BoundaryValue, boundary_values, egae, length_adaptive_lambda
from tppo_rl.maths.gradient_alignment import alignment

WAYS: tuple[BoundaryValue, ...] = ("hold", "bootstrap", "tail_corrected")
TRUE, TRUE_OF_ALL = "returns", "returns of all"
_GROUPS = 16
_COORDINATES = 2**18
_TOKENS_OF_A_PASS = 4096
_SEED = 0

Values = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""A critic: its value after each position of each sequence."""


@dataclass(frozen=True)
class Windows:
    """How a run cuts and estimates."""

    length: int
    """Tokens."""
    gamma: float
    lambda_: float | str
    """A number, or `length_adaptive`."""
    lambda_alpha: float
    temperature: float


@dataclass(frozen=True, eq=False)
class Chosen:
    """The states that gradients are taken at."""

    states: np.ndarray
    """int64 [S], indices of places with continuations in both halves."""
    groups: np.ndarray
    """int64 [S], 0 to K - 1; states of one problem are in one group."""
    continuations: np.ndarray
    """int64 [M], indices of their continuations."""
    of: np.ndarray
    """int64 [M], entry in `states`."""


def choose(samples: Samples, number: int) -> Chosen:
    """Returns at most `number` states at random, in groups of problems."""
    rng = np.random.default_rng(_SEED)
    known = samples.known()
    states = np.sort(rng.permutation(known)[:number])
    problems = np.array([samples.responses[samples.places[state].response].problem for state in states], np.int64)
    names, index = np.unique(problems, return_inverse=True)
    groups = rng.permutation(len(names)) % min(_GROUPS, len(names))
    entry = {int(state): place for place, state in enumerate(states)}
    continuations = [row for row, one in enumerate(samples.continuations) if one.state in entry]
    of = [entry[samples.continuations[row].state] for row in continuations]
    return Chosen(states, groups[index], np.array(continuations, np.int64), np.array(of, np.int64))


def measure_gradients(
    policy: Any, critics: Mapping[str, Values], samples: Samples, windows: Windows, number: int
) -> dict[str, dict[str, Any]]:
    """Returns figures of gradients by critic and by boundary value, and of the true advantages under `returns`.

    Args:
        policy: A `Policy`, the one that was sampled.
        critics: By name.
        samples: Of the policy.
        windows: See the class.
        number: Most states.

    Returns:
        `cosine` (with the true gradient of the same tokens), `cosine_of_all` (with that of all tokens) and
        `tokens_per_signal`, as estimates.
    """
    chosen = choose(samples, number)
    unfinished = _unfinished(samples, chosen, windows.length)
    true = true_advantages(samples, chosen, windows.gamma)
    weights = {TRUE_OF_ALL: true, TRUE: true * unfinished}
    for name, values in critics.items():
        for way, advantages in critic_advantages(values, samples, chosen, windows).items():
            weights[f"{name}\n{way}"] = advantages * unfinished
    gradients, states = group_gradients(policy, samples, chosen, weights, windows.temperature)
    draws = len(chosen.of) / max(1, len(chosen.states)) / 2

    def figures(name: str) -> dict[str, Any]:
        own = alignment(gradients[name], gradients[TRUE], states, draws)
        of_all = alignment(gradients[name], gradients[TRUE_OF_ALL], states, draws)
        return {
            "cosine": written(own.cosine),
            "cosine_of_all": written(of_all.cosine),
            "tokens_per_signal": written(own.tokens_per_signal),
        }

    if len(states) < 2:
        return {}
    return {name: {way: figures(f"{name}\n{way}") for way in WAYS} | {TRUE: figures(TRUE)} for name in critics}


def true_advantages(samples: Samples, chosen: Chosen, gamma: float) -> np.ndarray:
    """Returns G minus the mean return of the other continuations of its state, float64 [M]."""
    returns = samples.returns(gamma)[chosen.continuations]
    number = len(chosen.states)
    counts, sums = np.bincount(chosen.of, minlength=number), np.bincount(chosen.of, returns, minlength=number)
    return returns - (sums[chosen.of] - returns) / (counts[chosen.of] - 1)


def critic_advantages(
    values: Values, samples: Samples, chosen: Chosen, windows: Windows
) -> dict[BoundaryValue, np.ndarray]:
    """Returns the advantages of the continuations' first tokens, float64 [M] by boundary value."""
    sequences, rewards, lengths, starts, finished = [], [], [], [], []
    for index in chosen.continuations:
        one = samples.continuations[index]
        place = samples.places[one.state]
        response = samples.responses[place.response]
        taken = one.tokens[: _rest(place.position, windows.length)]
        sequences.append(np.concatenate([response.prompt, response.tokens[: place.position], taken]))
        lengths.append(len(taken))
        starts.append(len(response.prompt) + place.position - 1)
        finished.append(len(taken) == len(one.tokens))
        rewards.append(one.reward if finished[-1] else 0.0)
    number, longest = len(sequences), max(lengths)
    rows = torch.zeros(2, number, longest, dtype=torch.float64)
    after = torch.zeros(number, dtype=torch.float64)
    for row, found in enumerate(values(sequences)):
        along = torch.from_numpy(found[starts[row] :])
        rows[0, row, : lengths[row]] = along[: lengths[row]]
        rows[1, row, lengths[row] - 1] = rewards[row]
        after[row] = along[lengths[row]]
    along, given = rows[0], rows[1]
    ends, over = torch.tensor(lengths), torch.tensor(finished)
    lambda_ = _lambda(windows, [starts[row] + 1 + lengths[row] for row in range(number)], samples, chosen)
    result = {}
    for way in WAYS:
        at_boundary = boundary_values(along, after, ends, over, way)
        tail_corrected = ~over if way == "tail_corrected" else None
        advantages = egae(
            given, along, at_boundary, ends, gamma=windows.gamma, lambda_=lambda_, tail_corrected=tail_corrected
        )
        result[way] = advantages[:, 0].double().numpy()
    return result


def group_gradients(
    policy: Any, samples: Samples, chosen: Chosen, weights: Mapping[str, np.ndarray], temperature: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the weighted policy gradients of the groups.

    Args:
        policy: A `Policy`.
        samples: Of the policy.
        chosen: S states in K groups, with M continuations.
        weights: By name: float [M], what each first token's grad log-prob is multiplied with.
        temperature: Of the sampling.

    Returns:
        By name float32 [K, 2, P], means over the tokens that the states stand for; and float64 [K], how many states of equal
        weight a group is worth.
    """
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    coordinates = coordinates_of(sum(parameter.numel() for parameter in parameters))
    number = int(chosen.groups.max()) + 1
    halves = np.array([samples.continuations[index].half for index in chosen.continuations])
    mass = np.array([samples.places[state].weight for state in chosen.states])
    per_state = np.stack([np.bincount(chosen.of[halves == half], minlength=len(mass)) for half in (0, 1)], axis=1)
    total = np.bincount(chosen.groups, mass, minlength=number)
    scale = (mass / total[chosen.groups])[chosen.of] / per_state[chosen.of, halves]
    found = {name: np.zeros((number, 2, len(coordinates)), np.float32) for name in weights}
    for rows in _passes(samples, chosen):
        inputs, last = _inputs(samples, chosen.states[rows])
        group = int(chosen.groups[rows[0]])
        entry = {int(row): place for place, row in enumerate(rows)}
        mine = np.flatnonzero(np.isin(chosen.of, rows))
        places = torch.tensor([entry[int(row)] for row in chosen.of[mine]])
        tokens = torch.tensor([int(samples.continuations[chosen.continuations[index]].tokens[0]) for index in mine])
        device = parameters[0].device
        log_probs = policy(
            inputs.to(device), places.to(device), last[places].to(device), tokens.to(device), temperature=temperature
        ).log_probs
        for name, of in weights.items():
            for half in (0, 1):
                factors = np.where(halves[mine] == half, scale[mine] * of[mine], 0.0)
                if factors.any():
                    loss = (log_probs * torch.from_numpy(factors).to(log_probs)).sum()
                    parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                    found[name][group, half] += _flat(parts, parameters)[coordinates].numpy()
    worth = total**2 / np.bincount(chosen.groups, mass**2, minlength=number)
    return found, worth


def _rest(position: int, window: int) -> int:
    """Tokens from a position to the end of its window."""
    return window - position % window


def _unfinished(samples: Samples, chosen: Chosen, window: int) -> np.ndarray:
    """1 where a continuation goes on after its first window, float64 [M]."""
    ones = [samples.continuations[index] for index in chosen.continuations]
    return np.array([float(len(one.tokens) > _rest(samples.places[one.state].position, window)) for one in ones])


def _lambda(windows: Windows, ends: Sequence[int], samples: Samples, chosen: Chosen) -> float | torch.Tensor:
    if windows.lambda_ != LENGTH_ADAPTIVE:
        return float(windows.lambda_)
    ones = [samples.places[samples.continuations[index].state] for index in chosen.continuations]
    prompts = [len(samples.responses[place.response].prompt) for place in ones]
    lengths = torch.tensor([end - prompt for end, prompt in zip(ends, prompts, strict=True)])
    return length_adaptive_lambda(lengths, alpha=windows.lambda_alpha).double()


def coordinates_of(number: int) -> torch.Tensor:
    """Returns which of a model's weights stand for all, int64 [P]: every one of them, or 2^18 at random."""
    if number <= _COORDINATES:
        return torch.arange(number)
    return torch.from_numpy(np.random.default_rng(_SEED).integers(number, size=_COORDINATES))


def _passes(samples: Samples, chosen: Chosen) -> list[np.ndarray]:
    """Divides states of one group each among forward passes."""
    passes = []
    for group in np.unique(chosen.groups):
        rows = np.flatnonzero(chosen.groups == group)
        lengths = np.array([_length(samples, int(state)) for state in chosen.states[rows]])
        rows, lengths = rows[np.argsort(lengths, kind="stable")], np.sort(lengths)
        start = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or (end + 1 - start) * lengths[end] > _TOKENS_OF_A_PASS:
                passes.append(rows[start:end])
                start = end
    return passes


def _length(samples: Samples, state: int) -> int:
    place = samples.places[state]
    return len(samples.responses[place.response].prompt) + place.position


def _inputs(samples: Samples, states: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and prefixes, int64 [b, n] padded with 0, and the position of each last token, int64 [b]."""
    lengths = [_length(samples, int(state)) for state in states]
    inputs = torch.zeros(len(states), max(lengths), dtype=torch.int64)
    for row, state in zip(inputs, states, strict=True):
        place = samples.places[int(state)]
        response = samples.responses[place.response]
        tokens = np.concatenate([response.prompt, response.tokens[: place.position]])
        row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    return inputs, torch.tensor(lengths) - 1


def _flat(parts: Sequence[torch.Tensor | None], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Gradients of all parameters one after another, float32 on the CPU."""
    return torch.cat(
        [
            torch.zeros(parameter.numel()) if part is None else part.detach().float().reshape(-1).cpu()
            for part, parameter in zip(parts, parameters, strict=True)
        ]
    )
