"""The order in which results of scoring workers are taken: written down, and followed by another run with other delays."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import scoring_examples
from helpers import IntegerChat

from tppo_rl.config.options import Options
from tppo_rl.core.errors import RunError
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.pooled_sampler import PooledSampler
from tppo_rl.rollout.responses import Failure, Scores
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sampler import EpisodeLimits
from tppo_rl.rollout.scoring_order import FollowedOrder, Moment, OrderWriter, read_order
from tppo_rl.rollout.scoring_pool import ScoringPool
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost, draw_lognormal_length

Told = list[dict[str, Any]]
Sampled = tuple[list[tuple[Any, ...]], Scores, Told]
Sample = Callable[..., Sampled]


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    """Samples episodes in requests of 6 engine steps: what became of them, in its order, and the order of the workers."""
    example = shutil.copy(Path(scoring_examples.__file__), tmp_path / "my_scoring.py")
    pools: list[ScoringPool] = []

    def run(
        order: Told | None = None, *, seconds: float = 0.0, faulty: str = "", turns: int = 2, episodes: int = 16,
        sync: bool = False, alive: Callable[[], None] = lambda: None,
    ) -> Sampled:  # fmt: skip
        env_config = {"seconds": seconds, "reset_seconds": seconds, "faulty": faulty, "turns": turns}
        options = Options.of(
            {"env": f"{example}:Faulty-v0", "env_config": env_config, "scoring_workers": 2, "scoring_deadline_s": 2.0,
             "scoring_memory_gib": 0.2, "max_response_length": 64}
        )  # fmt: skip
        pool = ScoringPool(options, 2, records=order is None)
        pools.append(pool)
        pool.wait_until_ready()
        if order is not None:
            pool.follow(order, alive)
        engine = SimulatedEngine(draw_lognormal_length(8.0, 0.5), cost=StepCost(base=0.002), sleep=True)
        sampler = PooledSampler(
            engine, pool, IntegerChat(), split="train", num_slots=4, limits=EpisodeLimits(8, 64, 8), sampling=Sampling(1.0),
            rewards=Rewards.of(options, calls=False),
        )  # fmt: skip
        sampler.tickets.extend(Ticket(index, index, index) for index in range(episodes))
        found, told = [], []
        while sampler.num_waiting_tickets or sampler.episode_ids:
            closed = sampler.run(6, patient=sync) + (sampler.cut_windows() if sync else [])
            found += [(one.episode_id, one.tokens.tolist(), one.rewards.tolist()) for one in closed]
            if part := pool.pop_order():
                told.append(json.loads(json.dumps(asdict(part))))
        return found, sampler.pop_scores(), told

    yield run
    for pool in pools:
        pool.close()


@pytest.mark.parametrize("sync", [False, True])
def test_another_run_with_other_delays_is_the_same_when_it_follows_the_order(sample: Sample, sync: bool) -> None:
    found, scores, order = sample(seconds=0.02, sync=sync)
    assert sample(order, sync=sync)[:2] == (found, scores)
    # Lengths are drawn in the order in which turns begin.
    assert sample(sync=sync)[0] != found


def test_who_waits_for_a_recorded_result_shows_signs_of_life(sample: Sample) -> None:
    found, _, order = sample(episodes=2, turns=1)
    signs: list[None] = []
    assert sample(order, episodes=2, turns=1, seconds=0.9, alive=lambda: signs.append(None))[0] == found
    # A reset and a step, each of several looks.
    assert len(signs) >= 6


def test_deadlines_that_were_broken_are_broken_again(sample: Sample) -> None:
    found, scores, order = sample(faulty="step", turns=1, episodes=8)
    assert {failure.kind for failure in scores.failures} == {"exception", "timeout", "memory", "died"}
    assert sample(order, turns=1, episodes=8)[:2] == (found, scores)


def test_a_job_that_fails_where_it_had_a_result_is_said(sample: Sample) -> None:
    _, _, order = sample(turns=1)
    with pytest.raises(RunError, match=r"job \d+ .* gave a result in the recorded run, and fails now: environment: "):
        sample(order, faulty="reset", turns=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3:99", "had the result of job 99 here, and this one never handed it in"),
        ("2:1", "at other moments"),
        ("3!", "at other"),
    ],
)
def test_an_order_of_another_run_is_said(sample: Sample, text: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        sample([{"text": text, "failures": []}])


def test_what_is_written_is_read_again() -> None:
    generator = random.Random(0)
    writer, moments, parts = OrderWriter(keeps=True), [], []
    for number in range(1, 300):
        jobs = [(generator.randrange(1, 500), generator.choice([None, Failure("judge", "timeout", f"slow: {number}")]))]
        taken = tuple(jobs * generator.choice([0, 0, 1, 2]))
        stopped = not taken and generator.random() < 0.3
        writer.next_moment([(job, failure or object()) for job, failure in taken], stopped=stopped)
        if taken or stopped:
            moments.append(Moment(number, taken, stopped))
        if generator.random() < 0.1:
            parts.append(json.loads(json.dumps(asdict(writer.pop()))))
    parts.append(asdict(writer.pop()))
    assert list(read_order(parts)) == moments
    followed = FollowedOrder(parts)
    assert [followed.next_moment() for _ in range(moments[-1].number)][moments[0].number - 1] == moments[0]
    assert followed.is_over


@pytest.mark.parametrize("text", ["0:1", "-2:1", "3:1 1:-1", "x:1", "1:", "2:1?0"])
def test_what_nobody_has_written_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        list(read_order([{"text": text, "failures": []}]))


def test_nothing_is_kept_where_nobody_asks() -> None:
    writer = OrderWriter(keeps=False)
    writer.next_moment([(1, object())])
    assert not writer.pop()
