"""A held-out evaluation on an env-runner of this process: what it counts, and how often it asks a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scoring_examples
from data_sets import write_lines
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.waiting import Stage, StageCut, watched_by
from tppo_rl.rollout.env_runner import VLLMEnvRunner
from tppo_rl.rollout.evaluation import HeldoutEvaluator


class Counts:
    """Keeps what stages count."""

    stop_asked = False

    def __init__(self) -> None:
        self.totals: dict[str, int | None] = {}
        self.counted: dict[str, list[int]] = {}

    def begin(self, stage: Stage) -> None:
        self.totals[stage.words] = stage.total
        self.counted[stage.words] = []

    def advance(self, stage: Stage, done: int) -> None:
        self.counted[stage.words].append(done)

    def end(self, stage: Stage) -> None:
        pass


class Delivered:
    """Weights that are there."""

    version = 3

    def wait_until_delivered(self) -> None:
        pass

    def difference_on(self, *arguments: Any) -> None:
        return None


def evaluator(folder: Path, *, heldout: int, duration: int) -> tuple[HeldoutEvaluator, VLLMEnvRunner]:
    rows = ({"prompt": f"{k}?", "answer": k, "split": "heldout" if k < heldout else "train"} for k in range(20))
    data = {"source": write_lines(folder / "rows.jsonl", rows), "answer": "answer"}
    config = (
        TPPOConfig()
        .environment("tppo_rl/Dataset-v0", env_config=data | {"heldout": {"column": "split", "value": "heldout"}})
        .language_model("tppo_rl/arithmetic-chain")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=4,
            engine={"type": f"{scoring_examples.__file__}:simulated_engine"},
        )
        .pipeline(mode="sync")
        .evaluation(evaluation_interval=1, evaluation_duration=duration)
    )
    runner = VLLMEnvRunner(config=config, worker_index=0)
    runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: {}}, WEIGHTS_SEQ_NO: 3})
    group = SimpleNamespace(healthy_env_runner_ids=list, num_remote_env_runners=int, local_env_runner=runner)
    weights: Any = Delivered()
    return HeldoutEvaluator(config.options, weights, lambda: group, lambda outdated: None), runner


def test_greedily_every_question_is_answered_once_and_every_answer_counted(tmp_path: Path) -> None:
    evaluates, runner = evaluator(tmp_path, heldout=3, duration=8)
    seen = Counts()
    try:
        beats = runner._heartbeat._beats
        with watched_by(seen):
            watched = evaluates.run()
            assert runner._heartbeat._beats > beats + 8 + 3
            latest, seen.stop_asked = evaluates.latest, True
            with pytest.raises(StageCut):
                evaluates.run()
        assert evaluates.latest is latest
        unwatched = evaluates.run()
    finally:
        runner.stop()
    assert (watched.sampled["n"], watched.greedy["n"]) == (8, 3)
    assert unwatched.greedy == watched.greedy
    sampled, greedy = "held-out evaluation (sampled answers)", "held-out evaluation (greedy answers)"
    assert seen.totals == {sampled: 8, greedy: 3}
    assert seen.counted == {sampled: list(range(1, 9)), greedy: [1, 2, 3]}


def test_reward_functions_give_signs_of_life(tmp_path: Path) -> None:
    _, runner = evaluator(tmp_path, heldout=3, duration=8)
    try:
        assert runner._samplers is not None
        rewards = runner._samplers.training(1)._rewards
        beats = runner._heartbeat._beats
        rewards._on_call("my_function")
        assert runner._heartbeat._beats == beats + 1
    finally:
        runner.stop()


class Failing:
    """Two env-runners, which are one here: the first answers, the second is lost when it is asked, and is back with other weights."""

    def __init__(self, runner: VLLMEnvRunner, evaluates: HeldoutEvaluator) -> None:
        self.runner, self.told = runner, list[str]()
        self.healthy = [1, 2]
        evaluates._group = lambda: self
        evaluates._mend = self.mend

    def num_remote_env_runners(self) -> int:
        return 2

    def healthy_env_runner_ids(self) -> list[int]:
        return self.healthy

    def call_env_runner(self, env_runner: int, function: Any) -> Any:
        self.told.append(f"asked {env_runner}")
        return function

    def take_answers(self, calls: dict[Any, int]) -> dict[int, Any]:
        asked = list(calls.items())
        calls.clear()
        if "lost" not in self.told:
            self.told.append("lost")
            self.healthy = [1]
            del asked[1]
        return {env_runner: function(self.runner) for function, env_runner in asked}

    def mend(self, outdated: Sequence[int]) -> None:
        self.told.append(f"new weights for {list(outdated)}")
        if self.healthy != [2]:
            # The first one is lost as well, and the second one holds the weights of the start.
            self.healthy = [2] if self.healthy == [] else []
            self.runner._policy_version = 0
        else:
            self.runner._policy_version = 3


def test_what_a_lost_env_runner_did_not_answer_is_asked_again_of_the_newest_weights(tmp_path: Path) -> None:
    evaluates, runner = evaluator(tmp_path, heldout=8, duration=8)
    try:
        alone = evaluates.run()
        group = Failing(runner, evaluates)
        evaluation = evaluates.run()
    finally:
        runner.stop()
    assert group.told == [
        "asked 1",
        "asked 2",
        "lost",
        "new weights for []",
        "new weights for []",
        "asked 2",
        "new weights for [2]",
        "asked 2",
        "asked 2",
    ]
    assert [episode.prompt_index for episode in evaluation.episodes] == list(range(8))
    assert evaluation.greedy == alone.greedy


def test_where_nobody_comes_back_an_evaluation_ends(tmp_path: Path) -> None:
    evaluates, runner = evaluator(tmp_path, heldout=8, duration=8)
    try:
        Failing(runner, evaluates).healthy = []
        evaluates._mend, evaluates._patience_s = lambda outdated: None, 0.6
        with pytest.raises(ProcessDied, match="lost prompts: 0 of 8 were answered"):
            evaluates.run()
    finally:
        runner.stop()
