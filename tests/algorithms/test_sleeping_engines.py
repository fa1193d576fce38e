"""Engines that sleep in a real synchronous run. On a CPU vLLM gives no memory back, but pauses, preempts and wakes as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.learner.cached_memory import release_cached_memory
from tppo_rl.rollout.resting_engines import RestingEngines

pytestmark = pytest.mark.integration


class Watched:
    """A run whose engines sleep, and what was done while they were in which state."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.env_runner = algorithm.env_runner_group.local_env_runner
        self.seen: list[tuple[str, str]] = []
        # The option is refused on a CPU.
        self.env_runner._sleeps = True
        algorithm.loop.engines = RestingEngines(
            algorithm.env_runner_group, lambda: self.note("release"), sleeps=True, timeout_s=60.0
        )
        self._watch(algorithm.loop.learners, "update")
        self._watch(self.env_runner._engine._rest, "_sleep")
        self._watch(self.env_runner._engine._core, "update_weights")
        self._watch(self.env_runner._sampler, "run")

    @property
    def state(self) -> str:
        return str(self.env_runner._engine._rest.state)

    def note(self, what: str) -> None:
        self.seen.append((what, self.state))

    def _watch(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self.note(name)
            return method(*arguments, **keywords)

        setattr(owner, name, watched)


@pytest.mark.slow
def test_env_runners_of_their_own_sleep_and_wake_over_ray(
    small_config: TPPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm: Any = small_config.evaluation(evaluation_interval=None).pipeline(mode="sync").build_algo()
    group, learners = algorithm.env_runner_group, algorithm.loop.learners

    def states() -> list[str]:
        return list(group.foreach_env_runner(lambda env_runner: env_runner._engine._rest.state, local_env_runner=False))

    seen = []
    update = learners.update

    def watched(*arguments: Any) -> Any:
        seen.append(states())
        return update(*arguments)

    def fails(*_: Any) -> Any:
        seen.append(states())
        raise RuntimeError("out of memory")

    try:
        algorithm.loop.engines = RestingEngines(
            group, partial(algorithm.learner_group.ask, release_cached_memory), sleeps=True, timeout_s=60.0
        )
        monkeypatch.setattr(learners, "update", watched)
        results = [algorithm.train() for _ in range(2)]
        monkeypatch.setattr(learners, "update", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            algorithm.train()
        assert seen == [["asleep"]] * 3
        assert states() == ["awake"]
    finally:
        algorithm.stop()
    assert max(result["mismatch"]["log_prob_diff_mean"] for result in results) < 1e-4


@pytest.fixture
def run(small_config: TPPOConfig) -> Iterator[Watched]:
    config = small_config.env_runners(num_env_runners=0).pipeline(mode="sync")
    algorithm: Any = config.build_algo()
    yield Watched(algorithm)
    algorithm.stop()


def test_the_order_of_an_iteration(run: Watched) -> None:
    results = [run.algorithm.train() for _ in range(3)]
    one = [
        ("run", "awake"),
        ("_sleep", "asleep"),
        ("update", "asleep"),
        ("release", "asleep"),
        ("update_weights", "waking"),
    ]
    # The first iteration has an evaluation before it, with a sampler of its own.
    assert run.seen == one * 3
    assert run.state == "awake"
    # Open windows went on, by the newest weights alone, and engine and trainer agree on what they sampled.
    assert all(result["staleness"]["max"] == 0 for result in results)
    assert results[-1]["rollout"]["windows_per_response"] > 1
    assert max(result["mismatch"]["log_prob_diff_mean"] for result in results) < 1e-4


def test_an_update_that_raises_leaves_the_engine_awake_and_the_run_can_go_on(
    run: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.algorithm.train()
    learners = run.algorithm.loop.learners

    def fails(*_: Any) -> Any:
        run.note("fails")
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(learners, "update", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            run.algorithm.train()
    assert ("fails", "asleep") in run.seen
    assert run.state == "awake"
    before = len(run.seen)
    assert not isinstance(run.env_runner.score(list(range(4, 20))), Exception)
    assert len(run.seen) == before


def test_an_evaluation_wakes_an_engine_that_was_left_asleep(run: Watched) -> None:
    run.algorithm.train()
    assert run.env_runner.sleep() is None
    assert run.state == "asleep"
    evaluation = run.algorithm.evaluate()
    assert evaluation["sampled"]["n"] == 40
    assert run.state == "awake"


def test_what_could_not_sleep_is_told(run: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("no room on the host")

    monkeypatch.setattr(run.env_runner._engine._rest, "_sleep", fails)
    with pytest.raises(RuntimeError, match="no room on the host"):
        run.algorithm.train()
    assert run.state == "awake"
