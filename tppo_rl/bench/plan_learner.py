"""Updates for `tppo-rl bench plan`: what their passes cost, and what an update of sampled fragments takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from tppo_rl.bench.learner import make_models
from tppo_rl.bench.plan_clock import Clock
from tppo_rl.bench.workloads import LONGEST_RESPONSE, PROMPT, tppo_fragments, whole_episodes
from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.kernels.denormals import flushed_subnormals
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.targets import ModelSet, estimate
from tppo_rl.learner.update import UpdateStep
from tppo_rl.plan.costs import MeasuredLearnerCost
from tppo_rl.plan.fits import fit_pass
from tppo_rl.plan.windows import LearnerWork, PassWork, work_of_fragments

_PASSES = ("values", "policy", "critic")
_WINDOWS = (16, 64, LONGEST_RESPONSE)
_LONG = 48
_SIZES = (1.0, 0.25)
"""Workloads that the passes are measured on: windows, responses from which on they are long, shares of an update's tokens."""


class LearnerBench:
    """A real update step.

    Args:
        model: Folder, hub id, or name of a shipped model.
        threads: Torch threads.
    """

    def __init__(self, model: str, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self.clock = Clock(threads)
        self._works: list[LearnerWork] = []
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._models = make_models(model, None, "float32", "cpu")
        self._options = Options.of()
        self._step = UpdateStep(*self._models, self._options)
        self._vocabulary = self._models.policy.model.config.vocab_size
        self.seconds(tppo_fragments(self._vocabulary, tokens=256, window=16))  # The first update is slow.

    def measure_passes(self, tokens: int) -> None:
        """Measures updates of made-up fragments.

        Args:
            tokens: Sampled tokens of an update.
        """
        for fragments in self._workloads(tokens):
            self._works.append(work_of(fragments))
            for name, value in self._timed(fragments).items():
                self._seconds[name].append(value)

    def costs(self) -> MeasuredLearnerCost:
        """Returns the costs of all passes that were measured."""
        passes = {name: [getattr(work, name) for work in self._works] for name in _PASSES}
        passes["rest"] = [PassWork(work.values.sequences, work.values.positions, 0.0) for work in self._works]
        return MeasuredLearnerCost(**{name: fit_pass(passes[name], self._seconds[name]) for name in passes})

    def seconds(self, fragments: Sequence[Fragment]) -> float:
        """Returns what an update of the fragments takes."""
        return sum(self._timed(fragments).values())

    def _workloads(self, tokens: int) -> list[list[Fragment]]:
        sizes = [max(64, round(share * tokens)) for share in _SIZES]
        make = partial(tppo_fragments, self._vocabulary)
        windows = [make(tokens=size, window=window) for size in sizes for window in _WINDOWS]
        # Long and short responses apart, for the cost of a position to be told from that of a sequence and of a pair.
        whole = make(tokens=4 * tokens, window=LONGEST_RESPONSE)
        long = [fragment for fragment in whole if len(fragment) > _LONG]
        short = [fragment for fragment in whole if len(fragment) <= _LONG]
        longest = whole_episodes(self._vocabulary, tokens=tokens, length=PROMPT + LONGEST_RESPONSE)
        return windows + [_first(some, size) for size in sizes for some in (long, short, longest)]

    @flushed_subnormals()
    def _timed(self, fragments: Sequence[Fragment]) -> dict[str, float]:
        with self.clock.timing() as total:
            batch = batch_from_fragments(list(fragments))
            _, targets = estimate(ModelSet(*self._models), batch, self._options)
            version = max(int(fragment.versions.max()) for fragment in fragments)
            metrics = self._step.run(batch, targets, policy_version=version).metrics
        # The update step reads a wall clock; its parts are shares here.
        shares = {name: float(metrics[f"{name}_seconds"]) / total.wall for name in _PASSES}
        shares["rest"] = max(1e-6, 1.0 - sum(shares.values()))
        return {name: share * total.seconds for name, share in shares.items()}


def _first(fragments: Sequence[Fragment], tokens: int) -> list[Fragment]:
    """Returns as many of the fragments as make so many tokens, at least one."""
    before = np.cumsum([0, *map(len, fragments[:-1])])
    return [fragment for fragment, count in zip(fragments, before, strict=True) if count < tokens]


def work_of(fragments: Sequence[Fragment]) -> LearnerWork:
    """Returns the work that an update makes of fragments."""
    positions = np.array([fragment.num_positions for fragment in fragments])
    return work_of_fragments(positions, np.array([fragment.finished for fragment in fragments]))
