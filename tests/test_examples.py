"""The examples are short, their run files are sound, and they compute what they say. Only the slow tests start anything."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from helpers import make_fragment

from tppo_rl.config.options import Options
from tppo_rl.config.run_files import load_run_file
from tppo_rl.config.text_envs import env_spec
from tppo_rl.core.registry import ADVANTAGES, POLICY_LOSSES, REWARDS, PartSpec
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.policy_losses import WindowTokens, clipped
from tppo_rl.learner.values import CriticValues

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = ("advantage", "algorithm", "environment", "loss", "metric", "reward")


@pytest.fixture(autouse=True)
def started_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def window_tokens(old: torch.Tensor, advantages: torch.Tensor) -> WindowTokens:
    ones = torch.ones_like(old)
    return WindowTokens(old, old, advantages, ones, ones.bool(), None, None)


def test_they_are_these() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("py", "yaml")}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_short_sound_and_says_how_to_run_it(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 30
    assert f"tppo-rl train file examples/{name}.yaml" in source
    (experiment,) = load_run_file(EXAMPLES / f"{name}.yaml")
    assert experiment.name == name


def test_the_environment_keeps_gymnasiums_contract() -> None:
    env = gymnasium.make(env_spec("./examples/environment.py:examples/Backward-v0"), disable_env_checker=True)
    check_env(env.unwrapped)
    prompt, info = env.reset(seed=0)
    assert info["worked_solution"] == prompt.removesuffix("=")[::-1]
    assert env.step(info["worked_solution"])[4]["correct"]
    env.reset(seed=0)
    assert not env.step("")[4]["correct"]


def test_the_reward_falls_with_the_length_of_right_responses() -> None:
    reward = REWARDS.resolve(PartSpec("./examples/reward.py:short_and_right", {"per_token": 0.1}))
    scores = reward(correct=[True, True, False, None], completion_ids=[[1], [1] * 20, [1], []], prompts=["a"] * 4)
    assert scores == pytest.approx([0.9, 0.0, 0.0, 0.0])


def test_the_estimator_is_the_return_minus_the_value_where_it_is_known() -> None:
    estimator = ADVANTAGES.resolve(PartSpec("./examples/advantage.py:return_minus_value", {"scale": 2.0}))
    finished = dataclasses.replace(make_fragment(tokens=[5, 6, 7], episode_id=1), terminated=True)
    finished.rewards[-1] = 1.0
    unfinished = dataclasses.replace(make_fragment(tokens=[5, 6], episode_id=2), terminated=False)
    batch = batch_from_fragments([finished, unfinished])
    values = CriticValues(torch.tensor([[0.25, 0.5, 0.75], [0.25, 0.5, 0.0]]), torch.zeros(2), torch.zeros(1, 3))
    assert estimator(batch, values, Options()).tolist() == [[1.5, 1.0, 0.5], [0.0, 0.0, 0.0]]


def test_the_loss_is_least_where_the_ratio_is_one_epsilon_away() -> None:
    loss = POLICY_LOSSES.resolve(PartSpec("./examples/loss.py:spo", {"epsilon": 0.2}))
    advantages = torch.tensor([1.0, -2.0])
    best = torch.tensor([1.2, 0.8]).log().requires_grad_()
    terms = loss(best, torch.zeros(2), window_tokens(torch.zeros(2), advantages), Options())
    assert terms.per_token.tolist() == pytest.approx([0.1 - 1.2, 0.2 + 1.6])
    terms.per_token.sum().backward()
    assert best.grad is not None
    assert best.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_metric_leaves_the_loss_as_it_is() -> None:
    loss = POLICY_LOSSES.resolve(PartSpec("./examples/metric.py:clipped_with_certainty", {"above": 0.9}))
    log_probs, tokens = torch.tensor([0.95, 0.5]).log(), window_tokens(torch.tensor([-0.1, -0.6]), torch.ones(2))
    terms, plain = (
        loss(log_probs, torch.zeros(2), tokens, Options()),
        clipped(log_probs, torch.zeros(2), tokens, Options()),
    )
    assert torch.equal(terms.per_token, plain.per_token)
    assert terms.metrics["certain_fraction"].tolist() == [True, False]
    assert set(terms.metrics) == {*plain.metrics, "certain_fraction"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, tmp_path: Path) -> None:
    """The command at the head of each example, with the real engine."""
    command = [sys.executable, "-m", "tppo_rl", "train", "file", f"examples/{name}.yaml", "--results", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    (summary,) = tmp_path.glob("*/summary.json")
    found = json.loads(summary.read_text(encoding="utf-8"))
    assert found["updates"] >= 3
    assert found["tokens"]["trained"] > 0
