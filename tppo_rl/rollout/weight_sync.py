"""Sends weights from the learner group to the engines, and proves that they arrived.

A push never waits: env-runners take the weights between two requests. What it sends them is a reference to Ray's object store, where
the first learner has put the weights, or that learner's offer to broadcast them (`tppo_rl.rollout.weight_broadcast`).

The proof is due after the first push, after the first push of changed weights, and after a restart of an env-runner; what it asks for
stands in `tppo_rl.rollout.weight_proof`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.asking import ask_all, replace_hung
from tppo_rl.rollout.event_log import WEIGHTS, EventLog
from tppo_rl.rollout.heartbeats import Heartbeats
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.rllib_internals import healthy_remote, requests_in_flight
from tppo_rl.rollout.weight_broadcast import Offer, sender_of
from tppo_rl.rollout.weight_proof import WeightProof

logger = logging.getLogger(__name__)

WEIGHTS_TAG = "tppo_weights"
_LOOK_EVERY_S = 5.0


class LogProbDiff(NamedTuple):
    """|trainer - engine| of log-probs over some tokens, nats."""

    mean: float
    largest: float


class _NobodyAnswered(ProcessDied):
    """All env-runners were lost while they were asked."""


class WeightSync:
    """Sends weights to env-runners.

    It alone owns the trainer's policy version: the number of updates that made the weights of the last push.

    Args:
        learner_group: RLlib's LearnerGroup, where the weights come from.
        group: RLlib's EnvRunnerGroup.
        proof: Says what difference on the probe is a fault.
        probe: Tokens on which trainer and engines are compared, see `probe_tokens`.
        dtype: Number format in which engines hold weights; None: the learners'.
        timeout_s: See `WeightSender`.
        silence_s: Seconds without a sign of life after which an env-runner is started anew.
        events: Is told to whom weights are sent; None: nobody is.
        transport: "object_store" or "broadcast", the way of weights to env-runners that are actors.
    """

    def __init__(
        self,
        learner_group: Any,
        group: Any,
        *,
        proof: WeightProof,
        probe: Sequence[int],
        dtype: torch.dtype | None = None,
        timeout_s: float = 300.0,
        silence_s: float = 300.0,
        events: EventLog | None = None,
        transport: str = "object_store",
    ) -> None:
        self.version = 0
        self._transport = transport
        self._events = events or EventLog()
        self._first_change = 1
        """First version whose weights differ from those of the start; the proof is due after its push."""
        self._proof_is_due = True
        self._dtype = dtype
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._learner_group = learner_group
        self._group = group
        self._proof = proof
        self._probe = list(probe)
        self._looked = time.monotonic()
        self._undelivered: set[int] = set()
        self._missed: set[int] = set()
        """Env-runners that could not be asked at a push, and have got no weights since."""
        self._state: dict[str, Any] = {}
        self._offers: defaultdict[int, list[int]] = defaultdict(list)
        """Numbers of the offers that were sent to an env-runner, as far as it may not have taken them yet."""

    def measure_control(self) -> None:
        """Takes the difference on the probe while trainer and engines hold the weights that they started with, where it is needed.

        Call it before the first push.

        Raises:
            RunError: it is so large that the two do not compute the same model.
            Exception: the error of an engine that could not start.
        """
        if self._proof.needs_control:
            (expected,) = self._log_probs_of_trainer([self._probe], temperature=1.0)
            self._proof.take_control(expected, self._scores())

    def push_and_verify(self) -> float | None:
        """Sends the learners' weights, and proves that they arrived if a proof is due.

        It is due after the first push, after the first push of weights that differ from those of the start, again after 2, 4,
        8, … updates, until they have moved log-probs far enough, and after an env-runner's restart.

        Returns:
            The largest mean difference on the probe over all engines, nats; None if no proof was due, or if all env-runners
            were lost meanwhile: it is then due after the next push.

        Raises:
            RunError: as `verify`.
        """
        self.push()
        # Where an update moves log-probs by next to nothing, the proof waits until many have.
        again = not self._proof.is_decided and self.version > self._first_change and _is_power_of_two(self.version)
        if not (self._proof_is_due or self.version == self._first_change or again):
            return None
        try:
            return self.verify()
        except _NobodyAnswered:
            # Whoever samples waits for env-runners, and gives up after a time.
            self._proof_is_due = True
            return None

    def expect_no_change(self) -> None:
        """Is told that the next push has the weights of the last one, because the policy is frozen: the proof waits for a later one."""
        self._first_change = self.version + 2

    def revive(self, env_runner: int) -> None:
        """Sends the newest weights to an env-runner that was restarted; the proof waits for the next push.

        It waits because an update may be under way, which changes the trainer's weights.
        """
        self.deliver(env_runner)
        self._proof_is_due = True

    def check_learners(self) -> None:
        """Looks every few seconds whether all learners are there: an env-runner that needs their weights would wait for ever.

        Raises:
            LearnerDied: one is gone.
        """
        if time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._learner_group.check_alive()

    def push(self) -> None:
        """Sends the learners' weights to all env-runners and takes over their policy version."""
        remote = healthy_remote(self._group)
        publish: Callable[[Any], dict[str, Any]] = partial(_publish, dtype=self._dtype, to_store=remote is not None)
        if remote is not None and self._transport == "broadcast":
            publish = partial(_offer, dtype=self._dtype, oldest=self._oldest_offer(), timeout_s=self._timeout_s)
        state = self._learner_group.ask_first(publish)
        self.version = int(state[WEIGHTS_SEQ_NO])
        if remote is not None:
            self._state = state
            # One that does not answer for a while, and was not restarted, would sample on with old weights afterwards.
            self._undelivered = set(range(1, 1 + self._group.num_remote_env_runners()))
            self._missed |= self._undelivered.difference(remote)
            self.deliver()
        elif self._group.local_env_runner is not None:
            self._group.local_env_runner.set_state(state)

    def deliver(self, env_runner: int | None = None) -> None:
        """Sends the newest weights to the env-runners that have not got them, and to `env_runner`, if it is given."""
        if env_runner is not None:
            self._undelivered.add(env_runner)
        for target in sorted(self._undelivered & set(self._group.healthy_env_runner_ids())):
            if self._send(target):
                self._undelivered.discard(target)
                if target in self._missed:
                    self._missed.discard(target)
                    self._proof_is_due = True

    def _send(self, target: int) -> bool:
        """Sends the newest weights to an env-runner, if RLlib takes one more request for it."""
        assert int(self._state[WEIGHTS_SEQ_NO]) == self.version, "weights that are sent are not the newest"
        self._group.fetch_ready_async_reqs(tags=WEIGHTS_TAG, timeout_seconds=0.0)
        sent = self._group.foreach_env_runner_async(
            "set_state", tag=WEIGHTS_TAG, kwargs={"state": self._state}, remote_worker_ids=[target]
        )
        if sent:
            self._events.note(WEIGHTS, target)
            weights = self._state[COMPONENT_RL_MODULE]
            if isinstance(weights, Offer):
                self._offers[target].append(weights.number)
        return bool(sent)

    def _oldest_offer(self) -> int | None:
        """Returns the number of the oldest offer that an env-runner may still ask for."""
        self._group.fetch_ready_async_reqs(tags=WEIGHTS_TAG, timeout_seconds=0.0)
        # Env-runners take weights in the order in which they were sent. RLlib forgets the requests of one that is lost.
        open_requests = requests_in_flight(self._group, WEIGHTS_TAG) or Counter()
        for env_runner, numbers in self._offers.items():
            del numbers[: max(0, len(numbers) - open_requests[env_runner])]
        return min((numbers[0] for numbers in self._offers.values() if numbers), default=None)

    def verify(self) -> float:
        """Compares the probe's log-probs of every engine with the trainer's and returns the largest mean difference, nats.

        Call it after a push and before the next update begins: an update changes the trainer's weights.

        Raises:
            RunError: an engine does not hold the trainer's weights.
            Exception: the error of an engine that could not start or could not take the weights.
        """
        self.wait_until_delivered()
        (expected,) = self._log_probs_of_trainer([self._probe], temperature=1.0)
        scores = self._scores()
        difference = self._proof.check(expected, scores)
        # One that was lost meanwhile gets the weights again when it is back, and has to prove them then.
        self._proof_is_due = len(scores) < self._num_engines()
        return difference

    def _num_engines(self) -> int:
        remote = healthy_remote(self._group)
        return 1 if remote is None else len(remote)

    def _scores(self) -> list[np.ndarray]:
        """Returns the log-probs that the engines give to the probe.

        Raises:
            RunError: none answered.
            Exception: the error of an engine.
        """
        env_runners = healthy_remote(self._group)
        if env_runners is not None:
            answers = ask_all(self._group, "score", env_runners, self._silence_s, tokens=self._probe)
        else:
            answers = [self._group.local_env_runner.score(self._probe)]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        if not answers:
            raise _NobodyAnswered(
                f"weight sync failed: none of the env-runners {env_runners} answered; all were lost meanwhile"
            )
        return list(answers)

    def wait_until_delivered(self) -> None:
        """Waits until every healthy env-runner has been sent the newest weights; its next requests then use them.

        One that hangs is started anew, and gets them when it is back.
        """
        heartbeats = Heartbeats(self._group, self._silence_s)
        while late := self._undelivered.intersection(self._group.healthy_env_runner_ids()):
            self._missed.update(replace_hung(self._group, heartbeats, late))
            self.deliver()
            time.sleep(0.01)

    def difference_on(self, episodes: Sequence[Fragment], temperature: float) -> LogProbDiff:
        """Compares the trainer's log-probs with those of the engine over whole episodes that the newest weights sampled."""
        sequences = [np.concatenate([episode.context, episode.tokens]).tolist() for episode in episodes]
        differences = []
        for episode, log_probs in zip(episodes, self._log_probs_of_trainer(sequences, temperature), strict=True):
            sampled = episode.sampled.astype(bool)
            differences.append(np.abs(log_probs[-len(episode.tokens) :] - episode.behavior_log_probs)[sampled])
        every = np.concatenate(differences)
        return LogProbDiff(float(every.mean()), float(every.max()))

    def _log_probs_of_trainer(self, sequences: Sequence[Sequence[int]], temperature: float) -> list[np.ndarray]:
        score = partial(_log_probs_on_learner, sequences=sequences, temperature=temperature)
        return list(self._learner_group.ask(score)[0])


def _publish(learner: Any, *, dtype: torch.dtype | None, to_store: bool) -> dict[str, Any]:
    """Returns the learner's policy and its version, for `set_state` of env-runners.

    Weights go into Ray's object store from here, so that they do not pass through the driver.

    Args:
        learner: A TPPOLearner that has the policy's whole weights.
        dtype: See `WeightSync`.
        to_store: Whether env-runners are other processes; else these are the weights themselves.
    """
    state = learner.get_state(components=COMPONENT_RL_MODULE, inference_only=True)
    weights = state[COMPONENT_RL_MODULE]
    if to_store:
        packed = PackedWeights.pack(
            weights[DEFAULT_MODULE_ID], dtype, float32=learner.module[DEFAULT_MODULE_ID].kept_in_float32
        )
        weights = ray.put(packed)
    return {COMPONENT_RL_MODULE: weights, WEIGHTS_SEQ_NO: state[WEIGHTS_SEQ_NO]}


def _offer(learner: Any, *, dtype: torch.dtype | None, oldest: int | None, timeout_s: float) -> dict[str, Any]:
    """Returns an offer of the learner's policy and its version, for `set_state` of env-runners.

    Args:
        learner: See `_publish`.
        dtype: See `WeightSync`.
        oldest: See `WeightSender.offer`.
        timeout_s: See `WeightSender`.
    """
    state = learner.get_state(components=COMPONENT_RL_MODULE, inference_only=True)
    arrays = state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    sender = sender_of(learner, ray.util.get_node_ip_address(), timeout_s)
    offer = sender.offer(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        dtype,
        float32=learner.module[DEFAULT_MODULE_ID].kept_in_float32,
        oldest=oldest,
    )
    return {COMPONENT_RL_MODULE: offer, WEIGHTS_SEQ_NO: state[WEIGHTS_SEQ_NO]}


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _log_probs_on_learner(learner: Any, *, sequences: Sequence[Sequence[int]], temperature: float) -> list[np.ndarray]:
    """Returns log-probs of all tokens of each sequence but the first.

    The logits of a long sequence are never there at once (see `Policy.forward`).
    """
    policy = learner.module[DEFAULT_MODULE_ID].policy
    results = []
    for tokens in sequences:
        ids = torch.tensor([tokens], device=policy.device)
        positions = torch.arange(len(tokens) - 1, device=policy.device)
        with torch.no_grad():
            found = policy(ids, torch.zeros_like(positions), positions, ids[0, 1:], temperature=temperature)
        results.append(found.log_probs.float().cpu().numpy())
    return results
