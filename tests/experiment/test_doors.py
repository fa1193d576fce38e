"""What a user brings in files outside of this repository, named in YAML, on real vLLM and real Ray."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tppo_rl.experiment.result_log import read_results

pytestmark = pytest.mark.integration

FILES = {
    "losses.py": """
        import torch
        from tppo_rl.learner.policy_losses import LossTerms

        def plain(log_probs, entropy, tokens, options, *, scale: float = 1.0):
            loss = -scale * tokens.advantages * log_probs
            return LossTerms(loss, {"surprise": -log_probs})
        """,
    "advantages.py": """
        import torch

        def returns(batch, values, options, *, baseline: float):
            of_fragment = batch.window.rewards.sum(dim=1, keepdim=True) - baseline
            return torch.where(batch.window.mask, of_fragment, 0.0)
        """,
    "rewards.py": """
        def short(completions, number, *, per_character: float = 0.01, **columns):
            return [float(n in text) - per_character * len(text) for text, n in zip(completions, number)]
        """,
    "algorithm.py": """
        from tppo_rl.core.algorithm_spec import AlgorithmSpec

        SPEC = AlgorithmSpec(
            name="REINFORCE",
            title="policy gradient with a constant baseline",
            paper="Williams 1992",
            batches="whole_responses",
            advantages="./advantages.py:returns",
            policy_loss="./losses.py:plain",
            critic=None,
            defaults={
                "advantage_estimator": {"type": "./advantages.py:returns", "baseline": 0.5},
                "lr": 1e-4,
            },
            fixed={"critic": "it has none"},
        )
        """,
    "environment.py": """
        import gymnasium
        from tppo_rl.envs import Problem, Reply, TextEnv

        class Echo(TextEnv):
            def candidates(self, rng):
                while True:
                    number = str(rng.integers(1000))
                    yield Problem(f"a{number}=", number, {"number": number})

            def respond(self, problem, text, turn):
                return Reply(score=float(problem.worked_solution in text))

        if "user/Echo-v0" not in gymnasium.registry:
            gymnasium.register(id="user/Echo-v0", entry_point=Echo)
        """,
    "run.yaml": """
        own:
          run: ./algorithm.py:SPEC
          env: ./environment.py:user/Echo-v0
          stop: {training_iteration: 2}
          checkpoint_config: {checkpoint_at_end: false}
          config:
            policy_model: tppo_rl/arithmetic-chain
            rewards: {type: ./rewards.py:short, per_character: 0.5}
            num_envs_per_env_runner: 8
            max_response_length: 24
            max_prompt_length: 120
            evaluation_duration: 8
        """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return tmp_path


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tppo_rl", "train", "file", "run.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_own_algorithm_loss_advantage_and_reward_train(folder: Path) -> None:
    run = train(folder, "--results", "out")
    assert run.returncode == 0, run.stderr[-2000:]
    first, second = read_results(folder / "out" / "own")
    for result in (first, second):
        assert result["policy"]["surprise"] > 0
        # Half a reward for every character of the answer.
        assert result["rollout"]["return_mean"] < -1
        assert result["rollout"]["finished_episodes"] == 8
    assert first["policy"]["advantage_mean"] < -1.5
    assert "loss" not in second["critic"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run=./algorithm.py:SPOC", "own.run='./algorithm.py:SPOC': ./algorithm.py has no 'SPOC'"),
        ("run=./losses.py:plain", "is a function, not an AlgorithmSpec"),
        ("run=TPO", "own.run='TPO': unknown name, did you mean TPPO"),
        ("critic=separate", "critic='separate': REINFORCE has critic=None: it has none"),
        (
            "policy_loss={type: ./losses.py:plain, scal: 2}",
            "policy_loss.scal=2: unknown option, did you mean policy_loss.scale",
        ),
        ("rewards=./rewards.py:long", "./rewards.py has no 'long'"),
        ("advantage_estimator=./advantages.py:returns", "needs baseline; give them"),
        ("env=./nothing.py:Echo-v0", "env='./nothing.py:Echo-v0'"),
    ],
)
def test_mistakes_are_named_before_anything_starts(folder: Path, change: str, message: str) -> None:
    run = train(folder, "--set", change)
    assert run.returncode == 2, run.stderr[-2000:]
    assert message in run.stderr
    assert "Traceback" not in run.stderr
