"""`tppo-rl chat` on the real engine: answers as they are sampled, probabilities, values, and what it refuses."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import save_checkpoint

from tppo_rl.base_models import resolve_model
from tppo_rl.learner.models import Policy, load_causal_lm
from tppo_rl.rollout.chat import Chat

MODEL = "tppo_rl/arithmetic-chain"


def chat(*arguments: Any, typed: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "tppo_rl", "chat", *map(str, arguments)]
    # vLLM keeps the streams of the process that it starts in.
    result = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stderr if code else result.stdout


@pytest.mark.integration
def test_a_line_is_answered_as_the_model_itself_answers_it() -> None:
    output = chat(
        MODEL, "--temperature", 0, "--probabilities", "--set", "max_response_length=24", typed="1+2+3=\n\n4+5=\n"
    )
    blocks = output.split("\n")
    rows = [re.fullmatch(r" +([\d.]+)%  ('.*')", line) for line in blocks]
    found = [(float(row[1]) / 100, row[2][1:-1]) for row in rows if row]
    # Two prompts: the empty line between them is none.
    answers = [line for line, row in zip(blocks, rows, strict=True) if line and not row]
    assert len(answers) == 2
    assert "".join(text for _, text in found) == "".join(answers)
    tokenizer = Chat.from_pretrained(resolve_model(MODEL))
    policy = Policy(load_causal_lm(resolve_model(MODEL), torch.float32))
    tokens = tokenizer.prompt("1+2+3=")
    with torch.no_grad():
        first = policy.logits(torch.tensor([tokens]))[0, -1].softmax(-1)
    assert found[0][0] == pytest.approx(float(first.max()), abs=1e-3)
    assert math.isclose(sum(map(float, first)), 1.0, rel_tol=1e-4)


@pytest.mark.slow
def test_values_are_those_of_the_critic_of_a_checkpoint(tmp_path: Path) -> None:
    _, module = save_checkpoint(tmp_path)
    output = chat(tmp_path / "run", "--values", "--temperature", 0, "--set", "max_response_length=4", typed="1+2=\n")
    values = [float(value) for value in re.findall(r"value ([-+][\d.]+)", output)]
    assert 1 <= len(values) <= 4
    assert module.critic is not None
    prompt = Chat.from_pretrained(resolve_model(MODEL)).prompt("1+2=")
    generated = _greedy(module.policy, prompt, len(values))
    with torch.no_grad():
        expected = module.critic(torch.tensor([generated]))[0, len(prompt) :]
    assert values == pytest.approx([round(float(value), 3) for value in expected], abs=2e-3)


def _greedy(policy: Policy, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(policy.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens


def test_values_of_a_model_alone_are_refused() -> None:
    assert "--values: tppo_rl/arithmetic-chain is a model without a critic" in chat(MODEL, "--values", typed="", code=2)
