"""The driver's side of learning: it sends a batch of fragments to the learners and gets their report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment, concatenate_tables, table_from_fragments
from tppo_rl.core.update_report import DEFAULT_SETTINGS, UpdateReport, UpdateSettings
from tppo_rl.core.waiting import stage
from tppo_rl.learner.learner import FRAGMENT_REPORT, STALENESS_HISTOGRAM, TPPOLearner
from tppo_rl.learner.partition import partition


class LearnerClient:
    """Trains batches on RLlib's learner group.

    Args:
        learner_group: RLlib's LearnerGroup of `TPPOLearner`s.
        options: Options of the run.
        read_metrics: Turns RLlib's metrics into numbers (`MetricsLogger.peek_results`).
    """

    def __init__(
        self, learner_group: Any, options: Options, read_metrics: Callable[[Mapping[str, Any]], Mapping[str, float]]
    ) -> None:
        self._learner_group = learner_group
        self._options = options
        self._read_metrics = read_metrics
        self._told = DEFAULT_SETTINGS
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="update")

    def update(
        self,
        fragments: Sequence[Fragment],
        meanwhile: Callable[[], object] | None = None,
        settings: UpdateSettings = DEFAULT_SETTINGS,
    ) -> UpdateReport:
        """Trains fragments and returns the learners' report.

        Args:
            fragments: Fragments to train, windows in hindsight included.
            meanwhile: Called again and again until the update has ended; None waits.
            settings: What follows from earlier updates.
        """
        if settings != self._told:
            self.ask(partial(TPPOLearner.take_settings, settings=settings))
            self._told = settings
        with stage("training", cut="after", part="update"):
            return self._report(self._update(self._training_data(fragments), meanwhile))

    def ask(self, question: Callable[[Any], Any]) -> list[Any]:
        """Calls a function on every learner and returns the results."""
        return list(self._learner_group.ask(question))

    def weights_checksum(self) -> int:
        """Returns that of all trained weights."""
        return int(self.ask(TPPOLearner.weights_checksum)[0])

    def held_episodes(self) -> pa.Table:
        """Returns the finished episodes that wait for a full value batch, of all learners."""
        return concatenate_tables(self.ask(TPPOLearner.held_episodes))

    def hold_episodes(self, table: pa.Table) -> None:
        """Gives the episodes that `held_episodes` returned back to the learners."""
        self.ask(partial(TPPOLearner.hold_episodes, table=table))

    def stop(self) -> None:
        """Waits for an update that is under way and takes no more."""
        self._thread.shutdown(wait=True)

    def _update(self, data: TrainingData, meanwhile: Callable[[], object] | None) -> list[dict[str, Any]]:
        if meanwhile is None:
            return list(self._learner_group.update(training_data=data))
        update: Future[list[dict[str, Any]]]
        update = self._thread.submit(self._learner_group.update, training_data=data)
        while not update.done():
            meanwhile()
        return update.result()

    def _training_data(self, fragments: Sequence[Fragment]) -> TrainingData:
        learners = self._options.learners
        if not self._learner_group.is_remote:
            return TrainingData(episodes=list(fragments))
        shares = partition(
            fragments,
            learners.num_learners,
            whole_groups=self._options.groups.group_size > 1,
            same_learner=self._options.compute.context_cache_tokens > 0,
        )
        return TrainingData(batches=[table_from_fragments(share) for share in shares])

    def _report(self, results: list[dict[str, Any]]) -> UpdateReport:
        fragments = pa.concat_tables([result.pop(FRAGMENT_REPORT) for result in results])
        # The histogram is global, so that of any learner will do.
        histogram, *_ = [np.asarray(result.pop(STALENESS_HISTOGRAM)) for result in results]
        metrics = self._read_metrics(results[0][DEFAULT_MODULE_ID])
        return UpdateReport(metrics, fragments, histogram, results)
