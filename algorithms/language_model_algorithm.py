"""RLlib's host of the training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_ENV_RUNNER, COMPONENT_EVAL_ENV_RUNNER, COMPONENT_LEARNER_GROUP
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from tppo_rl.algorithms.checkpoint_contents import check_fits, check_restorable, checkpoint_contents, naming_weights
from tppo_rl.algorithms.checkpoint_places import local_copy_of, local_folder
from tppo_rl.algorithms.learner_nodes import room_for_learners
from tppo_rl.algorithms.peak_memory import peak_memory
from tppo_rl.algorithms.resources import check_resources
from tppo_rl.algorithms.rllib_internals import count_seconds_from, report_restored, total_seconds, trial_folder
from tppo_rl.algorithms.tppo import TrainingLoop
from tppo_rl.config.options import Options
from tppo_rl.config.sleep_checks import sleeps
from tppo_rl.config.value_forms import check_saved_form, evaluated_return, value_form_settings
from tppo_rl.core.checkpoint_files import LOOP, checkpoint_facts, checkpoint_state, take_checkpoint, write_checkpoint
from tppo_rl.core.fragments import fragments_from_table, table_from_fragments
from tppo_rl.core.value_head_file import SQUARED_ERROR
from tppo_rl.core.waiting import StageCut, stage, stop_here
from tppo_rl.learner.boundaries import BoundaryTracker
from tppo_rl.learner.cached_memory import release_cached_memory
from tppo_rl.learner.client import LearnerClient
from tppo_rl.learner.learner import TPPOLearner
from tppo_rl.learner.models import parse_dtype
from tppo_rl.observability.batch_log import BatchLog
from tppo_rl.observability.metrics import without_unknown
from tppo_rl.observability.recorder import RunRecorder
from tppo_rl.rollout.batch_sources import batch_source
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.controller import RolloutController
from tppo_rl.rollout.evaluation import HeldoutEvaluator
from tppo_rl.rollout.event_log import EventLog, RecordedEvents, ReplayedEvents, read_critic_start, read_scoring
from tppo_rl.rollout.first_start import wait_for_start
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.replay import ReplayedRollouts, ReplayedWeightSync
from tppo_rl.rollout.resting_engines import RestingEngines
from tppo_rl.rollout.rllib_internals import kill_env_runners, stop_env_runners
from tppo_rl.rollout.sync_rollouts import SyncRollouts
from tppo_rl.rollout.weight_proof import WeightProof, probe_tokens
from tppo_rl.rollout.weight_sync import WeightSync

logger = logging.getLogger(__name__)


class _StartedGroup:
    """A group of env-runners that have started when it is there: RLlib asks them without a limit as soon as it has set it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = f"_started_{name}"
        self._words = "evaluation env-runner" if name.startswith("eval_") else "env-runner"

    def __get__(self, algorithm: Any, owner: type) -> Any:
        return getattr(algorithm, self._attribute, None)

    def __set__(self, algorithm: Any, group: Any) -> None:
        setattr(algorithm, self._attribute, group)
        if group is not None:
            wait_for_start(group, algorithm.config.start_timeout_s, self._words)


class LanguageModelAlgorithm(Algorithm):
    """RLlib's `Algorithm` around a `TrainingLoop`: lifecycle, checkpoints and results are RLlib's."""

    env_runner_group = _StartedGroup()
    eval_env_runner_group = _StartedGroup()
    options: Options
    loop: TrainingLoop
    weights_checksum: int | None = None
    """After the last update, where events are recorded or replayed."""

    def setup(self, config: AlgorithmConfig) -> None:
        try:
            self._start(config)
        except BaseException:
            # Whoever catches the error, as in a notebook, keeps no engine's memory with it.
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Ends what a start has begun; nothing here takes the place of the error that ended the start."""
        for group in filter(None, (self.env_runner_group, self.eval_env_runner_group)):
            with suppress(Exception):
                kill_env_runners(group)
            with suppress(Exception):
                if group.local_env_runner is not None:
                    group.local_env_runner.stop()
        with suppress(Exception):
            if getattr(self, "learner_group", None) is not None:
                self.learner_group.kill()
        with suppress(Exception):
            if getattr(self, "loop", None) is not None:
                self.loop.recorder.close()

    def _start(self, config: AlgorithmConfig) -> None:
        started = time.perf_counter()
        check_resources(config)
        engines = config.num_env_runners or 1
        with room_for_learners(config), stage(f"starting {engines} engine{'s' if engines > 1 else ''}"):
            super().setup(config)
        self.options = options = self.config.options
        # Asked for here and not at every checkpoint: both make the environment, which may read a data set.
        self._value_form = value_form_settings(options)
        self._contents = checkpoint_contents(self)
        chat = Chat.of(options)
        recorder = RunRecorder(options, self._results_folder(), chat.text)
        self._events = events = self._event_log()
        self._follow_scoring()
        make_weights: Callable[..., WeightSync] = partial(WeightSync, events=events)
        kind = RolloutController if options.pipeline.mode == "async" else SyncRollouts
        make_rollouts: Callable[..., RolloutController] = partial(kind, events=events)
        if isinstance(events, ReplayedEvents):
            make_weights = partial(ReplayedWeightSync, events=events)
            make_rollouts = partial(ReplayedRollouts, events=events)
        weights = make_weights(
            self.learner_group,
            self.env_runner_group,
            proof=WeightProof(
                exact=options.models.dtype == "float32" and "quantization" not in options.rollout.engine.arguments
            ),
            probe=probe_tokens(chat, options.rollout.max_prompt_length),
            dtype=parse_dtype(options.models.dtype),
            timeout_s=options.pipeline.env_runner_timeout_s,
            silence_s=options.pipeline.heartbeat_timeout_s,
            transport=options.pipeline.weight_transport,
        )
        rollouts = make_rollouts(
            self.env_runner_group,
            options,
            weights,
            restore=self._restore_env_runners,
        )
        self.evaluator = HeldoutEvaluator(options, weights, self._evaluation_group, self._mend_evaluation_group)
        self.loop = TrainingLoop(
            rollouts=rollouts,
            batches=batch_source(options, rollouts, weights),
            learners=LearnerClient(self.learner_group, options, self.metrics.peek_results),
            boundaries=BoundaryTracker(options),
            weights=weights,
            engines=RestingEngines(
                self.env_runner_group,
                partial(self.learner_group.ask, release_cached_memory),
                sleeps=sleeps(options),
                timeout_s=options.pipeline.heartbeat_timeout_s,
            ),
            recorder=recorder,
            batch_log=BatchLog(self._results_folder(), self._run_facts()) if options.run.record_batches else None,
            meanwhile=rollouts.poll if options.pipeline.mode == "async" else None,
        )
        self._push_and_verify()
        recorder.totals.add_seconds("setup", time.perf_counter() - started)

    def training_step(self) -> None:
        """One iteration of the loop; its metrics go to RLlib."""
        iteration, metrics = self.loop.training_step()
        if self.options.run.record_events or self.options.run.replay_of:
            self.weights_checksum = self.loop.learners.weights_checksum()
            self._events.end_iteration(iteration.number, self.weights_checksum)
        self.metrics.aggregate(list(iteration.update.of_learners), key=LEARNER_RESULTS)
        self.metrics.aggregate(iteration.rollouts.runner_metrics, key=ENV_RUNNER_RESULTS)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, iteration.counts.sampled, reduce="item")
        for name, value in metrics.items():
            self.metrics.log_value(tuple(name.split("/")), float(value), reduce="item")

    def step(self) -> dict[str, Any]:
        """RLlib's step, with evaluations by tokens, and what the table of metrics does not hold."""
        evaluator, ledger = self.evaluator, self.loop.rollouts.ledger
        if evaluator.is_due_before_training:
            evaluator.before = self.evaluate()
            stop_here()
            self._start_critic()
        sampled_before = ledger.counts().sampled
        results = without_unknown(super().step())
        if evaluator.counts_tokens and evaluator.is_due(sampled_before, ledger.counts().sampled):
            results |= super()._run_one_evaluation()
        if "sampled" not in results.get(EVALUATION_RESULTS, ()):
            # Ctrl-C cut it short; RLlib has put keys of its own into it.
            results.pop(EVALUATION_RESULTS, None)
        results["heldout_before"] = evaluator.before
        results["heldout_latest"] = evaluator.latest
        results["run"] = self.run_totals()
        results["tokens"]["dropped_by_reason"] = ledger.counts().dropped
        results["mode"] = self.options.pipeline.mode
        results["seed"] = self.options.run.seed
        return results

    def run_totals(self) -> dict[str, Any]:
        """Sums over the whole run, for its summary."""
        return self.loop.recorder.run_totals()

    def peak_memory(self) -> dict[str, int]:
        """The largest resident memory of each kind of process by now, bytes."""
        return peak_memory(self)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Answers the held-out prompts, sampled at the training temperature and greedy; empty where Ctrl-C cut it short."""
        assert parallel_train_future is None
        self._call_back("on_evaluate_start")
        try:
            with self.loop.recorder.clock("evaluation"):
                evaluation = self.evaluator.run()
        except StageCut:
            # The iteration that it belongs to is trained, so that its result is wanted.
            return {}
        self.loop.recorder.record_evaluation(evaluation, self.loop.rollouts.ledger.counts().sampled)
        statistics = evaluation.statistics()
        self._call_back("on_evaluate_end", evaluation_metrics=statistics)
        return statistics

    def token_counts(self) -> dict[str, Any]:
        """Tokens of the run by now, under the keys that `tokens` has in results."""
        counts = self.loop.rollouts.ledger.counts()
        kept = {"sampled": counts.sampled, "trained": counts.trained, "queued": counts.queued}
        dropped = {"dropped": sum(counts.dropped.values()), "dropped_by_reason": counts.dropped}
        return kept | {"in_flight": counts.in_flight} | dropped

    def kill_env_runners(self) -> None:
        """Kills the env-runners in the midst of what they do, so that `stop` need not wait for them."""
        for group in filter(None, (self.env_runner_group, self.eval_env_runner_group)):
            kill_env_runners(group)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = dict(super().get_state(*args, **kwargs))
        # Those have no state of their own: weights live in learners, open episodes, prompts and tokens in the ledger.
        state.pop(COMPONENT_ENV_RUNNER, None)
        state.pop(COMPONENT_EVAL_ENV_RUNNER, None)
        state[LOOP] = {
            **self.loop.rollouts.state(),
            "hindsight": table_from_fragments(self.loop.boundaries.waiting),
            "critic": self.loop.boundaries.known(),
            "held": self.loop.learners.held_episodes(),
            "recorder": self.loop.recorder.state(),
            "evaluations": self.evaluator.state(),
            "value_form": self._value_form,
            "time_total_s": total_seconds(self),
        }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if LOOP in state:
            self._restore_loop(state[LOOP])

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return [(COMPONENT_LEARNER_GROUP, self.learner_group)]

    def save_to_path(self, path: Any = None, *, state: Any = None, filesystem: Any = None, **kwargs: Any) -> str:
        """Writes a checkpoint that holds data alone (`core.checkpoint_files`), and returns its place.

        Args:
            path: Folder, or URI of a file system that pyarrow knows; None: a new folder.
            state: From `get_state`; None: that of now.
            filesystem: Of pyarrow, to which `path` belongs.
            **kwargs: Of RLlib, not used.

        Raises:
            OptionError: learners are sharded, and do not all see the folder.
        """
        with local_copy_of(path, filesystem) as folder:
            written: dict[str, Any] = {}
            if state is None:
                learners, written = self.learner_group.write_state(folder)
                state = self._state_with(learners)
            write_checkpoint(folder, state, self._facts(), written)
        return str(folder if path is None else path)

    def begin_checkpoint(self, folder: Path) -> Callable[[], None]:
        """Takes the state of now for a checkpoint, and returns what writes it in another thread; training may go on.

        Sharded learners begin to write at once.

        Args:
            folder: Of the checkpoint, which is what `save_to_path` would write.

        Raises:
            OptionError: learners are sharded, and do not all see the folder.
        """
        learners, written = self.learner_group.begin_state(folder)
        taken, facts = take_checkpoint(self._state_with(learners)), self._facts()
        return lambda: taken.write(folder, facts=facts, written=written())

    def _state_with(self, learners: dict[str, Any]) -> dict[str, Any]:
        return self.get_state(not_components=COMPONENT_LEARNER_GROUP) | {COMPONENT_LEARNER_GROUP: learners}

    def _facts(self) -> dict[str, Any]:
        return self._contents | {"iteration": self.iteration}

    def restore_from_path(self, path: Any, *args: Any, filesystem: Any = None, **kwargs: Any) -> None:
        """Goes on from a checkpoint; nothing in it is executed.

        Raises:
            OptionError: it is damaged, or of another algorithm or model.
        """
        with local_folder(path, filesystem) as folder:
            check_fits(folder, self.options, type(self).__name__)
            state = checkpoint_state(folder, without=COMPONENT_LEARNER_GROUP)
            with naming_weights(path, self.options):
                self.learner_group.load_state(folder)
        self.set_state(state)
        self._push_and_verify()

    @classmethod
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> LanguageModelAlgorithm:
        """Builds the algorithm that a checkpoint describes, and goes on from it.

        Args:
            path: Folder, URI or Ray Train's `Checkpoint`.
            filesystem: Of pyarrow, to which `path` belongs.
            **kwargs: Of RLlib, not used.

        Raises:
            OptionError: see `restore_from_path`.
        """
        path = getattr(path, "path", path)
        with local_folder(path, filesystem) as folder:
            facts = checkpoint_facts(folder)
        config = cls.get_default_config().update_from_dict(facts["options"] | facts["rllib"])
        if facts["not_saved"]:
            logger.warning("these settings are not in the checkpoint, and have their defaults: %s", facts["not_saved"])
        algorithm = cls(config=config)
        algorithm.restore_from_path(path, filesystem=filesystem)
        return algorithm

    def cleanup(self) -> None:
        loop = getattr(self, "loop", None)
        if loop is not None:
            loop.learners.stop()
            loop.recorder.close()
        for group in (getattr(self, name, None) for name in ("env_runner_group", "eval_env_runner_group")):
            if group is not None:
                stop_env_runners(group)
        super().cleanup()

    def _run_one_evaluation(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """RLlib counts iterations alone."""
        return {} if self.evaluator.counts_tokens else super()._run_one_evaluation(parallel_train_future)

    def _start_critic(self) -> None:
        """Tells new critics the mean return that the first evaluation has found."""
        value = evaluated_return(self.options, self.evaluator.before.get("sampled", {}))
        if self.options.run.replay_of is not None:
            value = read_critic_start(Path(self.options.run.replay_of), value)
        if value is not None:
            self._events.critic_starts_at = value
            self.loop.learners.ask(partial(TPPOLearner.start_critic, value=value))
            if self.loop.batch_log is not None:
                self.loop.batch_log.critic_starts_at = value

    def _call_back(self, name: str, **arguments: Any) -> None:
        make_callback(
            name,
            self.callbacks,
            getattr(self.config, f"callbacks_{name}"),
            kwargs={"algorithm": self, "metrics_logger": self.metrics, **arguments},
        )

    def _restore_env_runners(self) -> None:
        """Brings lost env-runners back in the midst of an iteration, where RLlib does not look."""
        if restored := self.restore_env_runners(self.env_runner_group):
            report_restored(self, restored)

    def _push_and_verify(self) -> None:
        with stage("proving that the engines hold the weights"):
            self.loop.weights.measure_control()
            self.loop.weights.push()
            self.loop.recorder.record_probe(self.loop.weights.verify())

    def _evaluation_group(self) -> Any:
        if self.options.evaluation.evaluation_num_env_runners == 0:
            return self.env_runner_group
        group = self.eval_env_runner_group
        group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
        return group

    def _mend_evaluation_group(self, outdated: Sequence[int]) -> None:
        """Brings lost env-runners back that evaluate, and sends the newest weights to those that hold others."""
        if self.options.evaluation.evaluation_num_env_runners:
            self.restore_env_runners(self.eval_env_runner_group)
            self._evaluation_group()
            return
        self._restore_env_runners()
        for env_runner in outdated:
            self.loop.weights.revive(env_runner)

    def _restore_loop(self, saved: dict[str, Any]) -> None:
        # Earlier versions did not save it, and Tune has set it for a trial of its own.
        count_seconds_from(self, saved.get("time_total_s", total_seconds(self)))
        queued = fragments_from_table(saved["queue"])
        grouped = fragments_from_table(saved["grouped"]) if "grouped" in saved else []
        check_restorable(
            self.options, saved["ledger"], all(fragment.window_index == 0 and fragment.finished for fragment in queued)
        )
        check_saved_form(self.options, saved.get("value_form", SQUARED_ERROR))
        env_runners = self.env_runner_group.healthy_env_runner_ids() or [0]
        ledger = Ledger.from_state(saved["ledger"], env_runners)
        self.loop.recorder.restore(saved["recorder"], ledger.counts().sampled)
        self._events.resumes(self.loop.recorder.num_iterations)
        if self.loop.batch_log is not None:
            self.loop.batch_log.resumed = True
        self.evaluator.restore(saved["evaluations"])
        self.loop.rollouts.restart(ledger, queued, grouped, saved.get("left_out"))
        # Earlier versions kept the slope alone, or nothing.
        known = saved.get("critic") or ({"slope": saved["slope"]} if saved.get("slope") else None)
        self.loop.boundaries = BoundaryTracker(self.options, fragments_from_table(saved["hindsight"]), known)
        self.loop.learners.hold_episodes(saved["held"])

    def _event_log(self) -> EventLog:
        run = self.options.run
        if run.replay_of is not None and self.options.pipeline.mode == "async":
            return ReplayedEvents(Path(run.replay_of))
        if not run.record_events:
            return EventLog()
        return RecordedEvents(self._results_folder(), self._run_facts())

    def _follow_scoring(self) -> None:
        """Lets the scoring workers' results be taken as in the run that is made again."""
        if self.options.run.replay_of is None:
            return
        for env_runner, parts in read_scoring(Path(self.options.run.replay_of)).items():
            if env_runner:
                arguments = {"kwargs": [{"parts": parts}], "remote_worker_ids": [env_runner], "local_env_runner": False}
                self.env_runner_group.foreach_env_runner(["follow_scoring"], **arguments)
            else:
                self.env_runner_group.local_env_runner.follow_scoring(parts)

    def _run_facts(self) -> dict[str, Any]:
        """What this run is, as JSON."""
        return {key: self._contents[key] for key in ("algorithm", "options", "rllib")}

    def _results_folder(self) -> Path:
        """`results_folder`, else Tune's folder of the trial where it is on this machine, else the trainable's own."""
        if self.options.run.results_folder is not None:
            return Path(self.options.run.results_folder)
        return trial_folder(self) or Path(self.logdir)
