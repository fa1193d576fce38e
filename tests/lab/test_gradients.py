"""Gradients of walks, whose true gradient has a closed form; advantages by hand; a transformer's gradients by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from walks import CHANCE, DOWN, END, GOAL, UP, place_of, true_value, walk_sampler

from tppo_rl.base_models import resolve_model
from tppo_rl.lab.gradients import (
    TRUE_OF_ALL,
    Windows,
    choose,
    coordinates_of,
    critic_advantages,
    group_gradients,
    measure_gradients,
    true_advantages,
)
from tppo_rl.lab.samples import Continuation, Place, Response, Samples
from tppo_rl.lab.sampling import Draw, Plan
from tppo_rl.learner.models import Policy, load_causal_lm
from tppo_rl.maths.log_probs import TokenLogProbs

PROMPT = 2


class WalkPolicy(torch.nn.Module):
    """The walk as a policy with one logit for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.full((2 * GOAL + 1,), float(np.log(CHANCE / (1 - CHANCE)))).double())

    def forward(
        self,
        input_ids: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        *,
        temperature: float,
    ) -> TokenLogProbs:
        places = torch.tensor(
            [
                place_of(input_ids[row, PROMPT : position + 1].tolist())
                for row, position in zip(rows, positions, strict=True)
            ]
        )
        of_place = self.logits[places + GOAL] / temperature
        up, down, end = ((tokens == token).double() for token in (UP, DOWN, END))
        log_probs = up * of_place.sigmoid().log() + down * (1 - of_place.sigmoid()).log() + 0.0 * end * of_place
        return TokenLogProbs(log_probs, log_probs.detach())


def windows(length: int = 6, lambda_: float | str = 1.0) -> Windows:
    return Windows(length, 1.0, lambda_, 0.05, 1.0)


def perfect(sequences: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The true value after each position; after END nothing follows."""
    found = []
    for sequence in sequences:
        walked = sequence[PROMPT:].tolist()
        along = [true_value(walked[:count]) for count in range(len(walked) + 1)]
        found.append(np.array([0.0] * (PROMPT - 1) + along))
    return found


def noisy(sequences: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    return [values + rng.normal(0, 0.3, len(values)) for values in perfect(sequences)]


@pytest.fixture(scope="module")
def samples() -> Samples:
    plan = Plan(10**6, responses=250, prefixes=6, continuations=8, split="heldout", seed=2)
    return Draw(walk_sampler(11), plan, None).samples()


def test_the_true_gradient_is_that_of_the_closed_form(samples: Samples) -> None:
    chosen = choose(samples, 10**6)
    weights = {TRUE_OF_ALL: true_advantages(samples, chosen, 1.0)}
    gradients, _ = group_gradients(WalkPolicy(), samples, chosen, weights, 1.0)
    found = gradients[TRUE_OF_ALL]
    assert found.shape == (16, 2, 2 * GOAL + 1)
    expected = np.zeros((16, 2 * GOAL + 1))
    for state, group in zip(chosen.states, chosen.groups, strict=True):
        place = samples.places[state]
        at = place_of(samples.responses[place.response].tokens[: place.position])
        if abs(at) < GOAL:
            ahead = true_value([UP] * (at + 1 + GOAL) + [DOWN] * GOAL) - true_value(
                [UP] * (at - 1 + GOAL) + [DOWN] * GOAL
            )
            expected[group, at + GOAL] += place.weight * CHANCE * (1 - CHANCE) * ahead
    mass = np.bincount(chosen.groups, [samples.places[state].weight for state in chosen.states])
    errors = found.mean(1) - expected / mass[:, None]
    deviations = errors.mean(0) / np.maximum(errors.std(0, ddof=1) / 4, 1e-12)
    assert np.abs(deviations[errors.std(0) > 0]).max() < 4.5
    assert found.mean((0, 1)).max() > 0.005


def test_a_perfect_critic_points_the_true_way_with_less_noise(samples: Samples) -> None:
    found = measure_gradients(WalkPolicy(), {"perfect": perfect, "noisy": noisy}, samples, windows(), 10**6)
    best, worse = found["perfect"], found["noisy"]
    cosine = best["bootstrap"]["cosine"]
    assert abs(cosine["value"] - 1) < 3 * cosine["error"]
    assert cosine["error"] < 0.15
    # At lambda 1 the tail correction divides the weight among the estimators of a window; bootstrap has the longest alone.
    assert best["bootstrap"]["tokens_per_signal"]["value"] < 0.7 * best["returns"]["tokens_per_signal"]["value"]
    assert worse["bootstrap"]["tokens_per_signal"]["value"] > best["bootstrap"]["tokens_per_signal"]["value"]
    assert best["returns"]["cosine"]["value"] == pytest.approx(1.0)
    assert best["returns"]["cosine_of_all"]["value"] < 1.0


def test_a_critic_that_is_upside_down_points_the_other_way(samples: Samples) -> None:
    def upside_down(sequences: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [1 - values for values in perfect(sequences)]

    found = measure_gradients(WalkPolicy(), {"critic": upside_down}, samples, windows(), 800)["critic"]
    assert found["bootstrap"]["cosine"]["value"] < -0.7


def by_hand() -> Samples:
    """One response of 3 tokens with the state after the first; continuations of 1, 3 and 4 tokens."""
    response = Response(0, 0, np.array([60, 61], np.int32), np.array([UP, UP, END], np.int32), 1.0, True, False)
    ways = [(0, [END], 2.0), (1, [UP, DOWN, END], 5.0), (0, [UP, UP, UP, END], 3.0), (1, [UP, UP, END], 4.0)]
    continuations = [Continuation(0, half, np.array(tokens, np.int32), reward) for half, tokens, reward in ways]
    return Samples([response], [Place(0, 1, 1.0)], continuations)


def test_advantages_by_hand() -> None:
    samples = by_hand()
    chosen = choose(samples, 10)
    assert true_advantages(samples, chosen, 1.0).tolist() == [2 - 4, 5 - 3, 3 - 11 / 3, 4 - 10 / 3]
    seen: list[list[int]] = []

    def counts(sequences: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
        """The value after each position is the square of its number."""
        seen.extend(sequence.tolist() for sequence in sequences)
        return [np.arange(len(sequence), dtype=np.float64) ** 2 for sequence in sequences]

    # Windows of 3: after one token two are left. The state's value is 4, those after its tokens 9 and 16.
    found = critic_advantages(counts, samples, chosen, windows(3))
    assert seen == [[60, 61, UP, END], [60, 61, UP, UP, DOWN], [60, 61, UP, UP, UP], [60, 61, UP, UP, UP]]
    # The first one ends: its reward, no boundary. The others go on: hold 9 - 4, bootstrap 16 - 4.
    assert found["hold"].tolist() == [2 - 4, 5, 5, 5]
    assert found["bootstrap"].tolist() == [2 - 4, 12, 12, 12]
    # At lambda 1 the tail-corrected one is the mean of the estimators: (5 + 12) / 2.
    assert found["tail_corrected"].tolist() == [2 - 4, 8.5, 8.5, 8.5]
    half = critic_advantages(counts, samples, chosen, windows(3, 0.5))
    assert half["bootstrap"].tolist() == [2 - 4, 5 + 0.5 * 7, 8.5, 8.5]
    # 1 - 1 / (0.05 l) is 0 for so short a response.
    assert critic_advantages(counts, samples, chosen, windows(3, "length_adaptive"))["bootstrap"].tolist() == [
        -2,
        5,
        5,
        5,
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_of_a_transformer_are_those_of_autograd(temperature: float) -> None:
    policy = Policy(load_causal_lm(resolve_model("tppo_rl/arithmetic-chain"), torch.float32))
    samples = by_hand()
    more = Response(1, 1, np.array([7, 8, 9], np.int32), np.array([10, 11, 12, 13], np.int32), 0.0, False, False)
    samples.responses.append(more)
    samples.places.append(Place(1, 2, 3.0))
    samples.continuations.extend(Continuation(1, half, np.array([14 + half], np.int32), 1.0) for half in (0, 1))
    chosen = choose(samples, 10)
    weights = np.arange(1.0, 7.0)
    found, worth = group_gradients(policy, samples, chosen, {"x": weights}, temperature)
    assert worth.tolist() == [1.0, 1.0]
    parameters = list(policy.parameters())
    coordinates = coordinates_of(sum(parameter.numel() for parameter in parameters))
    for half in (0, 1):
        sequence = torch.tensor([[60, 61, UP]])
        log_probs = (policy.logits(sequence)[0, -1] / temperature).log_softmax(-1)
        mine = [row for row in range(4) if samples.continuations[row].half == half]
        loss = sum(weights[row] / 2 * log_probs[int(samples.continuations[row].tokens[0])] for row in mine)
        expected = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])[coordinates]
        group = int(chosen.groups[0])
        np.testing.assert_allclose(found["x"][group, half], expected.numpy(), atol=1e-5, rtol=1e-3)
        assert np.abs(expected.numpy()).max() > 1e-3


def test_problems_are_not_divided_between_groups(samples: Samples) -> None:
    chosen = choose(samples, 300)
    assert len(chosen.states) == 300
    groups: dict[int, set[int]] = {}
    for state, group in zip(chosen.states, chosen.groups, strict=True):
        groups.setdefault(samples.responses[samples.places[state].response].problem, set()).add(int(group))
    assert all(len(found) == 1 for found in groups.values())
    assert len(set(chosen.groups.tolist())) == 16
    assert {samples.continuations[row].state for row in chosen.continuations} == set(chosen.states.tolist())
