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


def test_a_folder_without_a_tokenizer_is_no_other_tokenizer(tmp_path: Path) -> None:
    """transformers makes a tokenizer of one token out of nothing for some kinds of models, and numbers it 0."""
    policy, critic = tmp_path / "policy", tmp_path / "critic"
    for folder in (policy, critic):
        shutil.copytree(resolve_model(POLICY), folder)
    content = json.loads((policy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    number = vocabulary.pop(next(token for token, place in vocabulary.items() if place == 50))
    vocabulary["<|endoftext|>"] = number
    (policy / "tokenizer.json").write_text(json.dumps(content))
    for file in critic.glob("tokenizer*"):
        file.unlink()
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(critic).get_vocab() == {"<|endoftext|>": 0}
    check_vocabularies(Options.of(policy_model=str(policy), critic=str(critic)))


def test_tokens_that_the_policy_itself_has_no_embedding_for_are_no_fault(tmp_path: Path) -> None:
    policy, critic = tmp_path / "policy", tmp_path / "critic"
    for folder in (policy, critic):
        shutil.copytree(resolve_model(POLICY), folder)
        change_json(folder / "config.json", vocab_size=90)
    check_vocabularies(Options.of(policy_model=str(policy), critic=str(critic)))


def test_a_tokenizer_that_cannot_be_read_is_none(other: Path) -> None:
    (other / "tokenizer.json").write_text("{}")
    check_vocabularies(options_with(critic=str(other)))
