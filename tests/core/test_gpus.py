"""GPUs that are stated, and those that NVIDIA's tool tells of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tppo_rl.core.gpus import Gpus, gpus_here, parse_gpus


@pytest.mark.parametrize(
    ("text", "nodes", "memory"),
    [
        ("h100", (1,), 80e9),
        ("8 x H100", (8,), 80e9),
        ("2x8xh200", (8, 8), 141e9),
        ("24 GiB", (1,), 24 * 2**30),
        ("3 x 2 x 79.5 GiB", (2, 2, 2), 79.5 * 2**30),
    ],
)
def test_stated_gpus(text: str, nodes: tuple[int, ...], memory: float) -> None:
    found = parse_gpus(text)
    assert (found.nodes, found.memory, found.total) == (nodes, int(memory), sum(nodes))
    assert found.source == f"gpus: {text}"


@pytest.mark.parametrize("text", ["", "8", "h100 x 8", "0 x h100", "0 GiB", "2 x 2 x 2 x h100", "-1 x h100"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 'h100', '8 x h100'"):
        parse_gpus(text)


def test_an_unknown_card_is_named_by_its_size() -> None:
    with pytest.raises(ValueError, match="no such card; give one of a100, h100, h200, or its size"):
        parse_gpus("2 x b100")


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of NVIDIA's, alone on the path."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def write(tool: Path, script: str) -> None:
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(0o755)


def test_the_smallest_gpu_of_the_machine_counts(tool: Path) -> None:
    write(tool, "echo 81559; echo 24564")
    assert gpus_here() == Gpus((2,), 24564 * 2**20, "this machine")


@pytest.mark.parametrize(("visible", "number"), [("1", 1), ("0,1", 2), ("", None), ("-1", None)])
def test_hidden_gpus_do_not_count(
    tool: Path, visible: str, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tool, "echo 81559; echo 81559; echo 81559")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpus_here()
    assert (found and found.total) == number


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "true", "echo broken; exit 1"])
def test_a_tool_that_finds_nothing(tool: Path, script: str) -> None:
    write(tool, script)
    assert gpus_here() is None


def test_no_tool(tool: Path) -> None:
    assert not tool.exists()
    assert gpus_here() is None
