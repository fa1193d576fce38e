"""Size and checksum of a file, from its bytes as they are written, or from the file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


class Fingerprint:
    """Takes the bytes of a file one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        self._digest.update(data)
        self._size += len(data)

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest says of the file: `size` in bytes, `blake2b`."""
        return {"size": self._size, "blake2b": self._digest.hexdigest()}


def fingerprint(path: Path) -> dict[str, Any]:
    """Returns `Fingerprint.facts` of a file."""
    taken = Fingerprint()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            taken.add(chunk)
    return taken.facts()
