"""A state as files that hold data alone: JSON, safetensors and Arrow. Nothing in them is ever executed when they are read.

    state.json            the tree: dictionaries, lists, numbers, texts, and references to what stands in the other files
    NAME.safetensors      arrays and tensors, by their place in the tree
    NAME.arrow            a table
    manifest.json         size and checksum of every other file; written last, so that a folder with it is whole

JSON knows fewer types than Python. What it does not know is an object with one key that begins with `!`:

    {"!array": [file, key]}  {"!tensor": [file, key]}  {"!table": file}  {"!scalar": [dtype, value]}
    {"!tuple": [...]}  {"!deque": [...]}  {"!set": [...]}  {"!map": [[key, value], …]}  {"!float": "nan"}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT = 1
MANIFEST = "manifest.json"
_STATE = "state.json"
_CHECKSUM = "checksum"
_CHUNK = 1 << 20


_SEQUENCES: dict[str, Any] = {"!tuple": tuple, "!deque": deque, "!set": set}


class DamagedState(ValueError):
    """A folder does not hold a whole state of this format."""


def write_state(folder: Path, state: Any, *, facts: Mapping[str, Any], files: Mapping[str, str] | None = None) -> None:
    """Writes a state.

    Args:
        folder: Is made, if it is not there.
        state: Dictionaries, lists, tuples, deques, sets, numbers, texts, None, numpy arrays, torch tensors, Arrow tables.
        facts: What the manifest says of it, as JSON.
        files: Names of safetensors files for parts of the tree, by the path of the part (keys joined by `/`). All other arrays
            go to `arrays.safetensors`.

    Raises:
        TypeError: the state holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder, dict(files or {}))
    text = json.dumps(writer.encoded(state, ""), allow_nan=False, separators=(",", ":"))
    (folder / _STATE).write_text(text, encoding="utf-8")
    writer.write_arrays()
    written = {path.name: _fingerprint(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    manifest = json.loads(json.dumps({"format": FORMAT, **facts, "files": written}))
    manifest[_CHECKSUM] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what `write_state` was told of the state, and its files.

    Raises:
        DamagedState: there is no manifest, or not one of this format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedState(
            f"it has no {MANIFEST}, which is written last: it is not whole, or not of this format"
        ) from None
    except (OSError, ValueError) as error:
        raise DamagedState(f"{MANIFEST} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedState(f"{MANIFEST} is not one of a checkpoint")
    if manifest.pop(_CHECKSUM, None) != _digest(manifest):
        raise DamagedState(f"{MANIFEST} is not what was written: its checksum differs")
    if manifest.get("format") != FORMAT:
        raise DamagedState(f"its format is {manifest.get('format')!r}, and this version reads format {FORMAT}")
    return manifest


def check_sizes(folder: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """Checks that every file, or only some, is there in its size, and returns the manifest.

    Raises:
        DamagedState: names the first file that is missing, cut or longer.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"] if only is None else only:
        expected = manifest["files"].get(name)
        if expected is None:
            raise DamagedState(f"{MANIFEST} knows no {name}")
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise DamagedState(f"{name} is missing")
        if path.stat().st_size != expected["size"]:
            raise DamagedState(f"{name} has {path.stat().st_size} bytes, and {expected['size']} were written")
    return manifest


def check_files(folder: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """Checks that every file, or only some, is as it was written, and returns the manifest.

    Raises:
        DamagedState: names the first file that is missing or another one.
    """
    manifest = check_sizes(folder, only)
    for name in manifest["files"] if only is None else only:
        if _fingerprint(folder / name) != manifest["files"][name]:
            raise DamagedState(f"{name} is not what was written: its checksum differs")
    return manifest


def read_state(folder: Path, *, part: str | None = None) -> Any:
    """Returns a state whose files are as they were written.

    Args:
        folder: That of `write_state`.
        part: Path of a part of the tree (keys joined by `/`), to read and check no files but its own; None: all.

    Raises:
        DamagedState: see `check_files`.
    """
    check_files(folder, only=[_STATE])
    tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    for key in [] if part is None else part.split("/"):
        try:
            tree = tree[key]
        except (KeyError, TypeError):
            raise DamagedState(f"it holds no {part}") from None
    check_files(folder, only=None if part is None else sorted(_files_of(tree)))
    return _Reader(folder).decoded(tree)


def _files_of(tree: Any) -> set[str]:
    """Names of the files that a part of the tree refers to."""
    if isinstance(tree, list):
        return {name for item in tree for name in _files_of(item)}
    if not isinstance(tree, dict):
        return set()
    for kind in ("!array", "!tensor"):
        if kind in tree:
            return {tree[kind][0]}
    return {tree["!table"]} if "!table" in tree else {name for item in tree.values() for name in _files_of(item)}


class _Writer:
    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self._folder = folder
        self._files = files
        self._arrays: dict[str, dict[str, Any]] = {}
        self._names = Counter[str]()
        self._written: dict[tuple[Any, ...], list[str]] = {}
        """Place of each array by its memory: tied weights are there under two names."""

    def encoded(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            return {"!scalar": [value.dtype.str, _number(value.item())]}
        if value is None or isinstance(value, bool | str | int | float):
            return _number(value)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list | tuple | deque | set | frozenset):
            return self._sequence(value, path)
        return self._table(value, path) if isinstance(value, pa.Table) else self._array(value, path)

    def write_arrays(self) -> None:
        from safetensors.torch import save_file

        for file, arrays in self._arrays.items():
            save_file(arrays, self._folder / file)

    def _sequence(self, value: Any, path: str) -> Any:
        kind = next((name for name, kind in _SEQUENCES.items() if isinstance(value, kind)), None)
        items = sorted(value) if kind == "!set" else value
        encoded = [self.encoded(item, f"{path}/{index}") for index, item in enumerate(items)]
        return encoded if kind is None else {kind: encoded}

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return {key: self.encoded(item, f"{path}/{key}") for key, item in value.items()}
        pairs = [[self.encoded(key, path), self.encoded(item, f"{path}/{key}")] for key, item in value.items()]
        return {"!map": pairs}

    def _table(self, table: pa.Table, path: str) -> Any:
        name = path.rsplit("/", 1)[-1] or "table"
        self._names[name] += 1
        file = f"{name}.arrow" if self._names[name] == 1 else f"{name}_{self._names[name]}.arrow"
        with pa.OSFile(str(self._folder / file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return {"!table": file}

    def _array(self, value: Any, path: str) -> Any:
        import torch

        if not isinstance(value, np.ndarray | torch.Tensor):
            raise TypeError(f"{path}: a checkpoint holds data alone, and no {type(value).__name__}")
        memory = _memory_of(value)
        if memory in self._written:
            return {"!array" if isinstance(value, np.ndarray) else "!tensor": self._written[memory]}
        if isinstance(value, np.ndarray):
            kind, tensor = "!array", torch.from_numpy(np.require(value, requirements=["C", "W", "O"]))
        else:
            kind, tensor = "!tensor", value.detach().cpu().contiguous().clone()
        home = max((part for part in self._files if path.startswith(f"/{part}/")), key=len, default=None)
        file = f"{'arrays' if home is None else self._files[home]}.safetensors"
        key = path.strip("/") if home is None else path[len(home) + 2 :]
        arrays = self._arrays.setdefault(file, {})
        assert key not in arrays, f"two arrays at {path}"
        arrays[key] = tensor
        if value.nbytes:
            self._written[memory] = [file, key]
        return {kind: [file, key]}


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decoded(item) for item in value]
        if not isinstance(value, dict):
            return value
        key = next(iter(value), "")
        if len(value) != 1 or not key.startswith("!"):
            return {name: self.decoded(item) for name, item in value.items()}
        return self._special(key, value[key])

    def _special(self, kind: str, value: Any) -> Any:
        if kind in ("!array", "!tensor"):
            tensor = self._tensors(value[0]).get_tensor(value[1])
            return tensor.numpy() if kind == "!array" else tensor
        if kind == "!table":
            with pa.OSFile(str(self._folder / Path(value).name), "rb") as source:
                return pa.ipc.open_file(source).read_all()
        if kind == "!scalar":
            return np.dtype(value[0]).type(self.decoded(value[1]))
        if kind == "!float":
            return float(value)
        if kind == "!map":
            return {self.decoded(key): self.decoded(item) for key, item in value}
        if kind not in _SEQUENCES:
            raise DamagedState(f"{_STATE} holds {kind!r}, which this version does not know")
        return _SEQUENCES[kind](self.decoded(item) for item in value)

    def _tensors(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._open:
            self._open[file] = safe_open(str(self._folder / Path(file).name), framework="pt")
        return self._open[file]


def _number(value: Any) -> Any:
    """A number, text or None as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"!float": repr(float(value))}
    return value


def _memory_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        return value.ctypes.data, value.shape, value.strides, value.dtype.str
    return value.data_ptr(), tuple(value.shape), value.stride(), str(value.dtype)


def _digest(manifest: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != _CHECKSUM}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "blake2b": digest.hexdigest()}
