"""A text that no path can have names nothing that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tppo_rl.base_models import resolve_model
from tppo_rl.config.model_files import load_model_config
from tppo_rl.config.places import with_absolute_places
from tppo_rl.core.errors import OptionError
from tppo_rl.core.paths import exists, expanded

ODD = ["x" * 5000, "a\0b", "~nobody-at-all/x", "tppo_rl/" + "x" * 5000]


@pytest.mark.parametrize("text", ODD)
def test_it_names_nothing(text: str) -> None:
    assert not exists(expanded(text))
    assert resolve_model(text) == text
    options = {
        "policy_model": text,
        "env": f"{text}.py:E-v0",
        "env_config": {"source": text, "verifier": f"{text}.py:f"},
        "rewards": {"type": "model", "model": text},
    }
    assert with_absolute_places(options) == options
    with pytest.raises(OptionError, match=r"^policy_model="):
        load_model_config("policy_model", text)


def test_what_exists_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    assert exists(expanded("~/file"))
    assert exists(tmp_path)
    assert not exists(tmp_path / "other")
