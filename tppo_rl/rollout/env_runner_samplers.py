"""The samplers of an env-runner: one that trains, and one for each temperature of its evaluations, all on its engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium

from tppo_rl.config.options import Options
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Engine, Sampling
from tppo_rl.rollout.pooled_sampler import PooledSampler
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.scoring_pool import ScoringPool

_EVALUATION = -1
"""Value of `env_runner` in fragments of evaluations, which no ledger counts."""


class EnvRunnerSamplers:
    """Makes the samplers of one env-runner.

    Args:
        options: Of the run.
        engine: That all of them share.
        pool: Scoring workers that all of them share; None: environments and rewards run here.
        chat: Of the run.
        make_env: Makes an environment of a split.
        alive: Called by samplers whenever they have done something.
    """

    def __init__(
        self,
        options: Options,
        engine: Engine,
        pool: ScoringPool | None,
        chat: Chat,
        make_env: Callable[[str], gymnasium.Env],
        alive: Callable[[], None],
    ) -> None:
        self._options = options
        self._engine = engine
        self._pool = pool
        self._chat = chat
        self._make_env = make_env
        self._alive = alive

    def training(self, env_runner: int) -> Sampler:
        """Returns a sampler of training episodes.

        Args:
            env_runner: Index of the env-runner.
        """
        options = self._options
        return self._made(
            name="train",
            split="train",
            num_slots=options.rollout.num_envs_per_env_runner,
            limits=self._limits(options.rollout.window),
            sampling=Sampling(options.rollout.sampling.temperature),
            rewards=Rewards.of(options, calls=self._pool is None, on_call=lambda _: self._alive()),
            env_runner=env_runner,
            tells_answers=options.critic.critic_sees_answer,
        )

    def evaluation(self, temperature: float) -> Sampler:
        """Returns a sampler of whole held-out episodes at a temperature; 0 is greedy."""
        rollout = self._options.rollout
        return self._made(
            name=f"evaluation-{temperature}",
            split="heldout",
            # All held-out prompts are there at once, so they can fill all slots of the engine.
            num_slots=int(rollout.engine.arguments.get("max_num_seqs", rollout.num_envs_per_env_runner)),
            limits=self._limits(None),
            sampling=Sampling(temperature),
            rewards=Rewards.of_evaluation(),
            env_runner=_EVALUATION,
        )

    def _limits(self, window_length: int | None) -> EpisodeLimits:
        rollout = self._options.rollout
        return EpisodeLimits(rollout.max_prompt_length, rollout.max_response_length, window_length)

    def _made(self, *, split: str, **arguments: Any) -> Sampler:
        arguments["alive"] = self._alive
        if self._pool is None:
            return Sampler(self._engine, partial(self._make_env, split), self._chat, **arguments)
        answers_all = split == "heldout"
        return PooledSampler(self._engine, self._pool, self._chat, split=split, answers_all=answers_all, **arguments)
