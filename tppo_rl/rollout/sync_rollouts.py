"""The rollout controller of synchronous runs: every env-runner is asked once, and all wait for the last one.

                waits for                                   unblocked by
env-runner      a request                                   the update, and its weights
a step          the answers of all healthy env-runners      their engine steps; the loss of an env-runner
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.core.waiting import stage, stop_here
from tppo_rl.rollout.controller import SAMPLE_TAG, RolloutController
from tppo_rl.rollout.rllib_internals import fetch_ready
from tppo_rl.rollout.sample_result import SampleResult


class SyncRollouts(RolloutController):
    """Samples for one update at a time; arguments are those of `RolloutController`."""

    def one_window(self) -> list[Fragment]:
        """Lets every slot of every env-runner generate one window, cut at the end, and returns all fragments (sync)."""
        self._one_step(
            lambda env_runner, _: self._tickets_for(env_runner, self._window),
            {"num_engine_steps": self._window, "cut_windows": True},
        )
        return self._backlog.pop_all()

    def whole_responses(self, num_episodes: int) -> list[Fragment]:
        """Lets the env-runners generate whole episodes, divided evenly among them, and returns them (sync).

        Args:
            num_episodes: Number of episodes; those of an env-runner that is lost meanwhile do not come back.
        """

        def tickets(env_runner: int, env_runners: list[int]) -> list[Ticket]:
            place = env_runners.index(env_runner)
            return self.ledger.lease(env_runner, len(range(place, num_episodes, len(env_runners))))

        self._one_step(tickets, {"num_engine_steps": None})
        return self._backlog.pop_all()

    def ended_responses(self) -> list[Fragment]:
        """Samples until an update may begin, and returns responses that have ended; the others stay open (sync).

        Raises:
            StageCut: the user stops the run; what was sampled stays in the queue.
        """
        with stage("sampling", total=self._batch_tokens, unit="tokens", cut="soon", part="update") as sampling:
            self._backlog.drop_too_old(self._weights.version)
            while not self._may_update():
                self._one_step(self._tickets_of_step, {"num_engine_steps": self._engine_steps}, until_tokens=False)
                sampling.advance(min(self.queue.num_tokens, self._batch_tokens))
                stop_here()
        return self._pop_batch()

    def _one_step(
        self,
        tickets: Callable[[int, list[int]], list[Ticket]],
        arguments: dict[str, Any],
        *,
        until_tokens: bool = True,
    ) -> None:
        """Asks every env-runner once, waits for all of them, and puts their fragments into the train queue.

        Args:
            tickets: Gives the tickets of an env-runner, from its index and the indices of all env-runners that are asked.
            arguments: Further arguments of `sample`.
            until_tokens: Whether to ask again where there is nothing to train.
        """
        if self._group.num_remote_env_runners() == 0:
            again = not until_tokens or self.queue.num_tokens == 0
            while again:
                given = tickets(0, [0])
                self._requests[0].requests.append(given)
                result = self._group.local_env_runner.sample(tickets=given, draw=self.ledger.draw(), **arguments)
                self.ingest(0, result)
                # Where all was left out or failed, there is nothing to train, as there is with remote env-runners.
                left_out = bool(result.scores.left_out or result.scores.failed_prompts)
                again = until_tokens and self.queue.num_tokens == 0 and left_out
        else:
            self._one_remote_step(tickets, arguments, until_tokens)

    def _one_remote_step(
        self,
        tickets: Callable[[int, list[int]], list[Ticket]],
        arguments: dict[str, Any],
        until_tokens: bool,
    ) -> None:
        waiting = Counter[int]()
        answers: dict[int, SampleResult] = {}
        answered = False
        last_healthy = time.monotonic()
        while waiting.total() > 0 or (self.queue.num_tokens == 0 if until_tokens else not answered):
            healthy = self._group.healthy_env_runner_ids()
            if waiting.total() == 0:
                for env_runner in healthy:
                    waiting[env_runner] += self._request(env_runner, tickets(env_runner, healthy), arguments)
            for env_runner, result in fetch_ready(self._group, SAMPLE_TAG, 0.05):
                waiting[env_runner] = 0
                answers[env_runner] = result
            self._weights.check_learners()
            self._replace_hung(but=answers)
            self._replace_absent()
            self._forget_lost_env_runners(but=answers)
            for env_runner in set(waiting) - set(self._group.healthy_env_runner_ids()):
                del waiting[env_runner]
            if waiting.total() == 0:
                # In the order of the env-runners: sums over a batch in another order are other numbers.
                answered = answered or bool(answers)
                for env_runner in sorted(answers):
                    self.ingest(env_runner, answers.pop(env_runner))
            if self._group.healthy_env_runner_ids():
                last_healthy = time.monotonic()
            else:
                self._wait_for_health(last_healthy)

    def _tickets_of_step(self, env_runner: int, _: list[int]) -> list[Ticket]:
        """Leases tickets for a synchronous request; where nothing may stay open, as many as there are slots, when all have ended."""
        if self._max_staleness:
            return self._tickets_for(env_runner, self._engine_steps)
        return [] if self.ledger.num_leased(env_runner) else self.ledger.lease(env_runner, self._num_slots)
