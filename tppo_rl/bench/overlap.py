"""What it costs that sampling and learning go on at once: an update of the running pipeline against each side alone.

    async      updates while env-runners sample, as in training
    sampling   the same pipeline takes batches out of the queue and trains none
    learning   the fragments of the async updates once more, while nothing is sampled

The async iteration can at best take as long as the longer of the other two.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tppo_rl.algorithms.tppo import TrainingLoop
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.config.run_files import Experiment
from tppo_rl.core.fragments import Fragment
from tppo_rl.experiment.run import build_algorithm
from tppo_rl.rollout.batch_sources import BatchSource

_WARM_UP_UPDATES = 4
_PAUSE_S = 0.5


def overlap_figures(experiment: Experiment, *, updates: int, repeats: int) -> list[Figure]:
    """Measures the pipeline of an experiment in mode async, all three in each repeat.

    Args:
        experiment: Without a grid.
        updates: Of each measurement.
        repeats: Of all three.
    """
    (options,) = experiment.points()
    # Only updates are timed; the critic warms up before.
    options = options | {"evaluation_interval": None, "critic_warmup_updates": 0, "critic_warmup_responses": 0}
    options.pop("critic_warmup_slope", None)
    with tempfile.TemporaryDirectory() as folder:
        algorithm = build_algorithm(experiment, options, Path(folder))
        try:
            seconds = [_measure(algorithm.loop, updates) for _ in range(repeats)]
        finally:
            algorithm.stop()
    both, sampling, learning = (list(column) for column in zip(*seconds, strict=True))
    costs = [one / max(alone) for one, *alone in seconds]
    return [
        figure_of("overlap_cost", costs, "times the longer side alone"),
        figure_of("iteration_seconds, async", both, "s/1000 tokens"),
        figure_of("iteration_seconds, sampling alone", sampling, "s/1000 tokens"),
        figure_of("iteration_seconds, learning alone", learning, "s/1000 tokens"),
    ]


class _Noted:
    """A batch source that keeps what it gives."""

    def __init__(self, source: BatchSource) -> None:
        self.batches: list[list[Fragment]] = []
        self._source = source

    def next(self) -> list[Fragment]:
        self.batches.append(self._source.next())
        return self.batches[-1]


def _measure(loop: TrainingLoop, updates: int) -> tuple[float, float, float]:
    """Returns seconds for 1000 tokens: async, sampling alone, learning alone."""
    for _ in range(_WARM_UP_UPDATES):
        loop.training_step()
    noted = _Noted(loop.batches)
    loop.batches, source = noted, loop.batches
    start = time.perf_counter()
    for _ in range(updates):
        loop.training_step()
    both = (time.perf_counter() - start) * 1000 / _tokens(noted.batches)
    loop.batches = source
    sampling = _sampling_alone(loop, updates)
    _let_env_runners_fill_the_queue(loop)
    start = time.perf_counter()
    for batch in noted.batches:
        loop.learners.update(batch)
    learning = (time.perf_counter() - start) * 1000 / _tokens(noted.batches)
    # What was sampled before is now too old to be trained.
    loop.weights.push()
    loop.rollouts.restart()
    return both, sampling, learning


def _sampling_alone(loop: TrainingLoop, updates: int) -> float:
    """Takes batches as if each were trained at once; the tokens are recorded as dropped."""
    next(_batches(loop))
    start, tokens = time.perf_counter(), 0
    for _, batch in zip(range(updates), _batches(loop), strict=False):
        tokens += _tokens([batch])
    return (time.perf_counter() - start) * 1000 / tokens


def _batches(loop: TrainingLoop) -> Iterator[list[Fragment]]:
    while True:
        batch = loop.batches.next()
        loop.rollouts.ledger.record_dropped("bench", _tokens([batch]))
        yield batch


def _let_env_runners_fill_the_queue(loop: TrainingLoop) -> None:
    """Until the queue is full and nothing is asked of the env-runners any more."""
    loop.rollouts.poll(timeout_s=_PAUSE_S)
    while loop.rollouts.num_requests:
        loop.rollouts.poll(timeout_s=_PAUSE_S)


def _tokens(batches: Sequence[Sequence[Fragment]]) -> int:
    return sum(len(fragment) for batch in batches for fragment in batch)
