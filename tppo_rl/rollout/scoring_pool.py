"""Worker processes that run environments and reward functions while the engine generates.

    sampler ── submit ──▶ queue ──▶ worker that has the episode, else any that is free ──▶ finished ── poll ──▶ sampler
                            ▲                │ deadline or memory limit broken, or died
                            │                ├──▶ killed and replaced; its job has failed
                            └── next job ◀───┘

                        waits for                                              unblocked by
    sampler             nothing: `poll` takes what has finished; where it      -
                        has nothing else to do, `wait` waits for some time
    pool's thread       a message of a worker, a new job, the next deadline    workers, `submit`, time
    worker              its next job                                           the pool's thread
    job in the queue    a free worker                                          a job that ends, or is ended by its deadline

The thread alone deals with processes; it never blocks on one of them. Answers to turns and rewards go before resets: where workers are
the bottleneck, fewer episodes begin, and the number of those that wait for an answer stays bounded.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import registration
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.reward_parts import ENVIRONMENT
from tppo_rl.core.spans import Span
from tppo_rl.rollout.responses import DIED, MEMORY, TIMEOUT, Failure
from tppo_rl.rollout.scoring_frames import frame_of
from tppo_rl.rollout.scoring_jobs import Doing, Job, Message, Raised, Ready, ResetJob, ScoreJob, Setup, StepJob
from tppo_rl.rollout.scoring_order import FollowedOrder, Moment, OrderWriter, ScoringOrder
from tppo_rl.rollout.scoring_process import WATCH_S, WorkerProcess

logger = logging.getLogger(__name__)

START_S = 300.0
"""Most seconds until a worker has built environment and rewards."""
_MOST_BAD_STARTS = 3
_MEMORY_TO_KEEP = 0.5
"""Part of the memory between a new worker's and the limit; one that keeps more after a job is replaced, so that no later job is
blamed for what earlier ones did not give back."""
GIB = 1 << 30
_MOST_SPANS = 256
_ALIVE_S = 0.2
_SPAN_NAMES = {ResetJob: "reset", StepJob: "step", ScoreJob: "rewards"}


@dataclass(eq=False)
class Task:
    """A job on its way."""

    job: Job
    on_result: Callable[[Any], None]
    number: int = 0
    """Of the jobs of a pool, as they were handed in, from 1."""
    canceled: bool = False
    given: float = 0.0
    """When a worker got it, seconds since the epoch."""


@dataclass(eq=False)
class _Worker:
    process: WorkerProcess
    is_ready: bool = False
    task: Task | None = None
    deadline: float = 0.0
    next_look: float = math.inf
    """When its memory is read next."""
    doing: str = ENVIRONMENT
    baseline: int = 0
    """Resident bytes when it was ready."""
    episodes: set[int] = field(default_factory=set)
    over: list[int] = field(default_factory=list)


class ScoringPool:
    """Worker processes, shared by the samplers of an env-runner. `submit`, `poll` and `wait` belong to one thread.

    Args:
        options: Options of the run: environment, rewards, deadline and memory limit.
        num_workers: Number of processes, at least 1.
        splits: Splits of the environment that will be asked for.
        records: Whether `pop_order` will be asked for the order in which results were taken.
    """

    def __init__(
        self, options: Options, num_workers: int, splits: Sequence[str] = ("train",), *, records: bool = False
    ) -> None:
        own = options.scoring
        self.num_killed: Counter[str] = Counter()
        """Workers that were killed or died at a job, by kind of failure."""
        self._deadline_s = own.scoring_deadline_s
        self._memory = None if own.scoring_memory_gib is None else int(own.scoring_memory_gib * GIB)
        env = options.environment.env
        self._setup = frame_of(Setup(options, tuple(splits), None if env is None else registration(env)))
        self._numbers = itertools.count()
        self._job_numbers = itertools.count(1)
        self._order = OrderWriter(records)
        self._followed: FollowedOrder | None = None
        self._alive: Callable[[], None] = lambda: None
        self._early: dict[int, tuple[Task, Any]] = {}
        """Results that have come before the moment at which they were taken in the run that is followed."""
        self._awaited: dict[int, Task] = {}
        self._changed = threading.Condition()
        self._urgent: deque[Task] = deque()
        self._ahead: deque[Task] = deque()
        self._over: deque[int] = deque()
        self._finished: deque[tuple[Task, Any]] = deque()
        self._spans: deque[tuple[int, str, float, float]] = deque(maxlen=_MOST_SPANS)
        self._error: Exception | None = None
        self._closed = False
        self._num_ready = 0
        self._bad_starts = 0
        self._num_workers = num_workers
        self._workers = [_Worker(WorkerProcess(self._setup)) for _ in range(num_workers)]
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._serve, name="scoring-pool", daemon=True)
        self._thread.start()

    @property
    def num_workers(self) -> int:
        """Number of processes."""
        return self._num_workers

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def pop_spans(self, owner: str) -> list[Span]:
        """Returns what the workers have done since the last call, at most the last `_MOST_SPANS` jobs.

        Args:
            owner: Name of the env-runner, with which the names of the tracks begin.
        """
        found = []
        while self._spans:
            worker, name, start, seconds = self._spans.popleft()
            found.append(Span(f"{owner}, scoring worker {worker}", name, start, seconds))
        return found

    def new_episode(self) -> int:
        """Returns a number for `Problem.episode`."""
        return next(self._numbers)

    def wait_until_ready(self) -> None:
        """Waits until every worker has built environment and rewards.

        Raises:
            Exception: one of them could not.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._num_ready >= self._num_workers)
        self._raise_error()

    def submit(self, job: Job, on_result: Callable[[Any], None]) -> Task:
        """Hands in a job; `poll` calls `on_result` with what came of it: its result, or a `Failure`."""
        task = Task(job, on_result, next(self._job_numbers))
        if self._followed is not None:
            self._awaited[task.number] = task
        with self._changed:
            (self._ahead if isinstance(job, ResetJob) else self._urgent).append(task)
        self._wake()
        return task

    def forget(self, episode: int) -> None:
        """Says that an episode is over, so that its environment can serve another one."""
        with self._changed:
            self._over.append(episode)

    def poll(self) -> None:
        """Calls `on_result` of the jobs that have ended.

        Raises:
            Exception: an error that ends the run.
        """
        self._raise_error()
        taken = self._due() if self._follows else self._all_finished()
        self._order.next_moment([(task.number, result) for task, result in taken])
        for task, result in taken:
            if isinstance(result, Raised):
                raise result.error
            task.on_result(result)

    def wait(self, timeout_s: float) -> None:
        """Waits until a job has ended, but no longer than `timeout_s`, and polls."""
        if not self._follows:
            with self._changed:
                self._changed.wait_for(lambda: self._error is not None or bool(self._finished), timeout_s)
        self.poll()

    def may_wait(self, wanted: bool) -> bool:
        """Says whether the caller waits for jobs once more: as it wants to, or as it did in the run that is followed.

        Args:
            wanted: Whether it wants to, which its clock has told it.
        """
        if self._follows:
            wanted = not self._next_followed(takes=False).stopped
        self._order.next_moment(stopped=not wanted)
        return wanted

    def pop_order(self) -> ScoringOrder:
        """Returns in which order results were taken since the last call."""
        return self._order.pop()

    def follow(self, parts: Sequence[Mapping[str, Any]], alive: Callable[[], None] = lambda: None) -> None:
        """Takes results in a recorded order from now on, as far as it goes; no job was handed in yet.

        Args:
            parts: Of the order (`read_order`).
            alive: Called often while a result is waited for.
        """
        self._followed = FollowedOrder(parts)
        self._alive = alive

    def close(self) -> None:
        """Kills all workers; their jobs get no results."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # The caller's side

    @property
    def _follows(self) -> bool:
        return self._followed is not None and not self._followed.is_over

    def _all_finished(self) -> list[tuple[Task, Any]]:
        """Takes all results that are there."""
        found = [*self._early.values()]
        self._early.clear()
        while self._finished:
            found.append(self._finished.popleft())
        return [(task, result) for task, result in found if not task.canceled]

    def _due(self) -> list[tuple[Task, Any]]:
        """Waits for the results that the run that is followed took at this moment."""
        return [self._recorded(number, failure) for number, failure in self._next_followed(takes=True).taken]

    def _next_followed(self, *, takes: bool) -> Moment:
        """Returns the next moment of the run that is followed, at which this one takes results, or asks whether to wait."""
        assert self._followed is not None
        moment = self._followed.next_moment()
        if moment.stopped if takes else moment.taken:
            raise RunError(
                "the recorded run took the results of its scoring workers at other moments: the order is another one"
            )
        return moment

    def _recorded(self, number: int, failure: Failure | None) -> tuple[Task, Any]:
        task = self._awaited.pop(number, None)
        if task is None:
            raise RunError(f"the recorded run had the result of job {number} here, and this one never handed it in")
        if failure is not None:
            task.canceled = True
            return task, failure
        while number not in self._early:
            with self._changed:
                self._changed.wait_for(lambda: self._error is not None or bool(self._finished), timeout=_ALIVE_S)
            self._alive()
            self._raise_error()
            while self._finished:
                found = self._finished.popleft()
                self._early[found[0].number] = found
        task, result = self._early.pop(number)
        if isinstance(result, Failure):
            raise RunError(
                f"job {number} of the scoring workers gave a result in the recorded run, and fails now: {result.name}: {result.message}"
            )
        return task, result

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        # A full pipe wakes the thread up anyhow.
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # The thread's side

    def _serve(self) -> None:
        try:
            while not self._closed and self._error is None:
                ready = self._sleep()
                for worker in self._workers:
                    if worker.process.fileno() in ready:
                        for message in worker.process.poll():
                            self._take(worker, message)
                for index, worker in enumerate(self._workers):
                    self._workers[index] = self._checked(worker)
                self._dispatch()
        except Exception as error:
            logger.exception("the scoring pool has failed")
            self._fail(error)
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.process.close()

    def _sleep(self) -> set[int]:
        """Waits until there is something to do, and returns the descriptors of workers that have something to say or to read."""
        now = time.monotonic()
        busy = [worker for worker in self._workers if worker.task is not None or not worker.is_ready]
        timeout = min([WATCH_S, *(max(0.0, worker.deadline - now) for worker in busy if worker.is_ready)])
        # `select.select` knows no descriptor above 1023, and an engine's process may have more.
        waiter = select.poll()
        waiter.register(self._wake_read, select.POLLIN)
        for worker in self._workers:
            more = select.POLLOUT if worker.process.has_more_to_send else 0
            waiter.register(worker.process.fileno(), select.POLLIN | more)
        ready = {descriptor for descriptor, _ in waiter.poll(1000 * timeout if busy else None)}
        if self._wake_read in ready:
            with suppress(BlockingIOError):
                os.read(self._wake_read, 1 << 16)
        return ready

    def _take(self, worker: _Worker, message: Any) -> None:
        """Takes a message of a worker."""
        match message:
            case Doing():
                worker.doing = message.name
            case Ready():
                worker.is_ready, worker.baseline = True, worker.process.resident_bytes()
                self._bad_starts = 0
                if self._memory is not None and worker.baseline > self._memory:
                    self._fail(self._too_large(worker.baseline))
                with self._changed:
                    self._num_ready += 1
                    self._changed.notify_all()
            case Raised() if worker.task is None:
                self._fail(message.error)
            case Exception():
                self._finish(worker, Failure(worker.doing, "exception", f"its answer cannot be read: {message}"[:500]))
            case _:
                self._finish(worker, message)

    def _checked(self, worker: _Worker) -> _Worker:
        """Returns the worker, or the one that replaces it."""
        broken = self._broken(worker)
        if broken is None:
            return worker
        kind, message = broken
        how = worker.process.close()
        if worker.task is not None:
            self.num_killed[kind] += 1
            logger.info("a scoring worker is replaced: %s", message or how)
            self._finish(worker, Failure(worker.doing, kind, message or how))
        if not worker.is_ready:
            self._bad_starts += 1
            if self._num_ready == 0 or self._bad_starts >= _MOST_BAD_STARTS:
                self._fail(RuntimeError(f"a scoring worker could not start: {message or how}; see its output above"))
        return _Worker(WorkerProcess(self._setup))

    def _broken(self, worker: _Worker) -> tuple[str, str] | None:
        """Returns kind and words of what a worker has broken."""
        now = time.monotonic()
        if worker.process.ended:
            return DIED, ""
        if not worker.is_ready:
            late = now - worker.process.started > START_S
            return (TIMEOUT, f"it was not ready after {START_S:g} s") if late else None
        if worker.task is not None and now > worker.deadline:
            return TIMEOUT, f"took more than scoring_deadline_s={self._deadline_s:g}"
        # Reading the memory of all workers at every message would take longer than everything else here.
        if self._memory is None or now < worker.next_look:
            return None
        worker.next_look = now + WATCH_S if worker.task is not None else math.inf
        return self._over_memory(worker, self._memory)

    def _over_memory(self, worker: _Worker, limit: int) -> tuple[str, str] | None:
        resident = worker.process.resident_bytes()
        if worker.task is None:
            kept = resident - worker.baseline
            return (MEMORY, "it kept memory") if kept > _MEMORY_TO_KEEP * max(0, limit - worker.baseline) else None
        if resident <= limit:
            return None
        return MEMORY, f"took {resident / GIB:.2f} GiB, more than scoring_memory_gib={limit / GIB:g}"

    def _finish(self, worker: _Worker, result: Any) -> None:
        task, worker.task = worker.task, None
        if task is None:
            return
        worker.next_look = 0.0
        if task.given:
            name = _SPAN_NAMES[type(task.job)]
            self._spans.append((self._workers.index(worker), name, task.given, time.time() - task.given))
        with self._changed:
            self._finished.append((task, result))
            self._changed.notify_all()

    def _dispatch(self) -> None:
        with self._changed:
            while self._over:
                episode = self._over.popleft()
                for worker in self._workers:
                    if episode in worker.episodes:
                        worker.episodes.discard(episode)
                        worker.over.append(episode)
            free = [worker for worker in self._workers if worker.is_ready and worker.task is None]
            # First those for which a free worker has the episode.
            given = [(worker, task) for worker in free if (task := self._own(worker)) is not None]
            for worker in free:
                if worker.task is None and (task := self._next()) is not None:
                    worker.task = task
                    given.append((worker, task))
        for worker, task in given:
            self._give(worker, task)

    def _own(self, worker: _Worker) -> Task | None:
        for task in self._urgent:
            if not isinstance(task.job, ScoreJob) and task.job.problem.episode in worker.episodes:
                self._urgent.remove(task)
                worker.task = task
                return task
        return None

    def _next(self) -> Task | None:
        for queue in (self._urgent, self._ahead):
            while queue:
                task = queue.popleft()
                if not task.canceled:
                    return task
        return None

    def _give(self, worker: _Worker, task: Task) -> None:
        over, worker.over = worker.over, []
        worker.doing = ENVIRONMENT
        if not isinstance(task.job, ScoreJob):
            worker.episodes.add(task.job.problem.episode)
        try:
            frame = frame_of(Message(task.job, tuple(over)))
        except Exception as error:
            self._finish(worker, Failure(ENVIRONMENT, "exception", f"cannot be sent to a worker: {error}"[:500]))
            return
        task.given = time.time()
        now = time.monotonic()
        worker.deadline, worker.next_look = now + self._deadline_s, now + WATCH_S
        worker.process.send(frame)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _too_large(self, resident: int) -> OptionError:
        assert self._memory is not None
        return OptionError(
            f"scoring_memory_gib={self._memory / GIB:g}: a worker takes {resident / GIB:.2f} GiB when it has built environment and "
            "rewards; raise it, or set it to None"
        )
