"""RLlib's host of the sampler: one engine, its slots, and the weights that arrive between engine steps.

An env-runner actor executes its calls one after another. So weights that arrive during a `sample()`, which is some tens
of engine steps long, are applied before the first engine step of the next one.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import ray
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    WEIGHTS_SEQ_NO,
)

from tppo_rl.config.options import Options
from tppo_rl.config.sleep_checks import sleeps
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.begun_episodes import table_from_begun
from tppo_rl.core.errors import portable
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.core.prompts import Ticket, seed_of
from tppo_rl.core.spans import Span
from tppo_rl.rollout.actors import can_begin_anew, end_process
from tppo_rl.rollout.callbacks import EnvRunnerCallbacks
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.core_process import EngineDied
from tppo_rl.rollout.engine import Engine, build_engine
from tppo_rl.rollout.env_runner_samplers import EnvRunnerSamplers
from tppo_rl.rollout.heartbeats import Heartbeat
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.responses import REWARD_FAILED, Scores
from tppo_rl.rollout.rllib_internals import own_heartbeat_key
from tppo_rl.rollout.sample_result import SampleResult
from tppo_rl.rollout.sampler import Sampler, evaluate_prompts
from tppo_rl.rollout.scoring_order import ScoringOrder
from tppo_rl.rollout.scoring_pool import ScoringPool
from tppo_rl.rollout.weight_broadcast import Offer, WeightsWithdrawn

logger = logging.getLogger(__name__)

_TRAINING_NOISE, _EVALUATION_NOISE = 1, 2


class VLLMEnvRunner(EnvRunner):
    """Env-runner with an engine and a fixed number of slots.

    RLlib creates a local env-runner beside remote ones. That one only knows the spaces and builds no engine.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self._incarnation = uuid.uuid4().hex
        self._failure: Exception | None = None
        self._policy_version: int | None = None
        self._samplers: EnvRunnerSamplers | None = None
        self._sampler: Sampler | None = None
        self._evaluation_samplers: dict[float, Sampler] = {}
        self._engine: Engine | None = None
        self._pool: ScoringPool | None = None
        self._weight_seconds = 0.0
        self._idle_seconds = 0.0
        self._spans: list[Span] = []
        self._options: Options = config.options
        self._sleeps = sleeps(self._options)
        self._counted = {"slot_steps": 0, "productive_slot_steps": 0, "refills": 0, "tokens": 0}
        self._last_call_ended = time.perf_counter()
        self._callbacks = EnvRunnerCallbacks(self)
        self._heartbeat = Heartbeat(own_heartbeat_key() if self.worker_index else None)
        # The driver sees that there is a process.
        self._heartbeat.beat()
        env = make_text_env(self._options.environment, "train")
        self._spaces = (env.observation_space, env.action_space)
        env.close()
        samples_here = self.worker_index or (config.num_env_runners == 0 and not config.in_evaluation)
        if samples_here:
            with self._keeping_failures():
                self._build()

    # RLlib's contract

    def sample(  # type: ignore[override]
        self,
        *,
        num_engine_steps: int | None,
        draw: int,
        tickets: Sequence[Ticket] = (),
        cut_windows: bool = False,
        **kwargs: Any,
    ) -> SampleResult:
        """Takes engine steps and returns the fragments that were closed meanwhile.

        Args:
            num_engine_steps: engine steps to take; None: steps until every ticket's episode has ended.
            draw: number of the request in the run; the noise of sampling follows from it.
            tickets: further episodes that may be started.
            cut_windows: close all windows at the end, whatever their length (sync mode).
            **kwargs: not used.
        """
        self._count_idle()
        try:
            return self._sample(num_engine_steps, draw, tickets, cut_windows)
        except Exception as error:
            anew = self._needs_new_process(error)
            failure = portable(error, self._where()) if anew else self._told(error)
            return SampleResult(
                table_from_fragments([]), self._incarnation, self._policy_version, error=failure, needs_new_process=anew
            )
        finally:
            self._last_call_ended = time.perf_counter()

    def evaluate(
        self,
        tickets: Sequence[Ticket],
        temperature: float,
        told: Callable[[int], None] | None = None,
        version: int | None = None,
    ) -> pa.Table | Exception | None:
        """Generates a whole episode for each ticket on the held-out split, and leaves open training episodes untouched.

        Args:
            tickets: prompts to answer.
            temperature: sampling temperature; 0 is greedy.
            told: called with the number of answered prompts, whenever one is.
            version: policy version of the weights that are to answer; None: whatever there is.

        Returns:
            A table of finished fragments (`FRAGMENT_SCHEMA`), one for each ticket, in their order; what went wrong; or None where
            the weights are others, as after a restart.
        """
        if self._failure is None and version not in (None, self._policy_version):
            return None
        started = time.perf_counter()
        try:
            return table_from_fragments(self._evaluate(tickets, temperature, told or self._heartbeat.answered))
        except Exception as error:
            return self._told(error)
        finally:
            self._spanned("held-out evaluation", started)
            self._last_call_ended = time.perf_counter()

    def _warn_of_failures(self, scores: Scores) -> None:
        if scores.failures:
            logger.warning(
                "the environment could not score %d held-out responses, which count as wrong; the first time: %s",
                len(scores.failures),
                scores.failures[0].message,
            )

    def score(self, tokens: Sequence[int]) -> np.ndarray | Exception:
        """Returns the log-probs that the engine's weights give to a probe, float32 [len - 1]; see `Engine.score`.

        An engine that could not start, could not take the weights or cannot score gives its error.
        """
        try:
            return self._score(tokens)
        except Exception as error:
            return self._told(error)

    def sleep(self) -> Exception | None:
        """Lets the engine give the GPU's memory back until new weights come, or until it is asked for anything.

        Returns:
            What went wrong, if anything did.
        """
        return self._rest("sleep", "falling asleep")

    def wake_up(self) -> Exception | None:
        """Wakes the engine, if it sleeps.

        Returns:
            What went wrong, if anything did.
        """
        return self._rest("wake_up", "waking")

    def _rest(self, method: str, words: str) -> Exception | None:
        if self._engine is None or self._failure is not None:
            return None
        started = time.perf_counter()
        try:
            # An engine of a user's own may have no such method.
            getattr(self._engine, method, lambda: None)()
        except Exception as error:
            return self._told(error)
        finally:
            self._spanned(words, started)
            self._last_call_ended = time.perf_counter()
        return None

    def _wake(self) -> None:
        """Wakes an engine that sleeps, whose update has failed or sent no weights."""
        if self._sleeps and self._engine is not None:
            getattr(self._engine, "wake_up", lambda: None)()

    def abandon(self) -> None:
        """Drops open episodes and tickets, and counts from 0 as after a restart; the engine keeps its weights."""
        if self._sampler is not None:
            self._sampler.abandon()
            self._sampler.num_tokens_sampled = 0
            self._counted["tokens"] = 0
        self._incarnation = uuid.uuid4().hex

    def follow_scoring(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Takes the results of scoring workers in a recorded order; this env-runner has done nothing yet.

        Args:
            parts: All parts of this env-runner's order (`scoring_order.read_order`).
        """
        if self._pool is not None:
            self._pool.follow(parts, self._heartbeat.beat)

    def get_spaces(self) -> dict[str, tuple[gymnasium.Space, gymnasium.Space]]:
        return {INPUT_ENV_SPACES: self._spaces, DEFAULT_MODULE_ID: self._spaces}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Weights are in the learners' state, prompts and tokens in the ledger's.
        return {WEIGHTS_SEQ_NO: self._policy_version or 0}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes new weights, if the state holds any or an offer of them."""
        module_state = state.get(COMPONENT_RL_MODULE)
        if module_state is None or self._engine is None:
            return
        self._count_idle()
        self._heartbeat.beat()
        started = time.perf_counter()
        version = int(state[WEIGHTS_SEQ_NO])
        with self._keeping_failures():
            try:
                if isinstance(module_state, ray.ObjectRef):
                    module_state = ray.get(module_state)
                self._heartbeat.beat()
                with self._beginning_anew():
                    self._engine.load_weights(_weights_in(module_state), version)
                self._policy_version = version
            except ray.exceptions.ObjectLostError:
                # The driver tells of the learner's death. What is sampled meanwhile has its own version.
                logger.warning("the weights of policy version %d are gone with the learner that had made them", version)
            except WeightsWithdrawn:
                logger.warning(
                    "the weights of policy version %d are no longer offered; newer ones are to come", version
                )
        self._weight_seconds += self._spanned("new weights", started)
        self._last_call_ended = time.perf_counter()

    @contextmanager
    def _beginning_anew(self) -> Iterator[None]:
        """Puts open episodes back on the engine as new requests, which a resumed run makes as well (sync).

        An engine has new requests before those that it preempts, and its noise is given out in that order.
        """
        sampler, pipeline = self._sampler, self._options.pipeline
        if sampler is None or pipeline.mode == "async" or pipeline.kv_on_update == "keep":
            yield
            return
        sampler.suspend()
        try:
            yield
        finally:
            sampler.resume()

    def get_metrics(self) -> dict[str, Any]:
        return dict(self.metrics.reduce())

    def assert_healthy(self) -> None:
        built = self._engine is not None or self._failure is not None or not self.worker_index
        assert built, "the engine was not built"

    def ping(self) -> str:
        """Answers RLlib's health check."""
        return "pong"

    def stop(self) -> None:
        for sampler in filter(None, [self._sampler, *self._evaluation_samplers.values()]):
            sampler.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._engine is not None:
            self._engine.stop()
            self._engine = None
        self._heartbeat.stop()

    # Construction

    @contextmanager
    def _keeping_failures(self) -> Iterator[None]:
        """Keeps an error for the next call that can report it: RLlib would restart the actor, which fails again, for ever."""
        try:
            yield
        except Exception as error:
            self._failure = portable(error, self._where())

    def _told(self, error: Exception) -> Exception:
        """Returns an error for the driver. Where the engine is dead, an actor's process ends instead: Ray starts it anew, engine and all."""
        if self._needs_new_process(error):
            end_process(f"{self._where()} begins anew: {error}")
        if isinstance(error, EngineDied):
            error = EngineDied(f"{error}. Go on from the last checkpoint with --resume")
        return portable(error, self._where())

    def _needs_new_process(self, error: Exception) -> bool:
        can = self.worker_index and can_begin_anew(has_worked=self._engine is not None)
        return isinstance(error, EngineDied) and bool(can)

    def _where(self) -> str:
        return f"env-runner {self.worker_index}"

    def _build(self) -> None:
        options = self._options
        self._chat = Chat.of(options)
        if num_workers := options.scoring.number(options):
            self._callbacks.warn_of_workers()
            # Workers start while the engine does.
            records = options.run.record_events and not self.config.in_evaluation
            self._pool = ScoringPool(options, num_workers, self._splits(), records=records)
        self._engine = self._build_engine()
        if self._pool is not None:
            self._pool.wait_until_ready()
        self._samplers = EnvRunnerSamplers(
            options, self._engine, self._pool, self._chat, self._make_text_env, self._heartbeat.beat
        )
        # An env-runner for evaluations alone has no training episodes.
        if not self.config.in_evaluation:
            self._sampler = self._samplers.training(self.worker_index)

    def _splits(self) -> list[str]:
        """Splits of the environment that this env-runner asks for."""
        evaluation = self._options.evaluation
        if self.config.in_evaluation:
            return ["heldout"]
        evaluates = evaluation.evaluation_interval is not None and not evaluation.evaluation_num_env_runners
        return ["train", "heldout"] if evaluates else ["train"]

    def _build_engine(self) -> Engine:
        seed = self._options.run.seed + 1000 * self.worker_index + (500 if self.config.in_evaluation else 0)
        return build_engine(self._options, self._chat.end_of_turn, seed=seed)

    def _evaluation_sampler(self, temperature: float) -> Sampler:
        assert self._samplers is not None
        if temperature not in self._evaluation_samplers:
            self._evaluation_samplers[temperature] = self._samplers.evaluation(temperature)
        return self._evaluation_samplers[temperature]

    def _make_text_env(self, split: str) -> gymnasium.Env:
        env = make_text_env(self._options.environment, split)
        self._callbacks.environment_created(env, self._options.environment.env_config)
        return env

    # Sampling

    def _score(self, tokens: Sequence[int]) -> np.ndarray:
        if self._failure is not None:
            raise self._failure
        assert self._engine is not None
        self._wake()
        if self._sampler is not None:
            self._sampler.suspend()
        try:
            return self._engine.score(tokens)
        finally:
            if self._sampler is not None:
                self._sampler.resume()

    def _evaluate(self, tickets: Sequence[Ticket], temperature: float, told: Callable[[int], None]) -> list[Fragment]:
        if self._failure is not None:
            raise self._failure
        self._wake()
        sampler = self._evaluation_sampler(temperature)
        if self._sampler is not None:
            self._sampler.suspend()
        self._reseed(_EVALUATION_NOISE, self._policy_version or 0)
        self._heartbeat.begin_evaluation()
        try:
            episodes = evaluate_prompts(sampler, tickets, told)
            self._warn_of_failures(sampler.pop_scores())
            return episodes
        finally:
            if self._sampler is not None:
                self._sampler.resume()

    def _sample(
        self, num_engine_steps: int | None, draw: int, tickets: Sequence[Ticket], cut_windows: bool
    ) -> SampleResult:
        if self._failure is not None:
            raise self._failure
        assert self._sampler is not None, "this env-runner does not sample for training"
        if self._policy_version is None:
            return SampleResult(table_from_fragments([]), self._incarnation, None)
        started = time.perf_counter()
        self._wake()
        sampler = self._sampler
        sampler.add_tickets(tickets)
        self._reseed(_TRAINING_NOISE, draw)
        if cut_windows and self._options.pipeline.kv_on_update == "recompute":
            # Keys and values are computed anew in any case. Requests that are new stand in the order of the slots, so that what is
            # sampled is the same after a restart.
            sampler.suspend()
            sampler.resume()
        if num_engine_steps is None:
            fragments = sampler.run_until_empty()
        else:
            fragments = sampler.run(num_engine_steps, patient=cut_windows)
        if cut_windows:
            fragments += sampler.cut_windows()
        scores = sampler.pop_scores()
        # A response that could not be scored has no return that one could log.
        scored = [one for one in fragments if not one.finished or scores.left_out.get(one.episode_id) != REWARD_FAILED]
        self._log(scored)
        self._callbacks.sampled(scored)
        weight_seconds, self._weight_seconds = self._weight_seconds, 0.0
        idle_seconds, self._idle_seconds = self._idle_seconds, 0.0
        seconds = self._spanned("sampling", started)
        spans, self._spans = self._spans, []
        if self._pool is not None:
            spans += self._pool.pop_spans(self._where())
        return SampleResult(
            fragments=table_from_fragments(fragments),
            incarnation=self._incarnation,
            version=self._policy_version,
            num_tokens_sampled=sampler.num_tokens_sampled,
            num_open_tokens=sampler.num_open_tokens,
            oldest_open_version=sampler.oldest_open_version,
            begun=table_from_begun([episode.told() for episode in sampler.begun()]),
            num_waiting_tickets=sampler.num_waiting_tickets,
            slot_steps=self._since_last("slot_steps", sampler.num_slot_steps),
            productive_slot_steps=self._since_last("productive_slot_steps", sampler.num_productive_slot_steps),
            refills=self._since_last("refills", sampler.num_refills),
            scores=scores,
            seconds=seconds,
            idle_seconds=idle_seconds,
            weight_seconds=weight_seconds,
            spans=tuple(spans),
            scoring_order=ScoringOrder() if self._pool is None else self._pool.pop_order(),
            metrics=self.get_metrics(),
        )

    def _reseed(self, what: int, number: int) -> None:
        """Lets the noise of sampling follow from the run's seed, the env-runner, what is sampled, and a number."""
        assert self._engine is not None
        self._engine.reseed(seed_of(self._options.run.seed, what, self.worker_index, number))

    def _spanned(self, name: str, started: float) -> float:
        """Notes what has been done since `started` (`time.perf_counter`), and returns its seconds."""
        seconds = time.perf_counter() - started
        self._spans.append(Span(self._where(), name, time.time() - seconds, seconds))
        self._heartbeat.beat()
        return seconds

    def _count_idle(self) -> None:
        """Counts the time since the last call; time before the first weights is no idle time."""
        if self._policy_version is not None:
            self._idle_seconds += time.perf_counter() - self._last_call_ended

    def _since_last(self, name: str, total: int) -> int:
        difference = total - self._counted[name]
        self._counted[name] = total
        return difference

    def _log(self, fragments: Sequence[Fragment]) -> None:
        assert self._sampler is not None
        tokens = self._since_last("tokens", self._sampler.num_tokens_sampled)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, tokens, reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, tokens, reduce="lifetime_sum")
        finished = [fragment for fragment in fragments if fragment.finished]
        last = self.config.metrics_num_episodes_for_smoothing
        self.metrics.log_value(NUM_EPISODES, len(finished), reduce="sum")
        for fragment in finished:
            response_length = len(fragment.context) + len(fragment.tokens) - fragment.prompt_length
            episode_return = float(fragment.context_rewards.sum() + fragment.rewards.sum())
            self.metrics.log_value(EPISODE_LEN_MEAN, response_length, window=last)
            self.metrics.log_value(EPISODE_RETURN_MEAN, episode_return, window=last)


def _weights_in(module_state: PackedWeights | Offer | Mapping[str, Any]) -> Any:
    """Returns the weights that a learner has published or offers, or those in RLlib's own state, for an engine."""
    if isinstance(module_state, PackedWeights):
        return module_state.unpack()
    return module_state if isinstance(module_state, Offer) else module_state[DEFAULT_MODULE_ID]
