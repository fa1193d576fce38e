"""The text of single tokens, and the bytes of those that are no text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_UNKNOWN = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHORS = ("a", "0", "A", "the")


class Pieces(NamedTuple):
    """What tokens show."""

    texts: list[str]
    """Of each token after another one; empty where `parts` has its bytes."""
    parts: dict[int, bytes]
    """Bytes of tokens, by position, that are a part of a character: only with their neighbors they are text."""
    special: set[int]
    """Positions of special tokens, such as the end of a turn."""


def pieces_of(tokenizer: Any, tokens: Sequence[int]) -> Pieces:
    """Returns the text of each token as it stands within a response.

    Args:
        tokenizer: Of Hugging Face, or anything with `decode`.
        tokens: Ids, each once.
    """
    decode = _decoder(tokenizer)
    anchor, lead = _anchor(tokenizer, decode)
    special_ids = set(getattr(tokenizer, "all_special_ids", ()))
    names = _names(tokenizer, tokens)
    texts: list[str] = []
    parts: dict[int, bytes] = {}
    special: set[int] = set()
    for position, (token, name) in enumerate(zip(tokens, names, strict=True)):
        if token in special_ids:
            special.add(position)
        text = decode([*anchor, int(token)])
        text = text[len(lead) :] if text.startswith(lead) else decode([int(token)])
        raw = _raw_bytes(name) if _UNKNOWN in text else None
        if raw is not None:
            parts[position] = raw
            text = ""
        texts.append(text)
    return Pieces(texts, parts, special)


def _decoder(tokenizer: Any) -> Any:
    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def _anchor(tokenizer: Any, decode: Any) -> tuple[list[int], str]:
    """A token to stand before each other one: decoders drop the space before the first."""
    convert = getattr(tokenizer, "convert_tokens_to_ids", None)
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    for text in _ANCHORS:
        if convert is not None and text in vocabulary:
            anchor = [int(convert(text))]
            return anchor, decode(anchor)
    return [], ""


def _names(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    if convert is None:
        return [""] * len(tokens)
    return [name or "" for name in convert([int(token) for token in tokens])]


def _raw_bytes(name: str) -> bytes | None:
    """Bytes of a token's name in byte-level or SentencePiece vocabularies; None if it is neither."""
    if match := _BYTE.fullmatch(name):
        return bytes([int(match.group(1), 16)])
    found = [_BYTES.get(letter) for letter in name]
    return bytes(byte for byte in found if byte is not None) if found and None not in found else None


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in set(plain)]
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_letters()
