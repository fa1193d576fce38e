"""Critics and references that read the policy's tokens as others are refused before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.config.vocabularies import check_vocabularies
from tppo_rl.core.errors import OptionError

POLICY = "tppo_rl/arithmetic-chain"


def options_with(**models: Any) -> Options:
    return Options.of(policy_model=POLICY, **models)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The policy's folder once more."""
    shutil.copytree(resolve_model(POLICY), tmp_path / "other")
    return tmp_path / "other"


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


KEYS = [{"critic": "FOLDER"}, {"kl_coef": 0.1, "reference_model": "FOLDER"}]


@pytest.mark.parametrize("models", KEYS)
def test_a_model_with_the_same_tokens_is_taken(other: Path, models: dict[str, Any]) -> None:
    given = {key: str(other) if value == "FOLDER" else value for key, value in models.items()}
    check_vocabularies(options_with(**given))
    check_vocabularies(options_with())
    # One without a tokenizer is only asked for the size.
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    check_vocabularies(options_with(**given))


@pytest.mark.parametrize("models", KEYS)
def test_too_small_a_vocabulary_is_refused(other: Path, models: dict[str, Any]) -> None:
    given = {key: str(other) if value == "FOLDER" else value for key, value in models.items()}
    change_json(other / "config.json", vocab_size=50)
    key = list(models)[-1]
    with pytest.raises(
        OptionError, match=rf"^{key}='.*other': knows 50 tokens, and those of policy_model='{POLICY}' go up"
    ):
        check_vocabularies(options_with(**given))


def test_another_tokenizer_is_refused(other: Path) -> None:
    from transformers import AutoTokenizer

    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    special = set(AutoTokenizer.from_pretrained(other).all_special_tokens)
    first, second = [token for token in vocabulary if token not in special][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))
    with pytest.raises(OptionError, match=r"^critic='.*other': its token .* is number \d+, and that of policy_model="):
        check_vocabularies(options_with(critic=str(other)))
