"""Sends weights from the learner group to the engines, and proves that they arrived.

A push never waits: env-runners take the weights between two requests. The proof: engine and trainer must give the same
log-probs to a fixed probe. It is a text, for log-probs of random tokens are the ones that half precision gets most wrong. It is due after the first push, after the first push of changed weights, and after a restart
of an env-runner. (A checksum would prove less: an engine may keep weights in the layout of its kernels.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.packed_weights import PackedWeights

logger = logging.getLogger(__name__)

WEIGHTS_TAG = "tppo_weights"
LONGEST_PROBE = 96
SHORTEST_PROBE = 16
"""Tokens of a probe; the mean over fewer says little."""
DELIVERY_TIMEOUT_S = 300.0
_PROBE = (
    "A train leaves the station at 9:40 and covers 126 km at 84 km/h. How many minutes does it need, and when does it arrive? "
    "Think step by step: 126 / 84 = 1.5 hours, which is 90 minutes, so it arrives at 11:10."
)
LARGEST_PROBE_DIFF = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Mean absolute difference of log-probs on the probe, nats, above which the engine does not hold the trainer's weights."""
_LIKELY = -1.0
"""Log-prob of the probe's tokens that count. Half precision rounds large logits: on SmolLM2-135M in bfloat16 likely tokens differ
by 0.01 nats on average, unlikely ones by 0.1 and more."""
_FEWEST_LIKELY = 8
"""Likely tokens that a probe must have; with fewer all of its tokens count."""


class LogProbDiff(NamedTuple):
    """|trainer - engine| of log-probs over some tokens, nats."""

    mean: float
    largest: float


def probe_tokens(chat: Chat, longest: int) -> list[int]:
    """Returns a text in the form of a prompt, or random tokens if the vocabulary has no words for it.

    Args:
        chat: Formats the text.
        longest: Most tokens that an engine can score.
    """
    text = chat.prompt(_PROBE)[: min(LONGEST_PROBE, longest)]
    if len(text) >= SHORTEST_PROBE and len(set(text)) > SHORTEST_PROBE / 2:
        return text
    return [int(token) for token in np.random.default_rng(0).integers(0, chat.vocabulary_size, 2 * SHORTEST_PROBE)]


class WeightSync:
    """Sends weights to env-runners.

    It alone owns the trainer's policy version: the number of updates that made the weights of the last push.

    Args:
        learner_group: RLlib's LearnerGroup, where the weights come from.
        group: RLlib's EnvRunnerGroup.
        dtype: Dtype of the models; it decides how large a difference on the probe is a fault.
        probe: Tokens on which trainer and engines are compared, see `probe_tokens`.
        first_change: First version whose weights differ from those of the start; the proof is due after its push.
    """

    def __init__(
        self, learner_group: Any, group: Any, *, dtype: str, probe: Sequence[int], first_change: int = 1
    ) -> None:
        self.version = 0
        self._first_change = first_change
        self._proof_is_due = True
        self._learner_group = learner_group
        self._group = group
        self._largest_diff = LARGEST_PROBE_DIFF[dtype]
        self._probe = list(probe)
        self._undelivered: set[int] = set()
        self._state: dict[str, Any] = {}

    def push_and_verify(self) -> float | None:
        """Sends the learners' weights, and proves that they arrived if a proof is due.

        It is due after the first push, after the first push of weights that differ from those of the start, and after an
        env-runner's restart.

        Returns:
            The largest mean difference on the probe over all engines, nats; None if no proof was due.

        Raises:
            RuntimeError: as `verify`.
        """
        self.push()
        if not (self._proof_is_due or self.version == self._first_change):
            return None
        return self.verify()

    def revive(self, env_runner: int) -> None:
        """Sends the newest weights to an env-runner that was restarted; the proof waits for the next push.

        It waits because an update may be under way, which changes the trainer's weights.
        """
        self.deliver(env_runner)
        self._proof_is_due = True

    def push(self) -> None:
        """Sends the learners' weights to all env-runners and takes over their policy version."""
        state = self._learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        self.version = int(state[WEIGHTS_SEQ_NO])
        remote = self._group.healthy_env_runner_ids()
        if remote:
            packed = PackedWeights.pack(state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID])
            self._state = {COMPONENT_RL_MODULE: ray.put(packed), WEIGHTS_SEQ_NO: self.version}
            self._undelivered = set(remote)
            self.deliver()
        elif self._group.local_env_runner is not None:
            self._group.local_env_runner.set_state(state)

    def deliver(self, env_runner: int | None = None) -> None:
        """Sends the newest weights to the env-runners that have not got them, and to `env_runner`, if it is given."""
        if env_runner is not None:
            self._undelivered.add(env_runner)
        self._group.fetch_ready_async_reqs(tags=WEIGHTS_TAG, timeout_seconds=0.0)
        if not self._undelivered:
            return
        for target in sorted(self._undelivered & set(self._group.healthy_env_runner_ids())):
            if self._group.foreach_env_runner_async(
                "set_state", tag=WEIGHTS_TAG, kwargs={"state": self._state}, remote_worker_ids=[target]
            ):
                self._undelivered.discard(target)

    def verify(self) -> float:
        """Compares the probe's log-probs of every engine with the trainer's and returns the largest mean difference, nats.

        Call it after a push and before the next update begins: an update changes the trainer's weights.

        Raises:
            RuntimeError: an engine does not hold the trainer's weights, or did not take them in time.
            Exception: the error of an engine that could not start or could not take the weights.
        """
        self.wait_until_delivered()
        (expected,) = self._log_probs_of_trainer([self._probe], temperature=1.0)
        if env_runners := self._group.healthy_env_runner_ids():
            scores = self._group.foreach_env_runner(
                "score",
                kwargs={"tokens": self._probe},
                remote_worker_ids=env_runners,
                local_env_runner=False,
                timeout_seconds=None,
            )
        else:
            env_runners = [0]
            scores = [self._group.local_env_runner.score(self._probe)]
        for score in scores:
            if isinstance(score, Exception):
                raise score
        if not scores:
            raise RuntimeError(
                f"weight sync failed: none of the env-runners {env_runners} answered; all were lost meanwhile"
            )
        counts = expected > _LIKELY
        if counts.sum() < _FEWEST_LIKELY:
            counts = np.ones_like(counts)
        difference = max(float(np.abs(score - expected)[counts].mean()) for score in scores)
        if not difference <= self._largest_diff:
            raise RuntimeError(
                f"weight sync failed: engine and trainer differ by {difference:.2e} nats on average over "
                f"{counts.sum()} tokens of a probe (largest allowed: {self._largest_diff:.0e}); the engine samples from other weights than are trained"
            )
        # One that was lost meanwhile gets the weights again when it is back, and has to prove them then.
        self._proof_is_due = len(scores) < len(env_runners)
        return difference

    def wait_until_delivered(self) -> None:
        """Waits until every healthy env-runner has been sent the newest weights; its next requests then use them.

        Raises:
            RuntimeError: an env-runner took none for `DELIVERY_TIMEOUT_S`.
        """
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while self._undelivered & set(self._group.healthy_env_runner_ids()):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"env-runners {sorted(self._undelivered)} took no weights for {DELIVERY_TIMEOUT_S:.0f} s"
                )
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
        return list(self._learner_group.foreach_learner(score).result_or_errors[0].get())


def _log_probs_on_learner(learner: Any, *, sequences: Sequence[Sequence[int]], temperature: float) -> list[np.ndarray]:
    """Returns log-probs of all tokens of each sequence but the first, by a plain forward pass without any training code."""
    policy = learner.module[DEFAULT_MODULE_ID].policy
    results = []
    for tokens in sequences:
        ids = torch.tensor([tokens], device=policy.device)
        with torch.no_grad():
            logits = policy.logits(ids)[0, :-1].float() / temperature
        results.append(logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1).cpu().numpy())
    return results
