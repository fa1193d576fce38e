"""Engine steps for `tppo-rl bench plan`: their cost curve, and what sampling takes in each mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.plan_clock import Clock
from tppo_rl.bench.rollout import MAX_PROMPT, LongTailedEngine, endless_tickets, make_sampler, model_weights
from tppo_rl.core.fragments import Fragment
from tppo_rl.plan.costs import AffineEngineCost
from tppo_rl.plan.fits import fit_engine
from tppo_rl.plan.windows import Mode
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.sampler import Sampler
from tppo_rl.rollout.vllm_engine import VLLMEngine

_BLOCK_STEPS = 16
"""Engine steps of one measurement of the curve."""
_FULL_BLOCKS, _BLOCKS_OF_WEIGHTS = 16, 4
"""Measurements with full slots, and how many there are for each weight update."""
_WINDOW = 32
"""Of the env-runners that the curve is measured with, tokens."""


class Sampled(NamedTuple):
    """What a mode sampled."""

    batches: list[list[Fragment]]
    """One for each update."""
    seconds: float
    """Of sampling and of taking in new weights."""

    @property
    def tokens(self) -> int:
        return sum(len(fragment) for batch in self.batches for fragment in batch)


class EngineBench:
    """A real engine whose responses end at lengths from a long-tailed distribution.

    Args:
        model: Folder, hub id, or name of a shipped model.
        mean: Of response lengths before the cap, tokens.
        cap: Longest response, tokens.
        most_slots: That will be measured.
        threads: Torch threads.
    """

    def __init__(self, model: str, *, mean: float, cap: int, most_slots: int, threads: int) -> None:
        self.clock = Clock(threads)
        self._chat = Chat.from_pretrained(resolve_model(model))
        self._engine = VLLMEngine(
            resolve_model(model),
            dtype="float32",
            max_model_len=MAX_PROMPT + cap,
            max_num_seqs=most_slots,
            end_of_turn=(),
            num_threads=threads,
        )
        self._weights = model_weights(model)
        self._mean, self._cap = mean, cap
        self._seeds = itertools.count()
        self._rows, self._updates, self._prompts = _Rows(self.clock), list[float](), list[int]()
        # The first steps of an engine are slow.
        self.sample("async", _WINDOW, slots=most_slots, batch_tokens=8 * most_slots, batches=2)

    def stop(self) -> None:
        """Ends the engine."""
        self._engine.stop()

    def measure_steps(self, slots: Sequence[int]) -> None:
        """Measures steps with full slots, with slots that run dry, and after new weights.

        Args:
            slots: Numbers of slots.
        """
        for count in slots:
            sampler = self._sampler(count, _WINDOW)
            sampler.tickets.extend(itertools.islice(endless_tickets(), count * (_FULL_BLOCKS * _BLOCK_STEPS + 1)))
            for block in range(_FULL_BLOCKS):
                held = 0
                if block % _BLOCKS_OF_WEIGHTS == _BLOCKS_OF_WEIGHTS - 1:
                    self._updates.append(self._load_weights())
                    held = _context_tokens(sampler)
                self._prompts += self._rows.add(sampler, held)
            sampler.tickets.clear()
            while sampler._open:
                self._rows.add(sampler, 0)
            sampler.close()

    def cost_curve(self) -> AffineEngineCost:
        """Returns the curve of all steps that were measured."""
        rows = self._rows
        weight_update = float(np.median(self._updates))
        return fit_engine(rows.running, rows.context, rows.prefilled, rows.seconds, weight_update=weight_update)

    @property
    def prompt_length(self) -> float:
        """Mean of all prompts so far, tokens."""
        return float(np.mean(self._prompts))

    def sample(self, mode: Mode, window: int | None, *, slots: int, batch_tokens: int, batches: int) -> Sampled:
        """Samples as a mode does, new weights after each batch.

        Args:
            mode: Key of `MODES`.
            window: Tokens; None with "ppo".
            slots: Number of slots.
            batch_tokens: Sampled tokens of a batch in async mode.
            batches: Batches in async mode; the others sample as many tokens at least.
        """
        sampler, tickets = self._sampler(slots, window), endless_tickets()

        def batch() -> list[Fragment]:
            if mode == "ppo":
                sampler.tickets.extend(itertools.islice(tickets, slots))
                return sampler.run_until_empty()
            steps = -(-batch_tokens // slots) if window is None or mode == "async" else window
            sampler.tickets.extend(itertools.islice(tickets, slots * (steps + 1) - len(sampler.tickets)))
            fragments = sampler.run(steps)
            return fragments + sampler.cut_windows() if mode == "sync" else fragments

        # Until lengths and phases of open responses are those of a run that goes on.
        while mode != "ppo" and sampler.num_slot_steps < slots * self._cap:
            batch()
        sampled, before = [], sampler.num_tokens_sampled
        with self.clock.timing() as timing:
            while sampler.num_tokens_sampled - before < batches * batch_tokens:
                sampled.append(batch())
                self._engine.load_weights(self._weights, self._engine.version + 1)
        sampler.abandon()
        sampler.close()
        return Sampled(sampled, timing.seconds)

    def _sampler(self, slots: int, window: int | None) -> Sampler:
        seed = next(self._seeds)
        engine = LongTailedEngine(self._engine, mean=self._mean, cap=self._cap, seed=seed)
        return make_sampler(engine, self._chat, slots, window, self._cap, name=f"plan-{seed}")

    def _load_weights(self) -> float:
        with self.clock.timing() as timing:
            self._engine.load_weights(self._weights, self._engine.version + 1)
        return timing.seconds


@dataclass
class _Rows:
    """Measurements of the cost curve: means over the steps of a block."""

    clock: Clock
    running: list[float] = field(default_factory=list)
    context: list[float] = field(default_factory=list)
    prefilled: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, sampler: Sampler, held: int) -> list[int]:
        """Measures a block and returns the lengths of the prompts that it took in.

        Args:
            sampler: Takes the steps.
            held: Tokens that the engine computes anew in its first one.
        """
        known = set(sampler._open)
        context, steps, tokens = _context_tokens(sampler), sampler.num_slot_steps, sampler.num_tokens_sampled
        with self.clock.timing() as timing:
            fragments = sampler.run(_BLOCK_STEPS)
        steps = (sampler.num_slot_steps - steps) // sampler.num_slots
        prompts = [episode._prompt_length for name, episode in sampler._open.items() if name not in known]
        prompts += [
            fragment.prompt_length for fragment in fragments if fragment.window_index == 0 and fragment.finished
        ]
        self.running.append((sampler.num_tokens_sampled - tokens) / steps)
        self.context.append((context + _context_tokens(sampler)) / 2)
        self.prefilled.append((held + sum(prompts)) / steps)
        self.seconds.append(timing.seconds / steps)
        return prompts


def _context_tokens(sampler: Sampler) -> int:
    return sum(len(episode.all_tokens()) for episode in sampler._open.values())
