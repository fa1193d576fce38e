"""Configs of models: from a folder, a hub id or a shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tppo_rl.base_models import resolve_model
from tppo_rl.core.checkpoint_files import is_checkpoint
from tppo_rl.core.errors import OptionError
from tppo_rl.core.paths import exists

_HUB_TIMEOUT_S = 5.0


def load_model_config(key: str, name: str) -> dict[str, Any]:
    """Returns the config of a model: a folder, a hub id or a shipped model.

    Args:
        key: Option that names the model, for messages.
        name: Value of that option.

    Raises:
        OptionError: no such model.
    """
    model = resolve_model(name)
    folder = Path(model)
    if exists(folder) and folder.is_dir():
        config = folder / "config.json"
        if is_checkpoint(folder) or any(map(is_checkpoint, folder.glob("checkpoints/*"))):
            raise OptionError(
                f"{key}={name!r}: is a checkpoint of a run; write its model with `tppo-rl export {name} DIR` (its critic with "
                "--critic DIR), and give that folder"
            )
        if not config.is_file():
            raise OptionError(f"{key}={name!r}: the folder has no config.json; give a Hugging Face model folder")
        try:
            return dict(json.loads(config.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OptionError(f"{key}={name!r}: {config} is no JSON object ({error}); copy it again") from None
    if folder.is_absolute() or name.startswith("."):
        raise OptionError(f"{key}={name!r}: no such folder; `tppo-rl warmstart` makes a small model")
    return _load_hub_config(key, name)


def check_weight_files(key: str, name: str) -> None:
    """Looks whether the weights in a model's folder are there and whole, by their sizes; of a hub id nothing is asked.

    Raises:
        OptionError: there are none, or a file is missing or cut off.
    """
    folder = Path(resolve_model(name))
    if not folder.is_dir() or any(folder.glob("*.bin")):
        return
    index = folder / "model.safetensors.index.json"
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else None
    except (ValueError, KeyError, AttributeError):
        raise OptionError(f"{key}={name!r}: {index} cannot be read; copy it again") from None
    files = sorted(folder.glob("*.safetensors")) if parts is None else [folder / part for part in sorted(parts)]
    if not files:
        raise OptionError(
            f"{key}={name!r}: the folder has no weights (*.safetensors or *.bin); give a whole model folder"
        )
    for file in files:
        if not file.is_file():
            raise OptionError(f"{key}={name!r}: {file} is missing, and {index.name} names it; copy it too")
        if not _is_whole(file):
            raise OptionError(f"{key}={name!r}: {file} is cut off, or no safetensors file; copy it again")


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes with the header's length, the header as JSON, the tensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > file.stat().st_size:
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return bool(file.stat().st_size == 8 + length + max(ends, default=0))


def _load_hub_config(key: str, name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import get_session, validate_repo_id

    try:
        validate_repo_id(name)
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return dict(json.loads(Path(cached).read_text(encoding="utf-8")))
        # One request: the library's own download would retry for half a minute before it reports a missing network.
        reply = get_session().get(hf_hub_url(name, "config.json"), timeout=_HUB_TIMEOUT_S, follow_redirects=True)
        reply.raise_for_status()
        return dict(reply.json())
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        words = "give separate, shared, a folder" if key == "critic" else "give a folder"
        raise OptionError(
            f"{key}={name!r}: neither a folder nor a model that the hub gives ({reason}); {words}, a hub id that this "
            "machine can reach or has cached, or tppo_rl/arithmetic-chain"
        ) from None
