"""An asynchronous run is made again, to the last bit: from the order of its events, and its updates alone from their batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.value_head_file import VALUE_HEAD_FILE, form_on_file
from tppo_rl.experiment.replay import first_difference, replay, report
from tppo_rl.experiment.retrain import free_folder, retrain, write_and_compare
from tppo_rl.lab.pretrain import pretrain

pytestmark = pytest.mark.integration


def recorded(folder: Path, updates: int, *, resumed_after: int = 0, **options: Any) -> None:
    values: dict[str, Any] = {
        "policy_model": "tppo_rl/arithmetic-chain-long-tail",
        "env": "tppo_rl/ArithmeticChain-v0",
        "env_config": {"max_operands": 12, "tail_exponent": 4.0, "long_share": 1.0},
        "num_env_runners": 2,
        "num_cpus_per_env_runner": 0.5,
        "num_envs_per_env_runner": 8,
        "window_length": 8,
        "max_response_length": 96,
        "max_prompt_length": 128,
        "train_batch_size_per_learner": 128,
        "scoring_workers": 0,
        "lr": 1e-4,
        "evaluation_interval": 3,
        "evaluation_duration": 16,
        "results_folder": str(folder),
        "record_events": True,
        "record_batches": True,
        "hindsight": True,
    }
    algorithm = TPPOConfig().update_from_dict(values | options).build_algo()
    for number in range(1, updates + 1):
        algorithm.train()
        if number == resumed_after:
            algorithm.save_to_path(str(folder / "checkpoint"))
            algorithm.stop()
            algorithm = TPPOConfig().update_from_dict(values | options).build_algo()
            algorithm.restore_from_path(str(folder / "checkpoint"))
    algorithm.stop()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four updates with one env-runner."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    recorded(folder, 4, num_env_runners=1)
    return folder


def test_a_run_is_replayed_to_the_last_bit(run: Path, tmp_path: Path) -> None:
    assert list(replay(run, tmp_path, None)) == [(number, True) for number in range(1, 5)]
    # The rollouts, of which a run keeps a part, are far larger than the events.
    events = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    size = sum(len(line) for line in events[1:])
    rollouts = sum(file.stat().st_size for file in (run / "rollouts").glob("*.parquet"))
    assert size < 0.05 * rollouts


@pytest.mark.slow
def test_two_env_runners_are_replayed_for_fifty_updates(tmp_path: Path) -> None:
    recorded(tmp_path / "run", 50)
    found = list(replay(tmp_path / "run", tmp_path / "replay", None))
    assert found == [(number, True) for number in range(1, 51)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_scoring_workers_are_replayed(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text(
        "import time\n\ndef short(completions, **columns):\n"
        "    time.sleep(time.time() % 0.05)\n    return [-0.01 * len(one) for one in completions]\n",
        encoding="utf-8",
    )
    rewards = [{"type": "environment", "weight": 1.0}, {"type": f"{file}:short", "weight": 0.1}]
    recorded(tmp_path / "run", 12, mode=mode, scoring_workers=2, rewards=rewards)
    found = list(replay(tmp_path / "run", tmp_path / "replay", None))
    assert found == [(number, True) for number in range(1, 13)]


def test_its_batches_are_trained_again_to_the_last_bit_or_with_other_options(run: Path) -> None:
    again = list(retrain(run, {}, None))
    assert [(one.iteration, one.is_equal) for one in again] == [(number, True) for number in range(1, 5)]
    assert sum(one.metrics["hindsight/tokens"] for one in again) > 0
    changed = list(retrain(run, {"clip_high": 0.1, "lr": 2e-4}, 3))
    assert [one.is_equal for one in changed] == [False] * 3
    # The first update begins with the same weights, and what it measures before its first step is the same.
    diffs = [[one.metrics["mismatch/log_prob_diff_mean"] for one in found[:2]] for found in (again, changed)]
    assert diffs[0][0] == diffs[1][0]
    assert diffs[0][1] != diffs[1][1]


def test_the_first_difference_is_named() -> None:
    assert report(*first_difference(iter([(1, True), (2, True)]))).startswith("2 updates made again")
    with pytest.raises(RunError, match="the weights differ after update 2, and were equal before"):
        report(*first_difference(iter([(1, True), (2, False), (3, False)])))


@pytest.mark.slow
def test_batches_of_a_resumed_run_are_trained_again_to_the_last_bit(tmp_path: Path) -> None:
    recorded(tmp_path, 8, resumed_after=5, num_env_runners=1)
    again = list(retrain(tmp_path, {}, None))
    assert [(one.iteration, one.is_equal) for one in again] == [(number, True) for number in range(1, 9)]
    assert again[5].metrics["hindsight/tokens"] > 0


def test_a_critic_is_trained_on_its_responses_for_another_run(run: Path, tmp_path: Path) -> None:
    known = [one for one, _ in pretrain(run, tmp_path / "critic", changes={"critic_lr": 2e-3}, epochs=2, heldout=0.3)]
    assert [one.epoch for one in known] == [0, 1, 2]
    assert load_file(tmp_path / "critic" / VALUE_HEAD_FILE)["weight"].any()
    assert form_on_file(tmp_path / "critic") == {"loss": "cross_entropy", "low": 0.0, "high": 1.0}
    with pytest.raises(OptionError, match="window_length=16"):
        next(pretrain(run, tmp_path / "other", changes={"window_length": 16}, epochs=1, heldout=0.3))


@pytest.mark.parametrize(
    ("changes", "iterations", "words"),
    [
        ({"window_length": 16}, None, "window_length=16: the batches are those of the run"),
        ({"lrr": 1.0}, None, r"lrr=1.0: unknown option, did you mean lr"),
        ({"lr": -1.0}, None, "lr=-1.0"),
        ({}, 5, "--iterations=5: .* of 4 iterations"),
    ],
)
def test_what_cannot_be_trained_again_is_said(
    run: Path, changes: dict[str, Any], iterations: int | None, words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        next(retrain(run, changes, iterations))


def test_what_is_refused_leaves_earlier_results_and_each_time_has_a_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("earlier", encoding="utf-8")
    with pytest.raises(OptionError, match="lrr"):
        write_and_compare(retrain(run, {"lrr": 1.0}, None), run, tmp_path)
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == "earlier"
    assert free_folder(tmp_path).name == "retrained"
    (tmp_path / "retrained").mkdir()
    assert free_folder(tmp_path).name == "retrained-2"
    with pytest.raises(OptionError, match="there is no such folder"):
        next(retrain(tmp_path / "mistyped", {}, None))
    assert not (tmp_path / "mistyped").exists()


def test_batches_that_are_not_there_are_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no batches; .*record_batches=True"):
        next(retrain(tmp_path, {}, None))
    shutil.copytree(run / "batches", tmp_path / "batches")
    (tmp_path / "batches" / "iteration_000002.parquet").unlink()
    with pytest.raises(OptionError, match="lacks the batch of iteration 2"):
        next(retrain(tmp_path, {}, None))
    (tmp_path / "batches" / "iteration_000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(OptionError, match=r"iteration_000002\.parquet: is not what a run writes"):
        list(retrain(tmp_path, {}, None))


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no events\.jsonl"):
        next(replay(tmp_path, tmp_path / "replay", None))
