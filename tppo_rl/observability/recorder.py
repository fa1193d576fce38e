"""The run recorder: clocks, totals, alarms and files of a run.

clock(part) ─┐
evaluation ──┼──▶ Iteration ──▶ metrics ──▶ alarms, TensorBoard, trackers, rollouts/*.parquet, boundary_errors.jsonl
update … ────┘                     └──────▶ totals of the run
batch ──────────────────────────────────────▶ episodes/*.parquet
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tppo_rl.config.options import Options
from tppo_rl.core.boundaries import ClosedBoundary
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.spans import Span
from tppo_rl.core.update_report import UpdateReport
from tppo_rl.observability.alarms import Alarms
from tppo_rl.observability.boundary_errors import position_bin_width
from tppo_rl.observability.episode_log import EpisodeLog
from tppo_rl.observability.iteration import Iteration
from tppo_rl.observability.metrics import heldout_metrics
from tppo_rl.observability.taken_back import forget_later
from tppo_rl.observability.tensorboard import RunLog, TextOf
from tppo_rl.observability.timeline import DRIVER, append_spans, learner_spans
from tppo_rl.observability.totals import RunTotals
from tppo_rl.observability.trackers import Trackers
from tppo_rl.rollout.evaluation import Evaluation
from tppo_rl.rollout.ledger import TokenCounts
from tppo_rl.rollout.statistics import RolloutStatistics
from tppo_rl.rollout.weight_sync import LogProbDiff

logger = logging.getLogger(__name__)

_TABLE_COLUMNS = ("iteration", "prompt", "response", "return", "correct", "length")
_TABLE_ROWS = 8
"""Responses of an iteration that trackers get."""


class Recorded(NamedTuple):
    """An iteration and its metrics, alarms among them."""

    iteration: Iteration
    metrics: Mapping[str, float]


class RunRecorder:
    """Turns what happens in a run into metrics, files and warnings.

    Args:
        options: Options of the run.
        folder: Folder for the files.
        to_text: Decodes tokens for a reader.
    """

    def __init__(self, options: Options, folder: Path, to_text: TextOf) -> None:
        self.totals = RunTotals()
        self.num_iterations = 0
        """Iterations of the whole run."""
        self._largest_diff = options.pipeline.largest_log_prob_diff(options.models.dtype)
        self._alarms = Alarms(asynchronous=options.pipeline.mode == "async", refills=not options.waits_for_longest)
        self._alarms_on: set[str] = set()
        self._mismatch = False
        self._said_no_accuracy = False
        self._log = RunLog(
            folder,
            fragments_per_iteration=options.run.rollout_log_fragments,
            to_text=to_text,
            seed=options.run.seed,
            position_bin_width=position_bin_width(options.rollout.max_response_length),
        )
        self._to_text = to_text
        self._trackers = Trackers(options.run.trackers, options.flat(), folder)
        self._episodes = EpisodeLog(folder, episodes_per_iteration=options.run.record_episodes, seed=options.run.seed)
        self._started = time.perf_counter()
        self._iteration_started = self._started
        self._sampled_before = 0
        self._seconds: dict[str, float] = {}
        self._spans: list[Span] = []
        self._folder = folder
        self._parallel_critic = options.critic.parallel_critic
        self._heldout_diff: LogProbDiff | None = None
        self._probe_diff: float | None = None

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Measures the time of a part of the run."""
        started = time.perf_counter()
        yield
        self.add_seconds(part, time.perf_counter() - started)

    def add_seconds(self, part: str, seconds: float) -> None:
        """Adds wall-clock to a part of the run; the iteration keeps the last one of each part."""
        self.totals.add_seconds(part, seconds)
        self._seconds[part] = seconds
        self._spans.append(Span(DRIVER, part.replace("_", " "), time.time() - seconds, seconds))

    def begin_iteration(self) -> None:
        """Starts the iteration's clock."""
        self._iteration_started = time.perf_counter()

    def record_episodes(self, batch: Sequence[Fragment], report: pa.Table) -> None:
        """Keeps the windows of some whole episodes, before `record` ends the iteration.

        Args:
            batch: Fragments that were trained, without windows in hindsight.
            report: The learners' report of them (`tppo_rl.learner.update.FRAGMENT_REPORT_SCHEMA`).
        """
        self._episodes.record(self.num_iterations + 1, batch, report)

    def record(
        self,
        update: UpdateReport,
        closed: Sequence[ClosedBoundary],
        counts: TokenCounts,
        rollouts: RolloutStatistics,
        probe_diff: float | None,
        warmup_responses: int | None = None,
    ) -> Recorded:
        """Records an iteration: writes its files, warns of alarms, adds it to the totals.

        Args:
            update: Report of the learners.
            closed: Boundaries whose episodes have ended.
            counts: Tokens of the run, after the update.
            rollouts: Work of the env-runners since the last iteration.
            probe_diff: Mean log-prob difference of the weight verification, nats; None if none was due.
            warmup_responses: Finished responses that the critic has learned from; None: the policy trains, or they are not counted.
        """
        self.num_iterations += 1
        self._seconds["iteration"] = time.perf_counter() - self._iteration_started
        iteration = Iteration(
            number=self.num_iterations,
            update=update,
            closed=closed,
            counts=counts,
            rollouts=rollouts,
            sampled_before=self._sampled_before,
            seconds=self._seconds,
            probe_diff=self._probe_diff if probe_diff is None else probe_diff,
            heldout_diff=self._heldout_diff,
            warmup_responses=warmup_responses,
        )
        self._episodes.forget(rollouts.scores.left_out)
        self.totals.add_rollouts(rollouts)
        self.totals.add_update(update)
        metrics = iteration.metrics()
        metrics |= self._watch_mismatch(metrics) | self._watch_for_alarms(metrics)
        self._watch_environment(rollouts, metrics)
        self._write(iteration, metrics)
        self._sampled_before = counts.sampled
        self._spans, self._seconds, self._heldout_diff, self._probe_diff, self._mismatch = [], {}, None, None, False
        return Recorded(iteration, metrics)

    def record_probe(self, difference: float) -> None:
        """Records the result of a weight verification outside of an iteration: a mean log-prob difference, nats."""
        self._probe_diff = difference

    def record_evaluation(self, evaluation: Evaluation, sampled_tokens: int) -> None:
        """Records an evaluation that was made after `sampled_tokens` tokens of the run."""
        values = heldout_metrics(evaluation.statistics())
        difference = self._heldout_diff = evaluation.log_prob_diff
        if difference is not None:
            self._compare(difference)
            values["mismatch/heldout_log_prob_diff_mean"] = difference.mean
            values["mismatch/heldout_log_prob_diff_max"] = difference.largest
        self._log.scalars(sampled_tokens, values)
        self._trackers.scalars(sampled_tokens, values)
        self._episodes.record_heldout(self.num_iterations, evaluation.episodes)

    def run_totals(self) -> dict[str, Any]:
        """Returns sums over the whole run, for its summary."""
        wall_s = self.totals.wall_s + time.perf_counter() - self._started
        return self.totals.state() | {"wall_s": wall_s, "slot_occupancy_lifetime": self.totals.slot_occupancy}

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        totals = self.totals.state() | {"wall_s": self.run_totals()["wall_s"]}
        return {"totals": totals, "num_iterations": self.num_iterations, "recorded_episodes": self._episodes.open}

    def restore(self, state: Mapping[str, Any], sampled_tokens: int) -> None:
        """Goes on from what `state` returned, and forgets later iterations.

        Args:
            state: State from a checkpoint.
            sampled_tokens: Tokens that the run had sampled by then, from its ledger.
        """
        self._sampled_before = sampled_tokens
        self.totals = RunTotals(**state["totals"])
        self.num_iterations = int(state["num_iterations"])
        self._episodes.follow(state.get("recorded_episodes", ()))
        forget_later(self._folder, self.num_iterations)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._log.close()
        self._trackers.close()

    def _write(self, iteration: Iteration, metrics: Mapping[str, float]) -> None:
        step = iteration.counts.sampled
        append_spans(
            self._folder, iteration.number, [*self._spans, *self._of_learners(iteration), *iteration.rollouts.spans]
        )
        self._log.boundary_errors(iteration.number, iteration.closed)
        self._log.histogram(step, "staleness/histogram", iteration.update.staleness_histogram)
        self._log.scalars(step, metrics)
        self._trackers.scalars(step, metrics)
        finished = [fragment for fragment in iteration.rollouts.fragments if fragment.finished][:_TABLE_ROWS]
        if finished and self._trackers:
            rows = [self._row(iteration.number, fragment) for fragment in finished]
            self._trackers.table(step, "rollouts", _TABLE_COLUMNS, rows)
        self._log.rollouts(iteration.number, step, iteration.rollouts.fragments)

    def _of_learners(self, iteration: Iteration) -> list[Span]:
        updates = [span.start for span in self._spans if span.name == "update"]
        if not updates:
            return []
        return learner_spans(updates[-1], iteration.update.metrics, parallel_critic=self._parallel_critic)

    def _row(self, number: int, fragment: Fragment) -> list[Any]:
        """A response as a row of `_TABLE_COLUMNS`."""
        tokens = [*fragment.context.tolist(), *fragment.tokens.tolist()]
        prompt, response = tokens[: fragment.prompt_length], tokens[fragment.prompt_length :]
        reward = float(fragment.context_rewards.sum() + fragment.rewards.sum())
        return [number, self._to_text(prompt), self._to_text(response), reward, fragment.correct, len(response)]

    def _watch_mismatch(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Compares trainer and engine on tokens of the trainer's own version; returns the alarm if anything was compared."""
        mean = metrics.get("mismatch/fresh_log_prob_diff_mean")
        if mean is not None:
            self._compare(LogProbDiff(mean, metrics["mismatch/fresh_log_prob_diff_max"]))
        elif self._heldout_diff is None:
            return {}
        return {"mismatch/alarm": float(self._mismatch)}

    def _compare(self, difference: LogProbDiff) -> None:
        self.totals.largest_fresh_log_prob_diff = max(self.totals.largest_fresh_log_prob_diff, difference.largest)
        if difference.mean > self._largest_diff:
            self._mismatch = True
            logger.warning(
                "engine and trainer disagree: log-probs of tokens of the trainer's own version differ by %.2e nats on average, "
                "alarm at %.0e; look at kv_on_update, dtype and sampling",
                difference.mean,
                self._largest_diff,
            )

    def _watch_environment(self, rollouts: RolloutStatistics, metrics: Mapping[str, float]) -> None:
        """Warns once if the environment does not say which responses are right, and whenever scoring fails."""
        if metrics["rollout/finished_episodes"] and "rollout/accuracy" not in metrics and not self._said_no_accuracy:
            self._said_no_accuracy = True
            logger.warning(
                "the environment ends episodes without info['correct']: there is no accuracy, only the return; let its last step "
                "say whether the response is right"
            )
        if rollouts.scores.failures:
            first = rollouts.scores.failures[0]
            logger.warning(
                "%d responses of this iteration could not be scored (on_reward_failure says what becomes of them); the first "
                "time by %s (%s): %s",
                rollouts.scores.failed_responses,
                first.name,
                first.kind,
                first.message,
            )

    def _watch_for_alarms(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Warns of every alarm that goes on; returns 1 for those that are on, 0 for the others."""
        alarms = {alarm.name: alarm.message for alarm in self._alarms.watch(metrics)}
        for name in alarms.keys() - self._alarms_on:
            logger.warning("%s: %s", name, alarms[name])
        self._alarms_on = set(alarms)
        return {f"alarm/{name}": float(name in alarms) for name in self._alarms.names()}
