"""Ordinary model folders from GGUF files, the format of llama.cpp: weights are read as float32, whatever they were rounded to."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError

_logger = logging.getLogger(__name__)
_KNOWN_BY_TRANSFORMERS = frozenset({"default", "gpt-2", "llama-bpe", "qwen2", "llama", "gemma", "phi-2"})
"""Names of pre-tokenizers (`tokenizer.ggml.pre`) that need nothing beside what transformers makes of the file."""


def import_gguf(file: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as a folder that transformers and vLLM load: weights, config, tokenizer, template.

    Args:
        file: The GGUF file.
        folder: New folder, which must not exist or be empty.

    Raises:
        OptionError: no such file, a folder with something in it, a missing package, or a file that transformers cannot read.
    """
    if not file.is_file():
        raise OptionError(f"FILE={str(file)!r}: no such file; give a GGUF file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise OptionError(
                f"FILE={str(file)!r}: is not in the GGUF format; give a file that begins with the bytes GGUF"
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"DIR={str(folder)!r}: exists and is not empty; give a new folder")
    if importlib.util.find_spec("gguf") is None:
        raise OptionError(
            "import-model needs the package gguf; install it, for example with pip install 'tppo-rl[real]'"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What is there under the folder's name is always a whole model.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as parent:
        unfinished = Path(parent) / "model"
        model, tokenizer = _load(file)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.replace(folder)


def _load(file: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except Exception as error:
        # A broken file may end in any error of the reader.
        raise OptionError(
            f"FILE={str(file)!r}: transformers cannot read it ({type(error).__name__}: {error}); give a whole file of an "
            "architecture that transformers knows"
        ) from error
    _mend_pre_tokenizer(tokenizer, _pre_tokenizer_name(file))
    return model, tokenizer


def _pre_tokenizer_name(file: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return "default" if field is None else str(field.contents())


def _mend_pre_tokenizer(tokenizer: Any, name: str) -> None:
    """Sets the pre-tokenizer that a GGUF file only names, where transformers does not know it."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if name in ("smollm", "starcoder", "refact", "command-r"):
        tokenizer._tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    elif name not in _KNOWN_BY_TRANSFORMERS:
        _logger.warning(
            "the file names the pre-tokenizer %r, which transformers does not know: texts may be cut into other tokens than "
            "in the original model; compare with its tokenizer.json",
            name,
        )
