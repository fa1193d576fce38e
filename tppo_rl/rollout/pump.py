"""Keeps env-runners busy and brings their fragments home.

              tickets, engine steps
   Ledger ──────────────────────────▶ env-runner ─┐
     ▲                                            │ SampleResult (fragments, own counts)
     └──────────────── TrainQueue ◀───────────────┘

                waits for                                                  unblocked by
env-runner      a request (two are kept in flight); none is sent while     an update that takes from the queue,
                queue + requested >= max_staleness * batch tokens          or an update that waits for its windows
update          `batch()`: enough tokens, and no open window too old       results of requests
weights         nothing: sent after each update, applied between two       -
                requests (some tens of engine steps)
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.core.fragments import Fragment, fragments_from_table
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.env_runner import SampleResult
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.train_queue import TrainQueue, may_update, oldest_allowed_to_stay

logger = logging.getLogger(__name__)

SAMPLE_TAG = "tppo_sample"
REQUESTS_IN_FLIGHT = 2
"""Requests to an env-runner at a time: one that runs and one that waits, so that it is never idle between two."""


@dataclass
class RolloutStatistics:
    """Sums since the last `take_statistics()`."""

    slot_steps: int = 0
    productive_slot_steps: int = 0
    refills: int = 0
    sampling_seconds: float = 0.0
    idle_seconds: float = 0.0
    weight_seconds: float = 0.0
    fragments: list[Fragment] = field(default_factory=list)
    runner_metrics: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Runner:
    incarnation: str | None = None
    oldest_version: int = 0
    """No token that this env-runner holds or will sample is older."""
    waiting_tickets: int = 0
    requests: int = 0


class RolloutPump:
    """The driver's side of sampling.

    Args:
        group: RLlib's EnvRunnerGroup.
        ledger: books tokens and gives out prompts.
        queue: where fragments wait for an update.
        batch_tokens: B, sampled tokens of an update.
        max_staleness: eta, in policy versions.
        num_slots: slots of one env-runner.
        engine_steps: engine steps of one request.
        on_restart: called with an env-runner's index when it was found restarted; sends it weights.
        deliver_weights: sends weights again to env-runners that could not take them; an env-runner that keeps old
            weights would hold up every update.
        restore: tries to bring lost env-runners back (RLlib's `restore_env_runners`).
        patience_s: seconds without any healthy env-runner after which the run gives up.
    """

    def __init__(
        self,
        group: Any,
        ledger: Ledger,
        queue: TrainQueue,
        *,
        batch_tokens: int,
        max_staleness: int,
        num_slots: int,
        engine_steps: int,
        on_restart: Callable[[int], None],
        deliver_weights: Callable[[], None],
        restore: Callable[[], None],
        patience_s: float = 300.0,
    ) -> None:
        self._group = group
        self._ledger = ledger
        self._queue = queue
        self._batch_tokens = batch_tokens
        self._max_staleness = max_staleness
        self._num_slots = num_slots
        self._engine_steps = engine_steps
        self._on_restart = on_restart
        self._deliver_weights = deliver_weights
        self._restore = restore
        self._patience_s = patience_s
        self._runners: defaultdict[int, _Runner] = defaultdict(_Runner)
        self._statistics = RolloutStatistics()

    def turn(self, version: int, timeout_s: float) -> None:
        """Sends the requests that are due and takes the results that are ready, waiting for at most `timeout_s`."""
        self._forget_lost_env_runners()
        self._deliver_weights()
        self._send_requests(version)
        if self._num_requests() == 0:
            # Nothing to wait for, and a loop without a pause would keep a learner in this process from its work.
            time.sleep(timeout_s)
            return
        for env_runner, result in self._group.fetch_ready_async_reqs(tags=SAMPLE_TAG, timeout_seconds=timeout_s):
            self.take(env_runner, result)

    def batch(self, version: int) -> list[Fragment]:
        """Waits until an update at `version` may begin and returns its fragments.

        Raises:
            RuntimeError: no env-runner was healthy for `patience_s` seconds.
        """
        last_healthy = time.monotonic()
        while not self._may_update(version):
            self.turn(version, timeout_s=0.05)
            if self._group.num_healthy_remote_workers() > 0:
                last_healthy = time.monotonic()
            else:
                self._wait_for_health(last_healthy)
        stay = oldest_allowed_to_stay(version, self._max_staleness)
        return self._queue.take(self._batch_tokens, oldest_allowed_to_stay=stay)

    def one_window(self, window_length: int) -> list[Fragment]:
        """Lets every slot of every env-runner generate one window, cut at the end, and returns all fragments (sync)."""
        return self._one_step(
            lambda env_runner, _: self._tickets_for(env_runner, window_length),
            {"num_engine_steps": window_length, "cut_windows": True},
        )

    def whole_responses(self, num_episodes: int) -> list[Fragment]:
        """Lets the env-runners generate whole episodes, as many each as the others, and returns them (sync).

        Args:
            num_episodes: Of which those of an env-runner that is lost meanwhile do not come back.
        """

        def tickets(env_runner: int, env_runners: list[int]) -> list[Ticket]:
            place = env_runners.index(env_runner)
            count = len(range(place, num_episodes, len(env_runners)))
            self._runners[env_runner].waiting_tickets += count
            return self._ledger.lease(env_runner, count)

        return self._one_step(tickets, {"num_engine_steps": None})

    def take(self, env_runner: int, result: SampleResult) -> None:
        """Books one result.

        Raises:
            Exception: whatever went wrong in the env-runner.
        """
        runner = self._runners[env_runner]
        runner.requests = max(0, runner.requests - 1)
        if result.error is not None:
            raise result.error
        if runner.incarnation not in (None, result.incarnation):
            logger.warning(
                "env-runner %d was restarted; its open tokens are dropped, its prompts go out again", env_runner
            )
            self._ledger.lose_env_runner(env_runner)
        if result.version is None:
            runner.incarnation = result.incarnation
            runner.waiting_tickets = 0
            self._ledger.lose_env_runner(env_runner)
            self._on_restart(env_runner)
            return
        fragments = fragments_from_table(result.fragments)
        self._ledger.report(
            env_runner,
            fragments,
            num_tokens_sampled=result.num_tokens_sampled,
            num_open_tokens=result.num_open_tokens,
        )
        self._queue.push(fragments)
        runner.incarnation = result.incarnation
        runner.waiting_tickets = result.num_waiting_tickets
        runner.oldest_version = result.version if result.oldest_open_version is None else result.oldest_open_version
        self._count(result, fragments)

    def abandon(self) -> None:
        """Makes every env-runner drop its open episodes and discards what is under way; for a restored ledger."""
        if self._group.healthy_env_runner_ids():
            self._group.foreach_env_runner("abandon", local_env_runner=False, timeout_seconds=None)
            self._group.fetch_ready_async_reqs(tags=SAMPLE_TAG, timeout_seconds=1.0)
        elif self._group.local_env_runner is not None:
            self._group.local_env_runner.abandon()

    def take_statistics(self) -> RolloutStatistics:
        """Returns the sums since the last call."""
        statistics, self._statistics = self._statistics, RolloutStatistics()
        return statistics

    def _one_step(self, tickets: Callable[[int, list[int]], list[Ticket]], arguments: dict[str, Any]) -> list[Fragment]:
        """Asks every env-runner once, waits for all of them, and returns what they sampled.

        Args:
            tickets: Of an env-runner, given its index and those of all that are asked.
            arguments: Of `sample`.
        """
        if self._group.num_remote_env_runners() == 0:
            self.take(0, self._group.local_env_runner.sample(tickets=tickets(0, [0]), **arguments))
        else:
            self._one_remote_step(tickets, arguments)
        return self._queue.take(self._queue.num_tokens, oldest_allowed_to_stay=0)

    def _one_remote_step(self, tickets: Callable[[int, list[int]], list[Ticket]], arguments: dict[str, Any]) -> None:
        waiting = Counter[int]()
        last_healthy = time.monotonic()
        while waiting.total() > 0 or self._queue.num_tokens == 0:
            healthy = self._group.healthy_env_runner_ids()
            if waiting.total() == 0:
                for env_runner in healthy:
                    waiting[env_runner] += self._request(env_runner, tickets(env_runner, healthy), arguments)
            for env_runner, result in self._group.fetch_ready_async_reqs(tags=SAMPLE_TAG, timeout_seconds=0.05):
                waiting[env_runner] = 0
                self.take(env_runner, result)
            self._forget_lost_env_runners()
            for env_runner in set(waiting) - set(self._group.healthy_env_runner_ids()):
                del waiting[env_runner]
            if self._group.healthy_env_runner_ids():
                last_healthy = time.monotonic()
            else:
                self._wait_for_health(last_healthy)

    def _send_requests(self, version: int) -> None:
        healthy = self._group.healthy_env_runner_ids()
        blocking = set(self._blocking(version, healthy))
        tokens_of_request = self._num_slots * self._engine_steps
        limit = self._max_staleness * self._batch_tokens
        # Summed up once: a sum for each env-runner would make a turn quadratic in their number.
        expected = self._queue.num_tokens + self._num_requests() * tokens_of_request
        for env_runner in healthy:
            runner = self._runners[env_runner]
            while runner.requests < REQUESTS_IN_FLIGHT and (expected < limit or env_runner in blocking):
                requests = runner.requests
                sent = self._request(
                    env_runner,
                    self._tickets_for(env_runner, self._engine_steps),
                    {"num_engine_steps": self._engine_steps},
                )
                expected += (runner.requests - requests) * tokens_of_request
                if not sent:
                    break

    def _request(self, env_runner: int, tickets: list[Ticket], arguments: dict[str, Any]) -> int:
        sent = self._group.foreach_env_runner_async(
            "sample",
            tag=SAMPLE_TAG,
            kwargs=arguments | {"tickets": tickets},
            remote_worker_ids=[env_runner],
        )
        if sent:
            self._runners[env_runner].requests += 1
        else:
            self._ledger.give_back(env_runner, tickets)
            self._runners[env_runner].waiting_tickets -= len(tickets)
            self._runners[env_runner].requests = REQUESTS_IN_FLIGHT
        return int(sent)

    def _tickets_for(self, env_runner: int, engine_steps: int) -> list[Ticket]:
        """Enough for every slot to begin a new episode at every engine step, so that none is ever idle."""
        runner = self._runners[env_runner]
        missing = self._num_slots * (engine_steps + 1) - runner.waiting_tickets
        if missing <= 0:
            return []
        runner.waiting_tickets += missing
        return self._ledger.lease(env_runner, missing)

    def _num_requests(self) -> int:
        return sum(runner.requests for runner in self._runners.values())

    def _blocking(self, version: int, env_runners: Iterable[int]) -> list[int]:
        """Those of the env-runners whose open windows must close before an update at `version`."""
        oldest = oldest_allowed_to_stay(version, self._max_staleness)
        return [env_runner for env_runner in env_runners if self._runners[env_runner].oldest_version < oldest]

    def _may_update(self, version: int) -> bool:
        """Whether there are tokens for an update at `version` and no open window would be too old after it."""
        if self._queue.num_tokens < self._batch_tokens:
            return False
        oldest = (self._runners[env_runner].oldest_version for env_runner in self._group.healthy_env_runner_ids())
        return may_update(version, self._max_staleness, oldest)

    def _forget_lost_env_runners(self) -> None:
        healthy = set(self._group.healthy_env_runner_ids())
        for env_runner in set(self._runners) - healthy - {0}:
            if self._runners[env_runner].incarnation is not None:
                logger.warning(
                    "env-runner %d was lost; its open tokens are dropped, its prompts go out again", env_runner
                )
            self._ledger.lose_env_runner(env_runner)
            del self._runners[env_runner]
        # An env-runner can be lost and back between two turns; its requests are then gone without an answer.
        if self._group.num_in_flight_async_reqs(SAMPLE_TAG) < self._num_requests():
            for runner in self._runners.values():
                runner.requests = 0

    def _wait_for_health(self, last_healthy: float) -> None:
        waited = time.monotonic() - last_healthy
        if waited > self._patience_s:
            raise RuntimeError(f"no env-runner was healthy for {waited:.0f} s; see the actors' logs for the reason")
        self._restore()
        time.sleep(0.5)

    def _count(self, result: SampleResult, fragments: list[Fragment]) -> None:
        statistics = self._statistics
        statistics.slot_steps += result.slot_steps
        statistics.productive_slot_steps += result.productive_slot_steps
        statistics.refills += result.refills
        statistics.sampling_seconds += result.seconds
        statistics.idle_seconds += result.idle_seconds
        statistics.weight_seconds += result.weight_seconds
        statistics.fragments += fragments
        if result.metrics:
            statistics.runner_metrics.append(result.metrics)
