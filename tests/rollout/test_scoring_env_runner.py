"""An env-runner with scoring workers, in this process and on a simulated engine: sampling, evaluation, errors, its end."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import scoring_examples
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.fragments import fragments_from_table
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.env_runner import VLLMEnvRunner
from tppo_rl.rollout.pooled_sampler import PooledSampler


def env_runner(folder: Path, **values: Any) -> VLLMEnvRunner:
    file = shutil.copy(Path(scoring_examples.__file__), folder / "my_scoring.py")
    reward = values.pop("reward", None)
    callbacks = values.pop("callbacks", RLlibCallback)
    config = (
        TPPOConfig()
        .environment(f"{file}:Faulty-v0", env_config=values.pop("env_config", {}))
        .language_model("tppo_rl/arithmetic-chain")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=4,
            max_response_length=64,
            window_length=16,
            engine={"type": f"{file}:simulated_engine"},
            rewards="environment" if reward is None else f"{file}:{reward}",
            **values,
        )
        .pipeline(mode="sync")
        .evaluation(evaluation_interval=1)
        .callbacks(callbacks)
    )
    runner = VLLMEnvRunner(config=config, worker_index=0)
    runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: {}}, WEIGHTS_SEQ_NO: 3})
    return runner


def tickets(count: int) -> list[Ticket]:
    return [Ticket(index, index, index) for index in range(count)]


def test_an_env_runner_samples_and_evaluates_with_workers(tmp_path: Path) -> None:
    runner = env_runner(tmp_path, reward="by_problem", scoring_deadline_s=1.0, scoring_memory_gib=0.25)
    try:
        assert runner._pool is not None
        assert isinstance(runner._sampler, PooledSampler)
        pids = runner._pool.pids
        assert len(pids) == 2
        result = runner.sample(num_engine_steps=None, draw=0, tickets=tickets(8))
        assert result.error is None
        fragments = fragments_from_table(result.fragments)
        assert sorted(f.episode_id for f in fragments if f.finished) == list(range(8))
        assert result.num_tokens_sampled == sum(map(len, fragments))
        assert (result.num_open_tokens, result.oldest_open_version) == (0, None)
        assert sorted(failure.kind for failure in result.scores.failures) == ["died", "exception", "memory", "timeout"]
        assert set(result.scores.left_out) == {1, 2, 3, 4}
        table = runner.evaluate(tickets(6), 0.0)
        assert not isinstance(table, Exception)
        episodes = fragments_from_table(table)
        assert [episode.prompt_index for episode in episodes] == list(range(6))
        assert all(episode.correct is not None for episode in episodes)
        result = runner.sample(num_engine_steps=16, draw=1, tickets=tickets(40)[8:], cut_windows=True)
        assert result.error is None
        assert result.num_open_tokens == 0
        assert result.productive_slot_steps > 0
    finally:
        runner.stop()
    time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_driver_gets_the_error_of_a_worker_that_cannot_start(tmp_path: Path) -> None:
    runner = env_runner(tmp_path, reward="CannotBeMade")
    result = runner.sample(num_engine_steps=4, draw=0, tickets=tickets(4))
    runner.stop()
    assert result.error is not None
    assert "no key for the judge's server" in str(result.error)


def test_callbacks_that_workers_never_call_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Watching(RLlibCallback):
        def on_environment_created(self, **arguments: Any) -> None:
            """Watches."""

    for workers in (0, 1):
        caplog.clear()
        runner = env_runner(tmp_path, callbacks=Watching, scoring_workers=workers)
        runner.stop()
        warned = any("on_environment_created" in record.message for record in caplog.records)
        assert warned == (workers > 0)
