"""The benchmark of the driver on a small scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.scale import Driver, run_options, scale_figures
from tppo_rl.bench.simulated_group import MODEL, MeasuredGroup, RunnerLoad
from tppo_rl.core.fragments import FRAGMENT_SCHEMA, fragments_from_table
from tppo_rl.rollout.chat import Chat

OPTIONS: dict[str, Any] = {
    "slots": 4,
    "window": 8,
    "mean_length": 12,
    "cap": 40,
    "step_seconds": 0.001,
    "updates": 2,
    "repeats": 2,
}
LOAD = RunnerLoad("tppo_rl/ArithmeticChain-v0", 4, 8, 12, 40, 128, 0.0)


@pytest.mark.slow
def test_actors_and_stand_in_give_all_records() -> None:
    figures = {figure.figure: figure for figure in scale_figures(actors=(2, 1), in_process=(1, 3), **OPTIONS)}
    assert figures["driver_scaling"].unit == "times 1 env-runner(s), at 2"
    assert figures["driver_scaling, in process"].unit == "times 1 env-runner(s), at 3"
    for point in ("1 actors", "2 actors", "1 in process", "3 in process"):
        assert figures[f"driver_time_per_fragment, {point}"].low > 0
        assert figures[f"bytes_per_fragment, {point}"].low > 17 * 4, "17 bytes a token, some tokens a fragment"
        assert 0 <= figures[f"staleness_mean, {point}"].low <= figures[f"staleness_max, {point}"].high <= 2
    assert figures["fragments_per_second, 2 actors"].repeats == 2
    assert "fragments_per_second, 3 in process" not in figures
    assert not ray.is_initialized()


@pytest.mark.parametrize("numbers", [{"actors": ()}, {"in_process": ()}, {"actors": (2, 2)}])
def test_numbers_of_env_runners_are_checked(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(numbers))}="):
        scale_figures(**({"actors": (1,), "in_process": (1,)} | numbers), **OPTIONS)


class Stored:
    """What stands for Ray's object store."""

    @staticmethod
    def put(value: Any) -> Any:
        return value


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    monkeypatch.setattr("tppo_rl.rollout.weight_sync.ray", Stored)
    group = MeasuredGroup(3, LOAD, Chat.from_pretrained(resolve_model(MODEL)))
    driver = Driver(group, run_options(LOAD, 3), tmp_path, polls=lambda: iter(range(3)))
    yield driver
    driver.recorder.close()


def test_every_update_trains_a_batch_within_the_bound_and_the_ledger_adds_up(driver: Driver) -> None:
    staleness, num_fragments = [], 0
    for _ in range(20):
        iteration, metrics = driver.loop.training_step()
        assert iteration.update.trained_tokens >= 2 * 3 * 4 * 8
        assert iteration.counts.unaccounted == 0
        staleness += driver.learners.staleness
        num_fragments += driver.learners.num_fragments
    every = np.concatenate(staleness)
    assert every.min() >= 0
    assert 1 <= every.max() <= 2
    assert num_fragments > 20
    assert metrics["critic/boundary_error_held"] > 0, "the loop is the product's own"


def test_fragments_of_results_are_views_into_their_tables(driver: Driver) -> None:
    driver.loop.training_step()
    for result in driver.rollouts.results:
        assert result.fragments.schema.equals(FRAGMENT_SCHEMA)
        buffers = [
            (buffer.address, buffer.address + buffer.size)
            for column in result.fragments.columns
            for chunk in column.chunks
            for buffer in chunk.buffers()
            if buffer is not None
        ]
        for fragment in fragments_from_table(result.fragments):
            address = fragment.tokens.ctypes.data
            assert any(start <= address < end for start, end in buffers)
