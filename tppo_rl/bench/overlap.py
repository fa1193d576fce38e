"""What it costs that sampling and learning go on at once: an update of the running pipeline against each side alone.

    async      updates while env-runners sample, as in training
    sampling   the same pipeline takes batches out of the queue and trains none
    learning   the fragments of the async updates once more, while nothing is sampled

The async iteration can at best take as long as the longer of the other two.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.config.run_files import Experiment
from tppo_rl.core.fragments import Fragment
from tppo_rl.experiment.run import build_algorithm
from tppo_rl.rollout.ledger import Ledger

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
    options = options | {"evaluation_interval": None, "critic_warmup_updates": 0}
    with tempfile.TemporaryDirectory() as folder:
        algorithm = build_algorithm(experiment, options, Path(folder))
        try:
            seconds = [_measure(algorithm, updates) for _ in range(repeats)]
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


def _measure(algorithm: Any, updates: int) -> tuple[float, float, float]:
    """Returns seconds for 1000 tokens: async, sampling alone, learning alone."""
    batches: list[list[Fragment]] = []
    for _ in range(_WARM_UP_UPDATES):
        algorithm.training_step()
    next_batch = algorithm._next_batch

    def noted() -> list[Fragment]:
        batches.append(next_batch())
        return batches[-1]

    algorithm._next_batch = noted
    start = time.perf_counter()
    for _ in range(updates):
        algorithm.training_step()
    both = (time.perf_counter() - start) * 1000 / _tokens(batches)
    algorithm._next_batch = next_batch
    sampling = _sampling_alone(algorithm, updates)
    _let_env_runners_fill_the_queue(algorithm)
    start = time.perf_counter()
    for batch in batches:
        algorithm.learner_group.update(training_data=algorithm._training_data(batch))
    learning = (time.perf_counter() - start) * 1000 / _tokens(batches)
    # What was sampled before is now too old to be trained.
    algorithm._version = algorithm._weight_sync.push()
    algorithm._pump.abandon()
    algorithm._start_pipeline(Ledger(seed=algorithm.config.seed, group_size=algorithm.config.group_size), [])
    return both, sampling, learning


def _sampling_alone(algorithm: Any, updates: int) -> float:
    """Takes batches as if each were trained at once; the tokens are booked as dropped."""
    next(_batches(algorithm))
    start, tokens = time.perf_counter(), 0
    for _, batch in zip(range(updates), _batches(algorithm), strict=False):
        tokens += _tokens([batch])
    return (time.perf_counter() - start) * 1000 / tokens


def _batches(algorithm: Any) -> Any:
    while True:
        batch = algorithm._next_batch()
        algorithm._ledger.book_dropped("bench", _tokens([batch]))
        yield batch


def _let_env_runners_fill_the_queue(algorithm: Any) -> None:
    """Until the queue is full and nothing is asked of the env-runners any more."""
    pump = algorithm._pump
    while True:
        pump.turn(algorithm._version, timeout_s=_PAUSE_S)
        if pump._num_requests() == 0:
            return


def _tokens(batches: Sequence[Sequence[Fragment]]) -> int:
    return sum(len(fragment) for batch in batches for fragment in batch)
