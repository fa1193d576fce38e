from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tppo_rl.bench.memory import make_update, memory_figures
from tppo_rl.learner import models

VOCABULARY, LENGTH, TOKENS = 2000, 64, 512


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor made in its context has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_no_tensor_holds_all_logits(monkeypatch: pytest.MonkeyPatch, entropy_coef: float) -> None:
    """The largest one is the gradient of all weights, then come the logits of one part."""
    limit = 80 * VOCABULARY
    monkeypatch.setattr(models, "MAX_LOGITS", limit)
    step, batch, targets = make_update(VOCABULARY, LENGTH, TOKENS)
    object.__setattr__(step.options, "entropy_coef", entropy_coef)
    weights = step.policy_gradients.buffer.numel()
    assert weights < 0.3 * TOKENS * VOCABULARY
    with LargestTensor() as largest:
        step.run(batch, targets, policy_version=0)
    assert step.policy_gradients.buffer.any()
    assert limit <= largest.elements == max(limit, weights) < 0.3 * TOKENS * VOCABULARY


@pytest.mark.slow
def test_figures_have_their_names_and_sizes() -> None:
    figures = memory_figures(vocabularies=[100], lengths=[32], tokens=64, repeats=2)
    assert [figure.unit for figure in figures] == ["GiB", "GiB", "CPU s"]
    assert all(figure.low <= figure.median <= figure.high for figure in figures)
    assert figures[0].repeats == 2
    assert "vocabulary 100, 2 x 32 tokens" in figures[0].figure
    assert figures[1].median == 100 * 64 * 4 / 2**30


def test_lengths_that_do_not_divide_the_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="lengths=33"):
        memory_figures(vocabularies=[100], lengths=[33], tokens=64, repeats=1)


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_file_without_ray_or_vllm(tmp_path: Path) -> None:
    arguments = ["bench", "memory", "--vocabulary", "64", "--length", "32", "--tokens", "64", "--json"]
    program = (
        "import sys; from tppo_rl.cli import main\n"
        f"main({[*arguments, str(tmp_path / 'memory.json')]!r}, standalone_mode=False)\n"
        "sys.exit(bool({'ray', 'vllm'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert "peak memory" in run.stdout
    records = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert {tuple(record) for record in records} == {("figure", "median", "low", "high", "repeats", "unit")}
