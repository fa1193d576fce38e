"""The open episode of a slot: its context so far, and the window that is being filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tppo_rl.core.begun_episodes import BegunEpisode, next_window
from tppo_rl.core.fragments import NO_VERSION, Fragment
from tppo_rl.core.prompts import Ticket


@dataclass
class Window:
    """Tokens since the episode's last fragment; lists have one entry for each token."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Policy version of each token; `NO_VERSION` for environment text."""
    rewards: dict[int, float] = field(default_factory=dict)
    """Rewards by index in `tokens`; nearly all tokens have none."""
    num_sampled: int = 0
    oldest_version: int | None = None
    """Oldest policy version of a sampled token; an episode may go on with an engine whose weights are older."""


class OpenEpisode:
    """An episode that is being generated.

    Args:
        ticket: identity and seed of the episode.
        prompt: token ids of the formatted prompt.
        env_runner: index of the env-runner.
        first_version: policy version at which it begins.
        answer: token ids of the known answer, for a critic that sees it.
    """

    def __init__(
        self, ticket: Ticket, prompt: Sequence[int], env_runner: int, first_version: int, answer: Sequence[int] = ()
    ) -> None:
        self.ticket = ticket
        self.first_version = first_version
        self.turn_tokens: list[int] = []
        self.response_length = 0
        self._env_runner = env_runner
        self._prompt_length = len(prompt)
        self._context = np.asarray(prompt, np.int32)
        self._context_sampled = np.zeros(len(prompt), np.uint8)
        self._context_rewards = np.zeros(len(prompt), np.float32)
        self._window = Window()
        self._window_index = 0
        self._answer = np.asarray(answer, np.int32)

    @classmethod
    def going_on(cls, ticket: Ticket, begun: BegunEpisode, env_runner: int, version: int) -> OpenEpisode:
        """Returns an episode that goes on where it was.

        Args:
            ticket: Of the episode.
            begun: The episode so far.
            env_runner: Index of the env-runner in which it goes on.
            version: Policy version at which it goes on.
        """
        window = begun.window
        episode = cls(ticket, window.context[: window.prompt_length].tolist(), env_runner, version)
        episode._answer = window.answer
        episode._context = window.context
        episode._context_sampled = window.context_sampled
        episode._context_rewards = window.context_rewards
        versions = window.versions.tolist()
        episode._window = Window(
            tokens=window.tokens.tolist(),
            log_probs=window.behavior_log_probs.tolist(),
            versions=versions,
            rewards={int(index): float(window.rewards[index]) for index in np.flatnonzero(window.rewards)},
            num_sampled=len(window),
            oldest_version=begun.oldest_version,
        )
        episode._window_index = window.window_index
        response = np.concatenate([window.context[window.prompt_length :], window.tokens])
        sampled = np.concatenate([window.context_sampled[window.prompt_length :], window.sampled])
        others = np.flatnonzero(sampled == 0)
        episode.turn_tokens = response[others[-1] + 1 if len(others) else 0 :].tolist()
        episode.response_length = len(response)
        return episode

    @property
    def open_tokens(self) -> int:
        """Sampled tokens that no fragment holds yet."""
        return self._window.num_sampled

    @property
    def oldest_open_version(self) -> int | None:
        """Oldest policy version among the open tokens; None if there are none."""
        return self._window.oldest_version

    def add_sampled(self, token: int, log_prob: float, version: int) -> int:
        """Appends a token that the policy sampled; returns the number of sampled tokens in the window."""
        window = self._window
        window.tokens.append(token)
        window.log_probs.append(log_prob)
        window.versions.append(version)
        window.num_sampled += 1
        if window.oldest_version is None or version < window.oldest_version:
            window.oldest_version = version
        self.turn_tokens.append(token)
        self.response_length += 1
        return window.num_sampled

    def add_environment_text(self, tokens: Sequence[int]) -> None:
        """Appends text that the environment returned between turns; it is context and never trained."""
        window = self._window
        window.tokens.extend(tokens)
        window.log_probs.extend([0.0] * len(tokens))
        window.versions.extend([NO_VERSION] * len(tokens))
        self.response_length += len(tokens)
        self.turn_tokens = []

    def add_reward(self, reward: float) -> None:
        """Adds a reward to the last token, which must be a sampled one."""
        last = len(self._window.tokens) - 1
        self._window.rewards[last] = self._window.rewards.get(last, 0.0) + reward

    def sampled_tokens(self) -> list[int]:
        """Returns the response tokens that the policy sampled."""
        earlier = self._context[self._context_sampled.astype(bool)].tolist()
        versions = zip(self._window.tokens, self._window.versions, strict=True)
        return [*earlier, *(token for token, version in versions if version != NO_VERSION)]

    def all_tokens(self) -> list[int]:
        """Returns the prompt and all tokens after it, from which an engine can go on."""
        return [*self._context.tolist(), *self._window.tokens]

    def close_window(
        self, *, terminated: bool = False, truncated: bool = False, correct: bool | None = None
    ) -> Fragment:
        """Returns the window as a fragment and begins the next one."""
        fragment = self.window_so_far(terminated=terminated, truncated=truncated, correct=correct)
        following = next_window(fragment)
        self._context = following.context
        self._context_sampled = following.context_sampled
        self._context_rewards = following.context_rewards
        self._window = Window()
        self._window_index += 1
        return fragment

    def window_so_far(
        self, *, terminated: bool = False, truncated: bool = False, correct: bool | None = None
    ) -> Fragment:
        """Returns the window as it is now; it stays open."""
        window = self._window
        versions = np.array(window.versions, np.int32)
        rewards = np.zeros(len(window.tokens), np.float32)
        for index, reward in window.rewards.items():
            rewards[index] = reward
        return Fragment(
            episode_id=self.ticket.episode_id,
            prompt_index=self.ticket.prompt_index,
            env_runner=self._env_runner,
            window_index=self._window_index,
            prompt_length=self._prompt_length,
            context=self._context,
            context_sampled=self._context_sampled,
            context_rewards=self._context_rewards,
            tokens=np.array(window.tokens, np.int32),
            sampled=(versions != NO_VERSION).astype(np.uint8),
            behavior_log_probs=np.array(window.log_probs, np.float32),
            versions=versions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            correct=correct,
            answer=self._answer,
        )
