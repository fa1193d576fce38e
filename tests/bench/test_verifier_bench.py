"""Pairs with and without answers that take time, on a simulated engine."""

from __future__ import annotations

import gymnasium
import pytest
from helpers import IntegerChat

from tppo_rl.bench.rollout import endless_tickets
from tppo_rl.bench.verifier import mean_interval, slow_sampler, verifier_figures
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost, draw_lognormal_length


class AnyChat(IntegerChat):
    def prompt(self, text: str, earlier: object = (), tools: object = ()) -> list[int]:
        return [60, 1 + len(text) % 50, 61]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "least", "most"), [(12, 0.9, 1.1), (1, 0.0, 0.7)])
def test_answers_that_take_time_cost_something_only_with_too_few_workers(
    workers: int, least: float, most: float
) -> None:
    engine = SimulatedEngine(draw_lognormal_length(40.0, 0.5), cost=StepCost(base=0.01), sleep=True)
    limits = EpisodeLimits(8, 200, 16)
    chat = AnyChat()
    plain = Sampler(
        engine,
        lambda: gymnasium.make("tppo_rl/ArithmeticChain-v0", disable_env_checker=True, split="train"),
        chat,  # type: ignore[arg-type]
        num_slots=8,
        limits=limits,
        sampling=Sampling(),
    )
    with slow_sampler(engine, chat, slots=8, limits=limits, seconds=0.2, workers=workers) as slow:
        figures = {f.figure: f for f in verifier_figures(plain, slow, endless_tickets, steps=80, repeats=2)}
    mean = figures["verifier_efficiency_mean_8"]
    assert least <= mean.low <= mean.median <= mean.high <= most
    assert figures["verifier_efficiency_8"].repeats == 2
    occupancy = figures["slow_verifier_slot_occupancy_8"].median
    assert occupancy >= 0.98 if workers > 1 else occupancy < 0.98


def test_the_interval_of_a_mean() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0] * 25)
    # Standard error 0.112, so 2.5 +- 0.22.
    assert (round(low, 1), round(high, 1)) == (2.3, 2.7)
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0)
