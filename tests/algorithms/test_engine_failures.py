"""An engine that fails ends the run with its own error, in the driver."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from families import make_family

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.errors import OptionError

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_what_vllm_does_not_take_is_one_error_that_names_it(small_config: TPPOConfig) -> None:
    small_config.env_runners(engine={"max_model_len": 10**7})
    says = r"^engine=\{'max_model_len': 10000000\}: vLLM cannot make an engine of it.*max_model_len"
    with pytest.raises(OptionError, match=says) as caught:
        small_config.build_algo()
    assert any("In env-runner 1:" in note for note in caught.value.__notes__)


@pytest.mark.slow
def test_an_engine_that_cannot_take_weights_is_the_error_of_the_run(
    small_config: TPPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm: Any = small_config.build_algo()
    try:
        algorithm.train()

        def lose_a_weight(runner: Any) -> None:
            load = runner._engine.load_weights
            runner._engine.load_weights = lambda weights, version: load(
                {"no.such.weight": next(iter(weights.values()))}, version
            )

        algorithm.env_runner_group.foreach_env_runner(lose_a_weight, local_env_runner=False)
        # The error comes with the next answer of the env-runner, and two answers are under way.
        with pytest.raises(Exception, match="no module or parameter named 'no'") as caught:
            deque((algorithm.train() for _ in range(5)), maxlen=0)
        assert len(caught.value.__notes__) == 1
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.parametrize("own", [0, 1])
def test_an_evaluation_outlives_its_env_runner(small_config: TPPOConfig, own: int) -> None:
    small_config.evaluation(evaluation_num_env_runners=own)
    algorithm: Any = small_config.build_algo()
    try:
        algorithm.train()
        ray.kill(algorithm._evaluation_group()._worker_manager.actors()[1], no_restart=False)
        evaluation = algorithm.evaluate()
        assert evaluation["sampled"]["n"] == evaluation["greedy"]["n"] == 40
        difference = algorithm.evaluator.run().log_prob_diff
        assert difference.largest < 1e-4, "the weights of the start would differ"
        algorithm.train()
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("own", [0, 1])
def test_a_run_goes_on_where_env_runners_hang(small_config: TPPOConfig, own: int) -> None:
    """Processes are stopped, first in an evaluation, then while they sample."""
    small_config.pipeline(heartbeat_timeout_s=8.0)
    small_config.evaluation(evaluation_num_env_runners=own)
    algorithm: Any = small_config.build_algo()
    try:
        algorithm.train()
        stopped = stop_soon(algorithm._evaluation_group(), 0.0)
        assert algorithm.evaluate()["sampled"]["n"] == 40
        algorithm.train()
        stopped += stop_soon(algorithm.env_runner_group, 0.5)
        for _ in range(4):
            result = algorithm.train()
        assert not any(map(psutil.pid_exists, stopped))
        assert result["tokens"]["dropped"] == 0
        # The last one hangs while all are to end.
        stop_soon(algorithm.env_runner_group, 0.0)
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_where_an_engine_of_its_own_process_hangs(small_config: TPPOConfig) -> None:
    small_config.env_runners(engine={"multiprocessing": True}).pipeline(heartbeat_timeout_s=8.0)
    algorithm: Any = small_config.build_algo()
    try:
        algorithm.train()
        (runner,) = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
        cores = [
            one for one in psutil.Process(runner).children(recursive=True) if "EngineCore" in "".join(one.cmdline())
        ]
        assert cores
        for core in cores:
            core.suspend()
        for _ in range(4):
            result = algorithm.train()
        assert result["tokens"]["dropped"] == 0
        assert not any(core.is_running() for core in cores), "the old engine would keep its memory"
    finally:
        algorithm.stop()


def stop_soon(group: Any, after_s: float) -> list[int]:
    pids = group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
    assert pids
    for pid in pids:
        threading.Timer(after_s, os.kill, (pid, signal.SIGSTOP)).start()
    return list(pids)


def test_a_base_model_without_a_template_is_refused_before_ray_starts_anything(
    small_config: TPPOConfig, tmp_path: Path
) -> None:
    folder = make_family("gpt2", tmp_path / "model")
    with pytest.raises(OptionError, match=r"policy_model=.*no chat template.*prompt_template"):
        small_config.language_model(str(folder)).build_algo()
