"""What answers that take time cost an env-runner: `tppo-rl bench rollout --verifier-seconds S`.

Two samplers take turns on one engine: one whose answers take no time, in the env-runner's process (`scoring_workers: 0`), and one
whose answers take S seconds each, in scoring workers. Both have the same slots, windows, prompts and distribution of lengths. A pair is
one measurement of each, in alternating order; the figure is the ratio of their tokens per second, with a bootstrap interval of
its mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np

from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.slow_chain import ENV
from tppo_rl.config.options import Options
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.engine import Engine, Sampling
from tppo_rl.rollout.pooled_sampler import PooledSampler
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.scoring_pool import ScoringPool

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


@contextmanager
def slow_sampler(
    engine: Engine, chat: Any, *, slots: int, limits: EpisodeLimits, seconds: float, workers: int
) -> Iterator[PooledSampler]:
    """Gives slots on an engine whose answers take `seconds` each; their workers end with the context."""
    options = Options.of(env=ENV, env_config={"seconds": seconds}, scoring_workers=workers)
    pool = ScoringPool(options, workers)
    try:
        pool.wait_until_ready()
        yield PooledSampler(
            engine, pool, chat, split="train", num_slots=slots, limits=limits, sampling=Sampling(), name="slow"
        )
    finally:
        pool.close()


def verifier_figures(
    plain: Sampler, slow: PooledSampler, tickets: Callable[[], Iterator[Ticket]], *, steps: int, repeats: int
) -> list[Figure]:
    """Measures pairs.

    Args:
        plain: Slots whose answers take no time.
        slow: Slots on the same engine whose answers take time.
        tickets: Gives endless tickets.
        steps: Engine steps of one measurement, and of what comes before it; at least the mean length of responses, so that slots
            use up the prompts that were made meanwhile.
        repeats: Number of pairs.
    """
    streams = {sampler: tickets() for sampler in (plain, slow)}

    def run(sampler: Sampler, num_steps: int) -> float:
        missing = sampler.num_slots * (num_steps + 1) - sampler.num_waiting_tickets
        sampler.tickets.extend(islice(streams[sampler], max(0, missing)))
        before, start = sampler.num_tokens_sampled, time.perf_counter()
        sampler.run(num_steps, patient=True)
        return (sampler.num_tokens_sampled - before) / (time.perf_counter() - start)

    for sampler in (plain, slow):
        # Until lengths of open responses are those of a run that goes on, not all of them new.
        run(sampler, 4 * steps)
        sampler.suspend()
    speeds: dict[Sampler, list[float]] = {plain: [], slow: []}
    slot_steps = slow.num_slot_steps
    productive = slow.num_productive_slot_steps
    for pair in range(repeats):
        for sampler in (plain, slow) if pair % 2 else (slow, plain):
            sampler.resume()
            # Workers went on while the other side ran; prompts and answers that they have ready are used up first.
            run(sampler, steps)
            speeds[sampler].append(run(sampler, steps))
            sampler.suspend()
    ratios = [with_time / without for with_time, without in zip(speeds[slow], speeds[plain], strict=True)]
    low, high = mean_interval(ratios)
    occupancy = (slow.num_productive_slot_steps - productive) / (slow.num_slot_steps - slot_steps)
    count = plain.num_slots
    return [
        figure_of(f"verifier_efficiency_{count}", ratios, "share of the speed without a wait"),
        Figure(
            f"verifier_efficiency_mean_{count}",
            float(np.mean(ratios)),
            low,
            high,
            repeats,
            "share, mean and 95 % interval",
        ),
        figure_of(f"rollout_tokens_per_second, {count} slots", speeds[plain], "tokens/s"),
        figure_of(f"slow_verifier_tokens_per_second, {count} slots", speeds[slow], "tokens/s"),
        figure_of(f"slow_verifier_slot_occupancy_{count}", [occupancy], "share"),
    ]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the bootstrap interval of a mean (percentiles, 95 %)."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(draws.mean(1), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
