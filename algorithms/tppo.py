"""Truncated PPO (T-PPO, arXiv 2506.15050) on RLlib.

            ┌──────────────────────────── weights, version + 1 ───────────────────────────┐
            ▼                                                                             │
      VLLMEnvRunner ──fragments──▶ RolloutPump ──▶ TrainQueue ──batch──▶ LearnerGroup.update
        slots, windows              Ledger           oldest first          EGAE, MC targets, token filter,
            ▲                         │                                    policy step, critic step
            └──────── tickets ────────┘

    mode="async"  env-runners generate all the time; while one batch is trained the next ones are sampled. Staleness is
                  bounded as `tppo_rl/rollout/train_queue.py` derives; what waits for what is in `tppo_rl/rollout/pump.py`.
    mode="sync"   the paper: every slot generates one window, then one update, then new weights. With a window as long as
                  the response cap every slot generates one whole response, and the step waits for the longest: PPO.

An iteration is one update. Differences from the paper: log-probs of the behaviour policy come from the engine, and in
async mode a response may span several policy versions, each token keeping its own.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune.registry import register_trainable

from tppo_rl.algorithms.actor_resources import check_resources
from tppo_rl.algorithms.tppo_config import TPPOConfig
from tppo_rl.base_models import resolve_model
from tppo_rl.core.boundaries import Boundary, ClosedBoundary
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment, concatenate_tables, fragments_from_table, table_from_fragments
from tppo_rl.learner.hindsight import HindsightBuffer
from tppo_rl.learner.learner import TPPOLearner
from tppo_rl.learner.partition import shares
from tppo_rl.observability.alarms import Alarms
from tppo_rl.observability.boundary_errors import position_bin_width
from tppo_rl.observability.metrics import (
    boundary_metrics,
    episode_metrics,
    group_metrics,
    heldout_metrics,
    learner_metrics,
    without_unknown,
)
from tppo_rl.observability.tensorboard import RunLog
from tppo_rl.observability.totals import RunAccounts
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.evaluation import accuracy_statistics, evaluate_heldout
from tppo_rl.rollout.groups import GroupBuffer, sample_groups
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.pump import RolloutPump
from tppo_rl.rollout.train_queue import TrainQueue
from tppo_rl.rollout.weight_sync import WeightSync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

logger = logging.getLogger(__name__)

LOG_PROB_GAP_ALARM = {"float32": 1e-3, "bfloat16": 0.05}
"""Default of `log_prob_gap_alarm`, nats."""
_GAP_EPISODES = 32
"""Held-out episodes on which engine and trainer are compared at each evaluation."""


class TPPO(Algorithm):
    """Truncated PPO, see the head of this file."""

    @classmethod
    def get_default_config(cls) -> TPPOConfig:
        return TPPOConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        self._started = time.perf_counter()
        check_resources(config)
        super().setup(config)
        self._chat = Chat.from_pretrained(resolve_model(self.config.policy_model))
        self._accounts = RunAccounts()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="update")
        self._weight_sync = WeightSync(
            self.learner_group,
            self.env_runner_group,
            dtype=self.config.dtype,
            vocabulary_size=self._chat.vocabulary_size,
        )
        self._version = 0
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._log_values: dict[str, float] = {}
        self._log: RunLog | None = None
        self._alarms = Alarms(asynchronous=self.config.mode == "async", refills=not self.config.whole_responses)
        self._alarms_on: set[str] = set()
        self._start_pipeline(Ledger(seed=self.config.seed, group_size=self.config.group_size), [])
        self._version = self._weight_sync.push()
        self._log_values["engine_gap/probe_mean"] = self._weight_sync.verify()
        self._proof_is_due = False
        self._accounts.add_seconds("setup", time.perf_counter() - self._started)

    def step(self) -> dict[str, Any]:
        if self.config.evaluation_interval and "before" not in self._evaluations:
            self._evaluations["before"] = self.evaluate()
        sampled_before = self._ledger.counts().sampled
        results = without_unknown(super().step())
        if self._counts_tokens and self._passes_an_interval(sampled_before):
            results |= super()._run_one_evaluation()
        results["heldout_before"] = self._evaluations.get("before", {})
        results["heldout_latest"] = self._evaluations.get("latest", {})
        results["run"] = self.run_state()
        results["tokens"]["dropped_by_reason"] = self._ledger.counts().dropped
        results["mode"] = self.config.mode
        results["seed"] = self.config.seed
        return results

    def run_state(self) -> dict[str, Any]:
        """Sums over the whole run, for its summary."""
        wall_s = self._accounts.wall_s + time.perf_counter() - self._started
        return self._accounts.state() | {
            "wall_s": wall_s,
            "slot_occupancy_lifetime": self._accounts.slot_occupancy,
        }

    def training_step(self) -> None:
        """One batch of fragments, one update, new weights."""
        started = time.perf_counter()
        with self._timed("waiting_for_fragments"):
            fragments = self._next_batch()
        with self._timed("update"):
            results = self._update(fragments)
        self._book(fragments, results)
        with self._timed("weights"):
            self._version = self._weight_sync.push()
            self._prove_weights_if_due()
        self._log_iteration(time.perf_counter() - started)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Answers the held-out prompts, sampled at the training temperature and greedy.

        Runs on the training env-runners' engines while their open episodes are suspended, or on own env-runners if
        `evaluation_num_env_runners` is above 0.
        """
        assert parallel_train_future is None
        with self._timed("evaluation"):
            self._weight_sync.wait_until_delivered()
            group = self.env_runner_group
            if self.config.evaluation_num_env_runners > 0:
                group = self.eval_env_runner_group
                group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
            temperature = self.config.sampling["temperature"]
            num_prompts = self.config.evaluation_duration
            sampled = evaluate_heldout(group, num_prompts=num_prompts, temperature=temperature)
            greedy = evaluate_heldout(group, num_prompts=num_prompts, temperature=0.0)
            evaluation = {"sampled": accuracy_statistics(sampled), "greedy": accuracy_statistics(greedy)}
            # Every token of these episodes comes from the newest weights, so trainer and engine must agree on them.
            mean_gap, largest_gap = self._weight_sync.gap_of_episodes(sampled[:_GAP_EPISODES], temperature)
        self._evaluations["latest"] = evaluation
        self._watch_log_prob_gap(mean_gap, largest_gap)
        gaps = {"engine_gap/heldout_log_prob_mean": mean_gap, "engine_gap/heldout_log_prob_max": largest_gap}
        self._log_values |= gaps
        self._run_log().scalars(self._ledger.counts().sampled, heldout_metrics(evaluation) | gaps)
        return evaluation

    def _run_one_evaluation(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """RLlib counts iterations alone."""
        return {} if self._counts_tokens else super()._run_one_evaluation(parallel_train_future)

    @property
    def _counts_tokens(self) -> bool:
        return bool(self.config.evaluation_interval) and self.config.evaluation_interval_unit == "tokens"

    def _passes_an_interval(self, sampled_before: int) -> bool:
        interval = self.config.evaluation_interval
        return self._ledger.counts().sampled // interval > sampled_before // interval

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = dict(super().get_state(*args, **kwargs))
        state["tppo"] = {
            "ledger": self._ledger.state(),
            "queue": table_from_fragments(self._queue.fragments() + self._groups.fragments()),
            "hindsight": table_from_fragments(self._hindsight.due),
            "held": concatenate_tables(self._ask_learners(TPPOLearner.held_episodes)),
            "accounts": self._accounts.state() | {"wall_s": self.run_state()["wall_s"]},
            "evaluations": self._evaluations,
        }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "tppo" in state:
            saved = state["tppo"]
            if saved["ledger"]["group_size"] != self.config.group_size:
                raise OptionError(
                    f"group_size={self.config.group_size}: the checkpoint has open groups of "
                    f"group_size={saved['ledger']['group_size']}; go on with that, or begin anew"
                )
            queued = fragments_from_table(saved["queue"])
            if self.config.whole_responses and not all(fragment.finished for fragment in queued):
                raise OptionError(
                    f"window_length={self.config.window_length}: windows of unfinished responses wait in the checkpoint, and "
                    "whole responses are to be trained; go on with the window_length and mode that it was saved with"
                )
            self._accounts = RunAccounts(**saved["accounts"])
            self._evaluations = saved["evaluations"]
            self._pump.abandon()
            self._start_pipeline(
                Ledger.from_state(saved["ledger"]),
                queued,
                fragments_from_table(saved["hindsight"]),
            )
            self._ask_learners(partial(TPPOLearner.hold_episodes, table=saved["held"]))

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        # Env-runners have no state of their own: weights live in learners, prompts and tokens in the ledger.
        return [(COMPONENT_LEARNER_GROUP, self.learner_group)]

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self._version = self._weight_sync.push()
        self._log_values["engine_gap/probe_mean"] = self._weight_sync.verify()

    def cleanup(self) -> None:
        if hasattr(self, "_executor"):
            self._executor.shutdown(wait=True)
        log = getattr(self, "_log", None)
        if log is not None:
            log.close()
        super().cleanup()

    # The parts of an iteration

    def _next_batch(self) -> list[Fragment]:
        if self.config.mode == "async":
            return self._pump.batch(self._version)
        self._weight_sync.wait_until_delivered()
        if self.config.whole_responses:
            return self._groups_to_train()
        return self._pump.one_window(self.config.window)

    def _groups_to_train(self) -> list[Fragment]:
        """One whole response of every slot, in groups; those without variance replaced where the config says so."""
        config = self.config
        sample = sample_groups(
            self._pump.whole_responses,
            self._groups,
            num_groups=config.num_slots // config.group_size,
            group_size=config.group_size,
            replace=config.dynamic_sampling,
            max_rounds=config.dynamic_sampling_max_rounds,
            by_verdict=config.rewards != "environment",
        )
        for group in sample.dropped:
            self._ledger.book_dropped("no_variance", sum(map(len, group)))
        self._log_values |= group_metrics(sample) if config.group_size > 1 else {}
        return sample.fragments

    def _update(self, fragments: list[Fragment]) -> list[dict[str, Any]]:
        """Trains the fragments and what is due in hindsight; in async mode sampling goes on meanwhile."""
        data = self._training_data(fragments + self._hindsight.take())
        if self.config.mode == "sync":
            return self.learner_group.update(training_data=data)
        update: Future[list[dict[str, Any]]] = self._executor.submit(self.learner_group.update, training_data=data)
        while not update.done():
            self._pump.turn(self._version, timeout_s=0.02)
        return update.result()

    def _training_data(self, fragments: list[Fragment]) -> TrainingData:
        if self.config.num_learners <= 1 and not self.learner_group.is_remote:
            return TrainingData(batch=table_from_fragments(fragments))
        divided = shares(
            fragments,
            self.config.num_learners,
            whole_groups=self.config.group_size > 1,
            same_learner=self.config.context_cache_tokens > 0,
        )
        return TrainingData(batches=[table_from_fragments(share) for share in divided])

    def _ask_learners(self, question: Callable[[Any], Any]) -> list[Any]:
        return [result.get() for result in self.learner_group.foreach_learner(question)]

    def _book(self, fragments: list[Fragment], results: list[dict[str, Any]]) -> None:
        """Books what was trained, and what learners found out about windows and boundaries."""
        reports = pa.concat_tables([result.pop("fragment_report") for result in results])
        histogram = np.asarray(results[0]["staleness_histogram"])
        for result in results:
            del result["staleness_histogram"]
        values = self.metrics.peek_results(results[0][DEFAULT_MODULE_ID])
        self._ledger.book_trained(int(values["trained_tokens"]))
        counts = self._ledger.check(queue_tokens=self._queue.num_tokens + self._groups.num_tokens)
        assert self.config.mode == "sync" or values["staleness_max"] <= self.config.max_staleness
        self._log_values |= learner_metrics(values)
        closed = self._close_boundaries(fragments, reports)
        # Values that have learned what KL takes off say nothing of returns without it.
        if not (self.config.kl_coef and self.config.kl_in == "reward"):
            self._log_values |= boundary_metrics(closed)
            self._run_log().boundary_errors(self.iteration + 1, closed)
        self._log_values |= {
            "tokens/sampled": counts.sampled,
            "tokens/trained": counts.trained,
            "tokens/queued": counts.queued,
            "tokens/in_flight": counts.in_flight,
            "tokens/dropped": sum(counts.dropped.values()),
        }
        self._trained_tokens = int(values["trained_tokens"])
        accounts = self._accounts
        accounts.largest_staleness = max(accounts.largest_staleness, int(values["staleness_max"]))
        # Absent where the first minibatch is of windows in hindsight alone.
        accounts.largest_ratio_deviation = max(
            accounts.largest_ratio_deviation, values.get("first_ratio_max_deviation", 0.0)
        )
        if "engine_gap/fresh_log_prob_mean" in self._log_values:
            self._watch_log_prob_gap(
                self._log_values["engine_gap/fresh_log_prob_mean"], self._log_values["engine_gap/fresh_log_prob_max"]
            )
        self._run_log().histogram(counts.sampled, "staleness/histogram", histogram)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def _close_boundaries(self, fragments: list[Fragment], reports: pa.Table) -> list[ClosedBoundary]:
        rows = {(row["episode_id"], row["window_index"]): row for row in reports.to_pylist()}
        times = Counter((fragment.episode_id, fragment.window_index) for fragment in fragments)
        closed: list[ClosedBoundary] = []
        for fragment in sorted(fragments, key=lambda fragment: fragment.window_index):
            if times[fragment.episode_id, fragment.window_index] > 1:
                # Sampled again after the loss of an env-runner: which row of the report is whose is not known.
                continue
            if fragment.finished:
                closed += self._ledger.close_boundaries(fragment, self.config.gamma)
                self._hindsight.close(fragment)
            else:
                row = rows[fragment.episode_id, fragment.window_index]
                boundary = Boundary(row["held_value"], row["boundary_value"], row["mean_value"])
                self._ledger.note_boundary(fragment, boundary)
                # While the policy is frozen a window is not trained, and there is nothing to add to.
                if self.config.hindsight and self._version >= self.config.critic_warmup_updates:
                    used = boundary.held if self.config.boundary_value == "hold" else boundary.true
                    self._hindsight.add(fragment, used)
        return closed

    def _watch_log_prob_gap(self, mean_gap: float, largest_gap: float) -> None:
        """Raises the alarm if trainer and engine disagree on tokens that the trainer's own weights sampled."""
        limit = self.config.log_prob_gap_alarm or LOG_PROB_GAP_ALARM[self.config.dtype]
        self._accounts.largest_fresh_log_prob_gap = max(self._accounts.largest_fresh_log_prob_gap, largest_gap)
        self._log_values["engine_gap/alarm"] = float(mean_gap > limit)
        if mean_gap > limit:
            logger.warning(
                "engine and trainer disagree: mean log-prob gap %.2e nats on tokens of the trainer's own version, alarm at "
                "%.0e; look at kv_on_update, dtype and sampling",
                mean_gap,
                limit,
            )

    def _prove_weights_if_due(self) -> None:
        """After the first update that changed the policy, and after an env-runner's restart."""
        self._proof_is_due |= self._version == self.config.critic_warmup_updates + 1
        if self._proof_is_due:
            self._log_values["engine_gap/probe_mean"] = self._weight_sync.verify()
            self._proof_is_due = False

    def _log_iteration(self, seconds: float) -> None:
        statistics = self._pump.take_statistics()
        self._accounts.add_rollouts(statistics)
        busy = statistics.sampling_seconds + statistics.idle_seconds + statistics.weight_seconds
        sampled_before = self._log_values.pop("sampled_before", 0.0)
        values = self._log_values | episode_metrics(statistics.fragments)
        values |= {
            "tokens/sampled_per_second": (values["tokens/sampled"] - sampled_before) / seconds,
            "tokens/trained_per_second": self._trained_tokens / seconds,
            "rollout/refills": statistics.refills,
            "rollout/runner_idle_share": statistics.idle_seconds / max(busy, 1e-9),
            "rollout/weight_load_share": statistics.weight_seconds / max(busy, 1e-9),
            "time/iteration": seconds,
        }
        if statistics.slot_steps:
            values["rollout/slot_occupancy"] = statistics.productive_slot_steps / statistics.slot_steps
        values |= self._watch_for_alarms(values)
        step = int(values["tokens/sampled"])
        self._run_log().scalars(step, values)
        self._run_log().rollouts(self.iteration + 1, step, statistics.fragments)
        self.metrics.aggregate(statistics.runner_metrics, key=ENV_RUNNER_RESULTS)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, step, reduce="item")
        for name, value in values.items():
            self.metrics.log_value(tuple(name.split("/")), float(value), reduce="item")
        self._log_values = {"sampled_before": float(step)}

    def _watch_for_alarms(self, values: dict[str, float]) -> dict[str, float]:
        """Warns of every alarm that goes on; returns which are on now."""
        alarms = {alarm.name: alarm.message for alarm in self._alarms.watch(values)}
        for name in alarms.keys() - self._alarms_on:
            logger.warning("%s: %s", name, alarms[name])
        self._alarms_on = set(alarms)
        return {f"alarm/{name}": float(name in alarms) for name in self._alarms.names()}

    # Construction

    def _start_pipeline(
        self, ledger: Ledger, queued: list[Fragment], due_in_hindsight: Sequence[Fragment] = ()
    ) -> None:
        config = self.config
        self._ledger = ledger
        self._hindsight = HindsightBuffer(config.gamma, due_in_hindsight)
        self._groups = GroupBuffer(config.group_size)
        self._queue = TrainQueue()
        self._queue.push(queued)
        self._pump = RolloutPump(
            self.env_runner_group,
            ledger,
            self._queue,
            batch_tokens=config.batch_tokens(),
            max_staleness=config.max_staleness,
            num_slots=config.num_envs_per_env_runner,
            engine_steps=config.engine_steps_per_sample or min(config.window, 32),
            on_restart=self._revive,
            deliver_weights=self._weight_sync.deliver,
            restore=lambda: self.restore_env_runners(self.env_runner_group),
        )

    def _revive(self, env_runner: int) -> None:
        self._weight_sync.deliver(env_runner)
        # An update may be under way, and it changes the trainer's weights: the proof has to wait for the next push.
        self._proof_is_due = True

    def _run_log(self) -> RunLog:
        if self._log is None:
            self._log = RunLog(
                self._results_folder(),
                fragments_per_iteration=self.config.rollout_log_fragments,
                to_text=self._chat.text,
                seed=self.config.seed,
                position_bin_width=position_bin_width(self.config.max_response_length),
            )
        return self._log

    def _results_folder(self) -> Path:
        """`results_folder`, else Tune's folder of the trial where it is on this machine, else the trainable's own."""
        if self.config.results_folder is not None:
            return Path(self.config.results_folder)
        storage = getattr(self, "_storage", None)
        trial_folder = Path(storage.trial_fs_path) if storage is not None else None
        return trial_folder if trial_folder is not None and trial_folder.is_dir() else Path(self.logdir)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self._accounts.add_seconds(part, seconds)
        self._log_values[f"time/{part}"] = seconds


register_trainable("TPPO", TPPO)
