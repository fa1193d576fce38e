"""Resumes must not choose: whatever is stopped most often is what takes longest, and a run that lost it would train short responses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import CountingEnv, IntegerChat
from simulated_driver import SLOTS, SimulatedWeights, make_controller, without_pauses

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import fragments_from_table
from tppo_rl.rollout.batch_sources import batch_source
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine
from tppo_rl.rollout.simulated_group import SimulatedGroup, SimulatedRunner

MEAN = 20
CAP = 200
EPISODES = 2500


@pytest.fixture(autouse=True, scope="module")
def _without_pauses() -> Iterator[None]:
    with without_pauses():
        yield


def draw_length(generator: np.random.Generator) -> int:
    """Geometric: what is left of a response has the same distribution wherever it is taken up again."""
    return int(generator.geometric(1 / MEAN))


def make_runner(window: int | None, seed: int, index: int, restarts: int) -> SimulatedRunner:
    engine = SimulatedEngine(draw_length, seed=1000 * seed + 100 * index + restarts)
    sampler = Sampler(
        engine,
        CountingEnv,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=SLOTS,
        limits=EpisodeLimits(8, CAP, window),
        sampling=Sampling(),
        env_runner=index,
    )
    return SimulatedRunner(f"{index}-{seed}-{restarts}", engine, sampler, version=0)


def lengths(options: dict[str, Any], *, resumes: bool) -> np.ndarray:
    """Lengths of the responses that end in training, sorted."""
    window = options["window_length"]
    options = options | {"num_env_runners": 2, "max_response_length": CAP}
    everything = Options.of({"num_envs_per_env_runner": SLOTS, "train_batch_size_per_learner": 120, **options})
    saved: dict[str, Any] | None = None
    found: list[int] = []
    version = start = 0
    while len(found) < EPISODES:
        start += 1
        group = SimulatedGroup(2, partial(make_runner, window, start), seed=start)
        weights = SimulatedWeights(group)
        controller, _ = make_controller(group, batch=120, weights=weights, **options)
        source = batch_source(everything, controller, weights)
        weights.version = version
        weights.wait_until_delivered()
        if saved is not None:
            ledger = Ledger.from_state(saved["ledger"], group.healthy_env_runner_ids())
            waiting = (fragments_from_table(saved[key]) for key in ("queue", "grouped"))
            controller.restart(ledger, *waiting, saved["left_out"])
        for _ in range(2 if resumes else 10**9):
            batch = source.next()
            assert controller.record_trained(sum(map(len, batch)), 0).unaccounted == 0
            found += [int(one.context_sampled.sum() + len(one)) for one in batch if one.finished]
            weights.version += 1
            if len(found) >= EPISODES:
                break
        saved, version = controller.state(), weights.version
        assert controller.ledger.counts().dropped == {}
    return np.sort(found)


@pytest.mark.parametrize(
    "options",
    [
        {"window_length": 8, "max_staleness": 3},
        pytest.param({"window_length": 8, "mode": "sync"}, marks=pytest.mark.slow),
        pytest.param({"window_length": None, "max_staleness": 20, "group_size": 2}, marks=pytest.mark.slow),
        {"window_length": None, "mode": "sync", "partial_rollouts": True, "max_staleness": 20, "group_size": 2},
    ],
)
def test_a_resume_every_second_update_leaves_the_lengths_as_they_are(options: dict[str, Any]) -> None:
    """Kolmogorov-Smirnov distance between 2,500 responses a side."""
    often, never = (lengths(options, resumes=resumes) for resumes in (True, False))
    points = np.arange(CAP + 1)
    below = [np.searchsorted(side, points, side="right") / len(side) for side in (often, never)]
    assert np.abs(below[0] - below[1]).max() <= 0.05
