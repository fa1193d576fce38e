"""Slots on one engine whose environments and reward functions run in worker processes (`tppo_rl.rollout.scoring_pool`).

    tickets ─▶ reset ─▶ prompts ──▶ slot: engine steps ──▶ turn over: the slot is free ──▶ pending answer ─┬─ goes on ─▶ answered ─┐
              (workers)     ▲         ▲                                                    (workers)       └─ over ─▶ rewards       │
                            │         └──────────────── before new prompts ────────────────────────────────────────── (workers) ────┤
                            └─ as many as slots are kept ready                                                                      ▼

                        waits for                                          unblocked by
    engine step         nothing, as long as a slot has something to do     -
    free slot           an answered episode, else a prompt                 workers
    pending answer      a free worker, then the worker                     workers; its deadline
    `run`               with all slots empty: an answer, for `IDLE_S`      workers
    `cut_windows`       every pending answer and reward                    workers; their deadlines

Open tokens are those in slots, of pending and answered episodes, and of those that wait for rewards: the bound on staleness counts all
of them (`tppo_rl.rollout.train_queue`). A window closes after finitely many engine steps and jobs: in a slot after at most
`window_length` steps, without one when its job has ended. An answered episode that finds no slot free hands over its window at the end
of `run`, so that no window waits for the turns of others.

In sync mode an update trains all that was sampled at its version, so `cut_windows` waits. A prompt whose `reset` fails is dropped; no
token was sampled for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.dialogs import Dialog, Step
from tppo_rl.rollout.engine import Engine, Sampling
from tppo_rl.rollout.rebuilding import why_not_rebuilt
from tppo_rl.rollout.responses import KILLED, Failure, Scores
from tppo_rl.rollout.rewards import RETRY, Rewards
from tppo_rl.rollout.sampler import EpisodeLimits, Prompt, Sampler, Turn
from tppo_rl.rollout.scoring_batches import ScoringBatches
from tppo_rl.rollout.scoring_jobs import Problem, PromptText, ResetJob, StepJob
from tppo_rl.rollout.scoring_pool import ScoringPool, Task
from tppo_rl.rollout.window_buffer import OpenEpisode

IDLE_S = 0.2
"""Longest time that `run` waits for answers with nothing to generate; weights that have arrived are then taken."""


class PooledSampler(Sampler):
    """Generates episodes in a fixed number of slots; see `Sampler` for the arguments that are not here.

    Args:
        pool: Workers, which other samplers may share. Its owner closes it.
        split: Split of the environment.
        rewards: Rewards of responses, which call no functions here.
        answers_all: Whether a prompt that cannot be made gives an episode without tokens, which is wrong; an evaluation needs one
            for each ticket.
    """

    def __init__(
        self,
        engine: Engine,
        pool: ScoringPool,
        chat: Chat,
        *,
        split: str,
        num_slots: int,
        limits: EpisodeLimits,
        sampling: Sampling,
        rewards: Rewards | None = None,
        env_runner: int = 0,
        name: str = "train",
        alive: Callable[[], None] = lambda: None,
        tells_answers: bool = False,
        answers_all: bool = False,
    ) -> None:
        super().__init__(
            engine, None, chat, num_slots=num_slots, limits=limits, sampling=sampling, rewards=rewards,
            env_runner=env_runner, name=name, alive=alive, tells_answers=tells_answers,
        )  # fmt: skip
        self._pool = pool
        self._split = split
        self._answers_all = answers_all
        self._retries = self._rewards.on_failure == RETRY
        self._resets: dict[Ticket, Task] = {}
        self._pending: dict[str, tuple[Turn, Task]] = {}
        self._answered: dict[str, Turn] = {}
        self._arrived: deque[Callable[[], None]] = deque()
        self._batches = ScoringBatches(pool, retries=self._retries)

    @property
    def num_waiting_tickets(self) -> int:
        return super().num_waiting_tickets + len(self._resets)

    @property
    def episode_ids(self) -> list[int]:
        return [*super().episode_ids, *(episode.ticket.episode_id for episode, _ in self._unslotted())]

    @property
    def num_open_tokens(self) -> int:
        return super().num_open_tokens + sum(episode.open_tokens for episode, _ in self._unslotted())

    @property
    def oldest_open_version(self) -> int | None:
        versions = [super().oldest_open_version, self._endings.oldest_version]
        versions += [episode.oldest_open_version for episode, _ in self._unslotted()]
        return min((version for version in versions if version is not None), default=None)

    @property
    def num_pending(self) -> int:
        """Number of episodes that wait for an answer or for rewards."""
        return len(self._pending) + len(self._batches)

    def run(self, num_engine_steps: int, *, patient: bool = False) -> list[Fragment]:
        """Takes engine steps and returns the fragments that were closed meanwhile.

        Stops early if there is nothing to generate; where answers or prompts are on the way, it waits for them for `IDLE_S`, or,
        if it is patient, until they are there.
        """
        steps, waited = 0, 0.0
        self._pool.poll()
        while steps < num_engine_steps:
            self._take_arrived()
            self._fill_free_slots()
            if self._open:
                self._step()
                steps += 1
                self._pool.poll()
            elif (self._pending or self._resets) and self._pool.may_wait(patient or waited < IDLE_S):
                started = time.monotonic()
                self._wait(IDLE_S if patient else IDLE_S - waited)
                waited += time.monotonic() - started
            else:
                break
        self._take_arrived()
        self._score()
        if not self._open:
            # Rewards alone are on the way; without a pause the caller would ask again and again.
            if self._batches and not self._pending:
                self._wait(max(0.0, IDLE_S - waited))
            self._take_arrived()
        self._fill_free_slots()
        self._hand_over_answered()
        self._hand_over_waiting()
        return self._hand_over()

    def cut_windows(self) -> list[Fragment]:
        """Closes every window that holds a token, at whatever length; the episodes stay open.

        It waits for pending answers and rewards: a window that holds the last token of a turn gets the reward of that turn.
        """
        while self._pending or self._batches:
            self._wait(IDLE_S)
            self._take_arrived()
            self._score()
        self._hand_over_answered()
        return super().cut_windows()

    def abandon(self) -> None:
        """Drops all open episodes and tickets; what workers still do for them goes nowhere."""
        self._cancel()
        super().abandon()

    def close(self) -> None:
        """Cancels all jobs; the pool stays open."""
        self._cancel()

    def _wait(self, seconds: float) -> None:
        """Waits for workers, whose own deadlines say when one hangs."""
        self._pool.wait(seconds)
        self._alive()

    def _cancel(self) -> None:
        for task in (*self._resets.values(), *(task for _, task in self._pending.values())):
            task.canceled = True
        problems = [dialog.env for dialog in self._dialogs.values()] + [prompt.env for prompt in self._prompts]
        for problem in problems:
            self._pool.forget(problem.episode)
        self._resets.clear()
        self._pending.clear()
        self._answered.clear()
        self._arrived.clear()
        self._batches.clear()

    def _waiting_tickets(self) -> Iterator[Ticket]:
        yield from self._resets
        yield from super()._waiting_tickets()

    def _without_slot(self) -> Iterator[tuple[OpenEpisode, Dialog]]:
        yield from self._unslotted()
        yield from super()._without_slot()

    def _unslotted(self) -> Iterator[tuple[OpenEpisode, Dialog]]:
        yield from ((turn.episode, turn.dialog) for turn, _ in self._pending.values())
        yield from ((turn.episode, turn.dialog) for turn in self._answered.values())
        yield from ((ending.episode, ending.dialog) for ending in self._batches.endings)

    @property
    def _has_work(self) -> bool:
        return bool(super()._has_work or self._pending or self._answered or self._batches.endings)

    def _envs_in_use(self) -> Iterator[Any]:
        return iter(())

    # Prompts

    def _take_begun(self) -> None:
        """Has the environments of all episodes that have begun elsewhere made, however many they are."""
        while self.tickets and self.tickets[0].begun is not None:
            self._reset(self.tickets.popleft(), may_retry=self._retries or self._answers_all)

    def _fill_free_slots(self) -> None:
        self._take_begun()
        while self.tickets and len(self._prompts) + len(self._resets) < self.num_slots:
            self._reset(self.tickets.popleft(), may_retry=self._retries or self._answers_all)
        while len(self._open) < self.num_slots and (self._answered or self._prompts):
            if not self._answered:
                self._start_episode(self._prompts.popleft())
                continue
            request_id, turn = next(iter(self._answered.items()))
            del self._answered[request_id]
            self._open[request_id] = turn.episode
            self._submit(request_id)

    def _reset(self, ticket: Ticket, *, may_retry: bool) -> None:
        problem = Problem(self._pool.new_episode(), self._split, ticket.seed)
        take = partial(self._arrive, self._take_prompt, ticket, problem, may_retry)
        self._resets[ticket] = self._pool.submit(ResetJob(problem), take)

    def _take_prompt(self, ticket: Ticket, problem: Problem, may_retry: bool, result: PromptText | Failure) -> None:
        if isinstance(result, PromptText):
            del self._resets[ticket]
            try:
                tokens = self._prompt_tokens(ticket, result.text, result.info)
            except Exception:
                self.tickets.appendleft(ticket)
                raise
            self._take_made(Prompt(ticket, problem, result.text, tokens, result.info, result.wrong_reward))
            return
        self._pool.forget(problem.episode)
        if may_retry:
            self._reset(ticket, may_retry=False)
            return
        del self._resets[ticket]
        if ticket.begun is not None:
            self._give_up(ticket, f"reset failed: {result.message}")
            return
        scores = Scores(failures=[result], failed_responses=1)
        if self._answers_all:
            empty = OpenEpisode(ticket, [], self._env_runner, self._engine.version)
            self._closed.append(empty.close_window(truncated=True, correct=False))
        else:
            scores.failed_prompts[ticket.episode_id] = ticket.prompt_index
        self._endings.add_scores(scores)

    def _take_made(self, prompt: Prompt) -> None:
        begun = prompt.ticket.begun
        if begun is None:
            self._prompts.append(prompt)
        # Workers give the environment its earlier turns with the next one.
        elif (wrong := why_not_rebuilt(begun, prompt.tokens, step=None)) is not None:
            self._give_up(prompt.ticket, wrong)
            self._pool.forget(prompt.env.episode)
        elif self._is_turn_over(prompt):
            self._start_episode(prompt)
        else:
            self._prompts.insert(self._num_begun_prompts, prompt)

    @property
    def _num_begun_prompts(self) -> int:
        return sum(prompt.ticket.begun is not None for prompt in self._prompts)

    # Answers

    def _ask(self, turn: Turn, said: str, attempts: int) -> None:
        """Frees the slot and hands the turn to a worker."""
        del self._open[turn.request_id]
        earlier = tuple(turn.dialog.turns)
        turn.dialog.turns.append(said)
        self._send(turn, StepJob(turn.dialog.env, turn.dialog.prompt, earlier, said, attempts))

    def _send(self, turn: Turn, job: StepJob) -> None:
        task = self._pool.submit(job, partial(self._arrive, self._take_step, turn, job))
        self._pending[turn.request_id] = turn, task

    def _arrive(self, take: Callable[..., None], *arguments: Any) -> None:
        """Keeps a result for later: another sampler may be polling."""
        self._arrived.append(partial(take, *arguments))

    def _take_step(self, turn: Turn, job: StepJob, result: Step | Failure) -> None:
        if isinstance(result, Failure) and result.kind in KILLED and job.attempts > 1:
            self._send(turn, StepJob(job.problem, job.prompt, job.turns, job.said, attempts=1))
            return
        del self._pending[turn.request_id]
        turn.dialog.add(result)
        self._take_answer(turn, result)

    def _take_arrived(self) -> None:
        while self._arrived:
            self._arrived.popleft()()
        scored, scores = self._batches.collect()
        self._endings.add_scores(scores)
        self._closed += [self._endings.close(ending, verdict) for ending, verdict in scored]

    def _go_on(self, turn: Turn) -> None:
        self._answered[turn.request_id] = turn

    def _give_back(self, dialog: Dialog, failure: Failure | None) -> None:
        self._pool.forget(dialog.env.episode)

    def _hand_over_answered(self) -> None:
        """Closes the windows of episodes that have no slot, although nothing is missing to go on."""
        for turn in self._answered.values():
            if turn.episode.open_tokens:
                self._closed.append(turn.episode.close_window())

    # Rewards

    def _score(self) -> None:
        """Hands the episodes that are over to the reward functions."""
        closed, endings = self._endings.take()
        self._closed += closed
        self._batches.submit(endings, self._engine.version)
