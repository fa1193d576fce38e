"""Relative places become absolute, for processes in other folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tppo_rl.config.places import absolute_place, with_absolute_places


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl", "score.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"source": "train.jsonl"}, {"source": "{here}/train.jsonl"}),
        (
            {"source": ["train.jsonl", "folder", "openai/gsm8k"]},
            {"source": ["{here}/train.jsonl", "{here}/folder", "openai/gsm8k"]},
        ),
        ({"heldout": {"source": "test.jsonl"}}, {"heldout": {"source": "{here}/test.jsonl"}}),
        ({"heldout": {"column": "train.jsonl"}}, {"heldout": {"column": "train.jsonl"}}),
        ({"source": {"grid_search": ["train.jsonl", "x"]}}, {"source": {"grid_search": ["{here}/train.jsonl", "x"]}}),
        ({"verifier": "./score.py:f"}, {"verifier": "{here}/score.py:f"}),
        ({"verifier": {"type": "score.py:f", "a": 1}}, {"verifier": {"type": "{here}/score.py:f", "a": 1}}),
        ({"verifier": "numeric", "source": ""}, {"verifier": "numeric", "source": ""}),
        (
            {"task": "train.jsonl", "examples": [{"prompt": "folder"}]},
            {"task": "train.jsonl", "examples": [{"prompt": "folder"}]},
        ),
    ],
)
def test_places_in_options_of_an_environment(here: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        return value.replace("{here}", str(here)) if isinstance(value, str) else value

    assert absolute_place("env_config", given) == filled(expected)
    assert with_absolute_places({"env_config": given, "lr": 1.0}) == {"env_config": filled(expected), "lr": 1.0}
