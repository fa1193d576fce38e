"""Runs of the real sampler on the simulated engine, for comparison with predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from helpers import CountingEnv, IntegerChat

from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.plan.lengths import ResponseLengths
from tppo_rl.plan.windows import LearnerWork, Mode, work_of_fragments
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost

COST = StepCost(base=2e-3, per_sequence=1e-4)


@dataclass
class Measured:
    """Sums over a simulated run, without its beginning."""

    fragments: list[Fragment] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    slot_steps: int = 0
    held_tokens: float = 0.0
    """Mean of what all slots hold, over batches; 0 with "ppo"."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.fragments))

    @property
    def prompt_length(self) -> float:
        return float(np.mean([fragment.prompt_length for fragment in self.fragments]))

    @property
    def work_per_token(self) -> LearnerWork:
        positions = np.array([fragment.num_positions for fragment in self.fragments])
        finished = np.array([fragment.finished for fragment in self.fragments])
        return work_of_fragments(positions, finished).times(1 / self.tokens)


def simulated_run(
    lengths: ResponseLengths, mode: Mode, window: int | None, *, slots: int = 16, steps: int = 4000, seed: int = 0
) -> Measured:
    """Samples as a mode does for some engine steps, after enough for lengths and phases to settle."""
    engine = SimulatedEngine(_even_draws(lengths), cost=COST, seed=seed)
    sampler = Sampler(
        engine,
        CountingEnv,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=slots,
        limits=EpisodeLimits(64, lengths.longest, window),
        sampling=Sampling(),
    )
    tickets = (Ticket(index, index, index) for index in itertools.count())

    def batch() -> list[Fragment]:
        if mode == "ppo":
            sampler.tickets.extend(itertools.islice(tickets, slots))
            return sampler.run_until_empty()
        num_steps = 37 if mode == "async" or window is None else window
        sampler.tickets.extend(itertools.islice(tickets, slots * (num_steps + 1) - len(sampler.tickets)))
        fragments = sampler.run(num_steps)
        return fragments + sampler.cut_windows() if mode == "sync" else fragments

    while mode != "ppo" and engine.num_steps < 4 * lengths.longest:
        batch()
    result, held = Measured(), []
    before = (engine.seconds, engine.num_steps, sampler.num_slot_steps)
    while engine.num_steps - before[1] < steps:
        result.fragments += batch()
        held.append(sum(len(episode.all_tokens()) for episode in sampler._open.values()))
    result.seconds, result.steps = engine.seconds - before[0], engine.num_steps - before[1]
    result.slot_steps = sampler.num_slot_steps - before[2]
    result.held_tokens = float(np.mean(held))
    return result


def _even_draws(lengths: ResponseLengths) -> Callable[[np.random.Generator], int]:
    """Draws that follow the distribution closely: each thousand of them has one from every thousandth of it."""
    cumulative, waiting = lengths.probabilities.cumsum(), list[int]()

    def draw(generator: np.random.Generator) -> int:
        if not waiting:
            shares = (generator.permutation(1000) + generator.random(1000)) / 1000
            waiting.extend(np.searchsorted(cumulative, shares, side="right").clip(1, lengths.longest).tolist())
        return waiting.pop()

    return draw
