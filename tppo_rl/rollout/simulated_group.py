"""Env-runners without Ray and without a model, in this process, for tests and benchmarks of the driver.

`SimulatedGroup` answers the calls that the rollout controller and the weight sync make to RLlib's EnvRunnerGroup. Its
env-runners run the product's sampler on a `SimulatedEngine`. Each executes its calls one after another, some polls late, and
can be lost and restarted.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.core.begun_episodes import table_from_begun
from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.engine import Engine
from tppo_rl.rollout.sample_result import SampleResult
from tppo_rl.rollout.sampler import Sampler
from tppo_rl.rollout.train_queue import REQUESTS_IN_FLIGHT


class SimulatedRunner:
    """An env-runner without Ray.

    Args:
        incarnation: Name that changes with every restart.
        engine: The engine of the sampler.
        sampler: Holds the slots.
        version: Policy version of its weights; None: it has none yet.
    """

    def __init__(self, incarnation: str, engine: Engine, sampler: Sampler, version: int | None = None) -> None:
        self.incarnation = incarnation
        self.version = version
        self.sampler = sampler
        self._engine = engine
        if version is not None:
            self.take_weights(version)

    def take_weights(self, version: int) -> None:
        """Takes weights of a version; there is no model to load them into."""
        self.version = version
        self._engine.load_weights({}, version)

    def set_state(self, *, state: dict[str, Any]) -> None:
        """Takes the weights' version from RLlib's state."""
        self.take_weights(int(state[WEIGHTS_SEQ_NO]))

    def abandon(self) -> None:
        """Drops open episodes and counts from 0, as after a restart."""
        self.sampler.abandon()
        self.sampler.num_tokens_sampled = 0
        self.incarnation += "'"

    def sample(
        self, *, num_engine_steps: int | None, draw: int, tickets: Sequence[Ticket], cut_windows: bool = False
    ) -> SampleResult:
        """Samples like `VLLMEnvRunner.sample`; its engine goes on with the noise that it has."""
        if self.version is None:
            return SampleResult(table_from_fragments([]), self.incarnation, None)
        sampler = self.sampler
        sampler.add_tickets(tickets)
        fragments = sampler.run_until_empty() if num_engine_steps is None else sampler.run(num_engine_steps)
        if cut_windows:
            fragments += sampler.cut_windows()
        return SampleResult(
            fragments=table_from_fragments(fragments),
            incarnation=self.incarnation,
            version=self.version,
            num_tokens_sampled=sampler.num_tokens_sampled,
            num_open_tokens=sampler.num_open_tokens,
            oldest_open_version=sampler.oldest_open_version,
            begun=table_from_begun([episode.told() for episode in sampler.begun()]),
            num_waiting_tickets=sampler.num_waiting_tickets,
            scores=sampler.pop_scores(),
        )


class _Call(NamedTuple):
    name: str
    tag: str
    kwargs: dict[str, Any]


class SimulatedGroup:
    """RLlib's EnvRunnerGroup, as far as the driver calls it.

    Args:
        count: Number of env-runners; their indices begin at 1.
        make_runner: Makes an env-runner, given its index and the number of its restarts.
        ready: Probability that an env-runner executes its next call by the next poll.
        seed: Seed of the order of events.
    """

    local_env_runner = None

    def __init__(
        self, count: int, make_runner: Callable[[int, int], SimulatedRunner], *, ready: float = 0.6, seed: int = 0
    ) -> None:
        self.random = random.Random(seed)
        self.runners: dict[int, SimulatedRunner | None] = {
            index: make_runner(index, 0) for index in range(1, count + 1)
        }
        self._make_runner = make_runner
        self._ready = ready
        self.hung: set[int] = set()
        """Env-runners that do nothing of what they are asked for."""
        self._restarts = dict.fromkeys(self.runners, 0)
        self._calls: dict[int, deque[_Call]] = {index: deque() for index in self.runners}
        self._answers: dict[str, list[tuple[int, Any]]] = {}

    def healthy_env_runner_ids(self) -> list[int]:
        return [index for index, runner in self.runners.items() if runner is not None]

    def num_healthy_remote_workers(self) -> int:
        return len(self.healthy_env_runner_ids())

    def num_remote_env_runners(self) -> int:
        return len(self.runners)

    def num_in_flight_async_reqs(self, tag: str) -> int:
        waiting = sum(call.tag == tag for calls in self._calls.values() for call in calls)
        return waiting + len(self._answers.get(tag, []))

    def requests_in_flight(self, tag: str) -> dict[int, int]:
        """Returns the number of open requests by env-runner."""
        answered = Counter(index for index, _ in self._answers.get(tag, []))
        return {index: sum(call.tag == tag for call in calls) + answered[index] for index, calls in self._calls.items()}

    def call_env_runner(self, index: int, function: Callable[[Any], Any]) -> tuple[int, Any]:
        """Calls a function with an env-runner at once; the answer is what `take_answers` gives."""
        return index, function(self.runners[index])

    def take_answers(self, calls: dict[Any, int]) -> list[tuple[int, Any]]:
        answers = list(calls)
        calls.clear()
        return answers

    def replace(self, index: int) -> None:
        """Kills an env-runner that hangs; `revive_all` starts it anew."""
        self.hung.discard(index)
        self.lose(index)

    def foreach_env_runner_async(
        self, func: str, tag: str, *, remote_worker_ids: list[int], kwargs: dict[str, Any] | None = None
    ) -> int:
        (index,) = remote_worker_ids
        answered = sum(of == index for of, _ in self._answers.get(tag, []))
        if sum(call.tag == tag for call in self._calls[index]) + answered >= REQUESTS_IN_FLIGHT:
            return 0
        self._calls[index].append(_Call(func, tag, kwargs or {}))
        return 1

    def fetch_ready_async_reqs(self, *, tags: str, timeout_seconds: float) -> list[tuple[int, Any]]:
        """Returns answers; with a timeout it first lets some env-runners execute their next calls."""
        if timeout_seconds > 0:
            self.execute()
        return self._answers.pop(tags, [])

    def execute(self) -> None:
        """Lets some env-runners execute their next calls, at most one `sample` each."""
        for index in self.healthy_env_runner_ids():
            if index in self.hung:
                continue
            calls = self._calls[index]
            while calls and self.random.random() < self._ready:
                call = calls.popleft()
                answer = getattr(self.runners[index], call.name)(**call.kwargs)
                self._answers.setdefault(call.tag, []).append((index, answer))
                if call.name == "sample":
                    break

    def disconnect(self, index: int) -> SimulatedRunner:
        """Loses an env-runner that lives on, as behind a broken connection; `reconnect` brings it back."""
        runner = self.runners[index]
        assert runner is not None
        self.lose(index)
        return runner

    def reconnect(self, index: int, runner: SimulatedRunner) -> None:
        """Brings back an env-runner that `disconnect` returned, unchanged."""
        self.runners[index] = runner

    def lose(self, index: int) -> None:
        """Kills an env-runner; its open requests are never answered."""
        self.runners[index] = None
        self._calls[index].clear()

    def restart(self, index: int) -> None:
        """Kills an env-runner and starts it again before the driver notices; its open requests go to the new one."""
        self._restarts[index] += 1
        self.runners[index] = self._make_runner(index, self._restarts[index])

    def revive_all(self) -> None:
        """Restarts the env-runners that were killed; they have no weights yet."""
        for index, runner in self.runners.items():
            if runner is None:
                self._restarts[index] += 1
                self.runners[index] = self._make_runner(index, self._restarts[index])
