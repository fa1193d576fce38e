"""The rollout controller: keeps env-runners busy and brings their fragments home; that of synchronous runs is `SyncRollouts`.

              tickets, engine steps
   Ledger ──────────────────────────▶ env-runner ─┐
     ▲                                            │ SampleResult (fragments, own counts)
     └──────────────── TrainQueue ◀───────────────┘

                waits for                                                  unblocked by
env-runner      a request (two are kept in flight); none is sent while     an update that takes from the queue,
                queue + requested >= max_queued_batches * batch tokens     or an update that waits for its windows
update          `next_batch()`: enough tokens, and no open window too old       results of requests
                or group whose responses have not all ended
weights         nothing: sent after each update, applied between two       -
                requests (some tens of engine steps)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.begun_episodes import begun_from_table
from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.fragments import Fragment, fragments_from_table
from tppo_rl.core.prompts import Ticket
from tppo_rl.core.waiting import Stage, stage, stop_here
from tppo_rl.rollout.asking import ask_all, replace_hung
from tppo_rl.rollout.backlog import Backlog
from tppo_rl.rollout.event_log import BATCH, LOST, SENT, TAKEN, UPDATE, EventLog
from tppo_rl.rollout.failure_watch import FailureWatch
from tppo_rl.rollout.groups import GroupBuffer, GroupSample
from tppo_rl.rollout.heartbeats import Heartbeats
from tppo_rl.rollout.ledger import Ledger, TokenCounts
from tppo_rl.rollout.open_requests import OpenRequests
from tppo_rl.rollout.rllib_internals import fetch_ready, replace_env_runner, requests_in_flight
from tppo_rl.rollout.sample_result import SampleResult
from tppo_rl.rollout.statistics import RolloutStatistics
from tppo_rl.rollout.told_episodes import ToldEpisodes
from tppo_rl.rollout.train_queue import REQUESTS_IN_FLIGHT, TrainQueue, may_update, oldest_allowed_to_stay

logger = logging.getLogger(__name__)

SAMPLE_TAG = "tppo_sample"
ABANDON_TAG = "tppo_abandon"
POLL_S = 0.02
"""Longest wait of one poll while an update is under way."""


class Weights(Protocol):
    """The weight sync, as far as the controller uses it."""

    @property
    def version(self) -> int:
        """The trainer's policy version."""

    def deliver(self) -> None:
        """Sends weights again to env-runners that could not take them."""

    def revive(self, env_runner: int) -> None:
        """Sends weights to an env-runner that was found restarted."""

    def check_learners(self) -> None:
        """Raises an error where a learner, from which weights come, is gone."""

    def wait_until_delivered(self) -> None:
        """Waits until the next requests to env-runners will use the newest weights."""


class RolloutController:
    """The driver's side of sampling: requests, the ledger of prompts and tokens, the train queue.

    Args:
        group: RLlib's EnvRunnerGroup.
        options: Options of the run.
        weights: Sends weights; an env-runner with old weights would hold up every update.
        restore: Tries to bring lost env-runners back (RLlib's `restore_env_runners`).
        events: Is told of what the driver does, in its order; None: nobody is.
    """

    def __init__(
        self,
        group: Any,
        options: Options,
        weights: Weights,
        *,
        restore: Callable[[], None],
        events: EventLog | None = None,
    ) -> None:
        self._events = events or EventLog()
        self.ledger = Ledger(
            seed=options.run.seed,
            group_size=options.groups.group_size,
            num_problems=num_problems(options.environment, "train"),
        )
        self._options = options
        self._backlog = Backlog(options, self.ledger)
        self._group = group
        self._weights = weights
        self._restore = restore
        self._patience_s = options.pipeline.env_runner_timeout_s
        self._silence_s = options.pipeline.heartbeat_timeout_s
        self._heartbeats = Heartbeats(group, self._silence_s)
        self._absent_since: dict[int, float] = {}
        self._batch_tokens = options.batch_tokens
        self._asynchronous = options.pipeline.mode == "async"
        self._max_staleness = options.pipeline.max_staleness
        self._drops_old = options.pipeline.old_responses == "drop"
        self._limit = options.max_queued_batches * options.batch_tokens
        self._num_slots = options.rollout.num_envs_per_env_runner
        self._engine_steps = options.rollout.engine_steps
        self._window = options.rollout.window
        self._watch = FailureWatch(options.rewards.max_failed_fraction, patience=8 * self._num_slots)
        self._group_size = options.groups.group_size
        self._requests = OpenRequests()
        self._told = ToldEpisodes()
        self._statistics = RolloutStatistics()

    @property
    def queue(self) -> TrainQueue:
        """Fragments that wait for an update."""
        return self._backlog.queue

    @property
    def groups(self) -> GroupBuffer:
        """Responses that wait for the others of their groups."""
        return self._backlog.groups

    def poll(self, timeout_s: float = POLL_S) -> None:
        """Sends the requests that are due and ingests the results that are ready, waiting for at most `timeout_s`."""
        self._forget_lost_env_runners()
        self._replace_absent()
        self._weights.deliver()
        self._send_requests()
        if self.num_requests == 0:
            # A loop without a pause would keep a learner in this process from its work.
            time.sleep(timeout_s)
            return
        for env_runner, result in fetch_ready(self._group, SAMPLE_TAG, timeout_s):
            self.ingest(env_runner, result)
        self._replace_hung()

    def next_batch(self) -> list[Fragment]:
        """Waits until an update at the trainer's version may begin and returns its fragments (async).

        Raises:
            ProcessDied: no env-runner was healthy for `env_runner_timeout_s` seconds.
            LearnerDied: a learner is gone.
            StageCut: the user stops the run; what was sampled stays in the queue.
        """
        with stage("sampling", total=self._batch_tokens, unit="tokens", cut="soon", part="update") as sampling:
            self._wait_for_batch(sampling)
        self._events.note(BATCH)
        return self._pop_batch()

    def _pop_batch(self) -> list[Fragment]:
        if (sample := self._backlog.take_group_sample()) is not None:
            self._statistics.group_sample = sample
        return self._backlog.pop_batch(self._weights.version)

    def update_ended(self) -> None:
        """Is told that the update of the last batch has ended."""
        if self._asynchronous:
            self._events.note(UPDATE)

    def _wait_for_batch(self, sampling: Stage) -> None:
        last_healthy = time.monotonic()
        # Also where a batch is there already: the user was told that this iteration does not begin.
        stop_here()
        self._backlog.drop_too_old(self._weights.version)
        while not self._may_update():
            self.poll(timeout_s=0.05)
            self._weights.check_learners()
            sampling.advance(min(self.queue.num_tokens, self._batch_tokens))
            if self._group.num_healthy_remote_workers() > 0:
                last_healthy = time.monotonic()
            else:
                self._wait_for_health(last_healthy)
            stop_here()

    def ingest(self, env_runner: int, result: SampleResult) -> None:
        """Records one result.

        Raises:
            Exception: the error of the env-runner, if the result holds one.
            RewardsFailed: too many responses could not be scored.
        """
        if self._asynchronous:
            self._events.note(TAKEN, env_runner)
        self._events.note_scoring(env_runner, result.scoring_order)
        self._heartbeats.heard(env_runner)
        tickets = self._requests.answer(env_runner)
        if result.needs_new_process:
            logger.warning("env-runner %d begins anew: %s", env_runner, result.error)
            replace_env_runner(self._group, env_runner)
            self._lose(env_runner)
            return
        if result.error is not None:
            raise result.error
        record = self._requests[env_runner]
        if self._requests.is_lost(result.incarnation):
            # Its prompts went out again, so what it holds must not count.
            logger.warning("env-runner %d answers after it was given up; what it sampled is left out", env_runner)
            self.ledger.return_tickets(env_runner, tickets)
            if self._requests.must_be_told(result.incarnation):
                self._group.foreach_env_runner_async("abandon", tag=ABANDON_TAG, remote_worker_ids=[env_runner])
            return
        if record.incarnation not in (None, result.incarnation):
            self._replace_incarnation(env_runner, tickets)
            record = self._requests[env_runner]
        record.incarnation = result.incarnation
        if result.version is None:
            # It had no weights yet, and began no episode.
            self.ledger.return_tickets(env_runner, tickets)
            self._weights.revive(env_runner)
            return
        fragments = fragments_from_table(result.fragments)
        self.ledger.report(
            env_runner,
            fragments,
            num_tokens_sampled=result.num_tokens_sampled,
            num_open_tokens=result.num_open_tokens,
            given=tickets,
        )
        self._told.take(env_runner, begun_from_table(result.begun), fragments, tickets)
        failed_prompts = result.scores.failed_prompts
        self.ledger.drop_prompts(env_runner, failed_prompts)
        self._backlog.miss(failed_prompts.values())
        num_trainable = self._backlog.add(fragments, result.scores.left_out, self._weights.version)
        num_ended = sum(fragment.finished for fragment in fragments) + len(failed_prompts)
        self._watch.add(num_ended, num_trainable, result.scores)
        record.waiting_tickets = result.num_waiting_tickets
        record.oldest_version = result.version if result.oldest_open_version is None else result.oldest_open_version
        self._statistics.add(result, fragments)

    def abandon(self) -> None:
        """Makes every env-runner drop its open episodes, and discards open requests; for a restored ledger."""
        if self._group.num_remote_env_runners():
            ask_all(self._group, "abandon", self._group.healthy_env_runner_ids(), self._silence_s)
            self._group.fetch_ready_async_reqs(tags=SAMPLE_TAG, timeout_seconds=1.0)
        elif self._group.local_env_runner is not None:
            self._group.local_env_runner.abandon()

    @property
    def num_requests(self) -> int:
        """Number of requests that env-runners have not answered."""
        return self._requests.num_requests

    def add_group_sample(self, sample: GroupSample) -> None:
        """Records the groups of an update: tokens of dropped groups count as dropped (`no_variance`)."""
        self._backlog.record_dropped_groups(sample.dropped)
        if self._group_size > 1:
            self._statistics.group_sample = sample

    def record_trained(self, num_tokens: int, largest_staleness: int) -> TokenCounts:
        """Records the tokens that learners report as trained, and returns the counts of the whole run.

        Raises:
            LedgerError: tokens were lost or counted twice.
        """
        bounded = self._asynchronous or self._backlog.is_bounded
        assert not bounded or largest_staleness <= self._max_staleness, "the bound on staleness does not hold"
        self.ledger.record_trained(num_tokens)
        return self.ledger.check(queue_tokens=self._backlog.num_tokens)

    def restart(
        self,
        ledger: Ledger | None = None,
        queued: Sequence[Fragment] = (),
        grouped: Iterable[Fragment] = (),
        left_out: Mapping[int, int] | None = None,
    ) -> None:
        """Abandons open episodes and requests, and goes on with another ledger (None: a new one).

        Args:
            ledger: To go on with.
            queued: What the train queue holds.
            grouped: Responses that wait for the others of their groups.
            left_out: Number of responses that groups miss, by prompt.
        """
        self.abandon()
        self.ledger = ledger or Ledger(
            seed=self.ledger.seed, group_size=self._group_size, num_problems=self.ledger.num_problems
        )
        self._backlog = Backlog(self._options, self.ledger, queued, grouped, left_out)
        self._watch.clear()
        self._requests.clear()
        self._told.clear()
        self._statistics = RolloutStatistics()

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint: the ledger, and the fragments that wait for an update or for their groups."""
        return {"ledger": self.ledger.state(self._told.all()), **self._backlog.state()}

    def drain_statistics(self) -> RolloutStatistics:
        """Returns the sums since the last call, how old the train queue is now, and where in the data the run is."""
        statistics, self._statistics = self._statistics, RolloutStatistics()
        if self.queue.oldest_version is not None:
            statistics.queue_staleness = self._weights.version - self.queue.oldest_version
        statistics.epochs = self.ledger.epochs
        statistics.set_aside_episodes = self.ledger.num_set_aside
        return statistics

    def _send_requests(self) -> None:
        healthy = self._group.healthy_env_runner_ids()
        blocking = set(self._blocking(healthy))
        tokens_of_request = self._num_slots * self._engine_steps
        # One running sum: a sum for each env-runner would make a poll quadratic in their number.
        expected = self.queue.num_tokens + self.num_requests * tokens_of_request
        arguments = {"num_engine_steps": self._engine_steps}
        for env_runner in healthy:
            record = self._requests[env_runner]
            while len(record.requests) < REQUESTS_IN_FLIGHT and (expected < self._limit or env_runner in blocking):
                if not self._request(env_runner, self._tickets_for(env_runner, self._engine_steps), arguments):
                    break
                expected += tokens_of_request

    def _request(self, env_runner: int, tickets: list[Ticket], arguments: dict[str, Any]) -> bool:
        """Sends a request; if RLlib takes no more for this env-runner, returns the tickets to the ledger and gives False."""
        sent = self._send_request(env_runner, tickets, arguments | {"draw": self.ledger.draw()})
        if not sent:
            self.ledger.return_tickets(env_runner, tickets)
            self.ledger.take_back_draw()
        return sent

    def _send_request(self, env_runner: int, tickets: list[Ticket], arguments: dict[str, Any]) -> bool:
        sent = self._group.foreach_env_runner_async(
            "sample",
            tag=SAMPLE_TAG,
            kwargs=arguments | {"tickets": tickets},
            remote_worker_ids=[env_runner],
        )
        if sent:
            self._requests[env_runner].requests.append(tickets)
            if self._asynchronous:
                self._events.note(SENT, env_runner)
        return bool(sent)

    def _tickets_for(self, env_runner: int, engine_steps: int) -> list[Ticket]:
        """Leases enough tickets for every slot to begin a new episode at every engine step, so that none is ever idle."""
        num_tickets = self._requests[env_runner].num_tickets
        if self.ledger.is_unproven(env_runner):
            # What it has when it dies again may be suspected, so it gets no more than it can begin at once.
            count = self._num_slots - num_tickets
        else:
            # Episodes that go on take the places of others, or come on top of them.
            begun = min(self._num_slots, self.ledger.num_begun_for(env_runner))
            count = max(self._num_slots * (engine_steps + 1) - num_tickets, begun)
        return self.ledger.lease(env_runner, count) if count > 0 else []

    def _blocking(self, env_runners: Iterable[int]) -> list[int]:
        """Returns the env-runners whose open windows must close before the next update."""
        if self._drops_old:
            return []
        oldest = oldest_allowed_to_stay(self._weights.version, self._max_staleness)
        # Any env-runner may be the one to go on with what none has, or to sample the rest of a group.
        all_block = any(version < oldest for version in self._held_versions())
        return [
            env_runner for env_runner in env_runners if all_block or self._requests[env_runner].oldest_version < oldest
        ]

    def _held_versions(self) -> list[int]:
        """Oldest versions of the tokens that no env-runner is known to have: of open episodes, and of those that wait for others."""
        versions = [episode.oldest_version for episode in self.ledger.held]
        versions.append(self._backlog.oldest_waiting_for_group)
        return [version for version in versions if version is not None]

    def _may_update(self) -> bool:
        """Whether there are enough tokens for an update, and no open window or group would be too old after it."""
        if self.queue.num_tokens < self._batch_tokens:
            return False
        if self._drops_old:
            return True
        if self._asynchronous:
            # Also of env-runners whose loss was not met yet: what they have told of goes on elsewhere.
            env_runners = {*self._group.healthy_env_runner_ids(), *self._requests.known()}
            oldest = self._requests.oldest_versions(env_runners)
        else:
            # Nothing is sampled before the next weights, so that open tokens alone count.
            versions = [episode.oldest_version for episode in self._told.all()]
            oldest = [version for version in versions if version is not None]
        return may_update(self._weights.version, self._max_staleness, [*oldest, *self._held_versions()])

    def _forget_lost_env_runners(self, but: Collection[int] = ()) -> None:
        """Gives up the env-runners that are lost.

        Args:
            but: Env-runners whose answers are here and not taken yet.
        """
        in_flight = requests_in_flight(self._group, SAMPLE_TAG)
        healthy = set(self._group.healthy_env_runner_ids())
        for env_runner in set(self._requests.known()).difference(but):
            # An env-runner can be lost and back between two polls; its requests are then gone without an answer.
            lost_requests = in_flight is not None and in_flight[env_runner] < len(self._requests[env_runner].requests)
            if env_runner and (lost_requests or env_runner not in healthy):
                self._lose(env_runner)
        self.ledger.free_reserved(healthy)

    def _replace_hung(self, but: Collection[int] = ()) -> None:
        """Starts env-runners anew that have open requests and do nothing; what they have told of goes on elsewhere.

        Args:
            but: Env-runners whose answers are here and not taken yet.
        """
        busy = self._requests.busy().difference(but)
        for env_runner in replace_hung(self._group, self._heartbeats, busy):
            self._lose(env_runner)

    def _replace_absent(self) -> None:
        """Starts env-runners anew, once more, that do not come back: they may hang in their start."""
        now = time.monotonic()
        absent = set(range(1, 1 + self._group.num_remote_env_runners())).difference(
            self._group.healthy_env_runner_ids()
        )
        self._absent_since = {env_runner: self._absent_since.get(env_runner, now) for env_runner in absent}
        for env_runner, since in self._absent_since.items():
            if now - since > self._patience_s:
                logger.warning(
                    "env-runner %d is not back after %g s (env_runner_timeout_s), and is killed; Ray starts it anew",
                    env_runner,
                    self._patience_s,
                )
                replace_env_runner(self._group, env_runner)
                self._absent_since[env_runner] = now

    def _lose(self, env_runner: int) -> None:
        """Takes back all tickets of an env-runner, and its episodes as far as it has told of them."""
        self._events.note(LOST, env_runner)
        if self._requests.lose(env_runner).incarnation is not None:
            logger.warning("env-runner %d was lost; its episodes go on elsewhere", env_runner)
        self._miss_set_aside(self.ledger.lose_env_runner(env_runner, begun=self._told.pop(env_runner)))

    def _replace_incarnation(self, env_runner: int, answered: Sequence[Ticket]) -> None:
        """Takes back the tickets of the earlier incarnation, except for those that the new one has or will get."""
        self._events.note(LOST, env_runner)
        logger.warning("env-runner %d was restarted; its episodes go on elsewhere", env_runner)
        requests = self._requests.lose(env_runner).requests
        self._requests[env_runner].requests = requests
        set_aside = self.ledger.lose_env_runner(
            env_runner,
            begun=self._told.pop(env_runner),
            keep=[*answered, *(ticket for tickets in requests for ticket in tickets)],
        )
        self._miss_set_aside(set_aside)

    def _miss_set_aside(self, prompt_indices: list[int]) -> None:
        for prompt_index in set(prompt_indices):
            seed = self.ledger.seed_of(prompt_index)
            logger.error(
                "prompt %d (seed %d) is set aside: env-runners died with it, the last one with it alone",
                prompt_index,
                seed,
            )
        self._backlog.miss(prompt_indices)

    def _wait_for_health(self, last_healthy: float) -> None:
        waited = time.monotonic() - last_healthy
        if waited > self._patience_s:
            raise ProcessDied(
                f"no env-runner was healthy for {waited:.0f} s; see the actors' logs for the reason (one that only starts slowly needs a "
                "larger env_runner_timeout_s); go on from the newest checkpoint, as --resume does"
            )
        self._restore()
        time.sleep(0.5)
