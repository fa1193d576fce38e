"""Folders of models that are not whole are refused before anything loads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tppo_rl.base_models import resolve_model
from tppo_rl.config.model_files import check_weight_files, load_model_config
from tppo_rl.core.errors import OptionError
from tppo_rl.rollout.chat import Chat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(resolve_model("tppo_rl/arithmetic-chain"), tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_is_taken(folder: Path) -> None:
    check_weight_files("policy_model", str(folder))
    check_weight_files("policy_model", "some/hub-id")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    check_weight_files("policy_model", str(folder))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights_are_refused(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        OptionError, match=r"^critic='.*model': .*model\.safetensors is cut off, or no safetensors file"
    ):
        check_weight_files("critic", str(folder))


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=r"^policy_model='.*model': the folder has no weights"):
        check_weight_files("policy_model", str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')
    with pytest.raises(
        OptionError, match=r"part\.safetensors is missing, and model\.safetensors\.index\.json names it"
    ):
        check_weight_files("policy_model", str(folder))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(OptionError, match=r"^policy_model='.*model': .*config\.json is no JSON object"):
        load_model_config("policy_model", str(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(OptionError, match=r"^policy_model='.*model': has no tokenizer"):
        Chat.from_pretrained(str(folder))
