"""A state as files that hold data alone: JSON, safetensors and Arrow. Nothing in them is ever executed when they are read.

    state.json            the tree: dictionaries, lists, numbers, texts, and references to what stands in the other files
    NAME.safetensors      arrays and tensors, by their place in the tree
    NAME_0_of_2.safetensors, …    rows of arrays, each file written by another process (`sliced_arrays`)
    NAME.arrow            a table
    manifest.json         size and checksum of every other file; written last, so that a folder with it is whole

JSON knows fewer types than Python. What it does not know is an object with one key that begins with `!`:

    {"!array": [file, key]}  {"!tensor": [file, key]}  {"!slices": [name, parts, key, shape]}
    {"!table": file}  {"!scalar": [dtype, value]}
    {"!tuple": [...]}  {"!deque": [...]}  {"!set": [...]}  {"!map": [[key, value], …]}  {"!float": "nan"}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tppo_rl.core.array_files import write_arrays
from tppo_rl.core.fingerprints import fingerprint
from tppo_rl.core.sliced_arrays import ArrayFile, DamagedState, Sliced, StoredArray

FORMAT = 1
MANIFEST = "manifest.json"
_STATE = "state.json"
_CHECKSUM = "checksum"
_READERS = 4
"""Files that are read at a time to compare their checksums."""

_SEQUENCES: dict[str, Any] = {"!tuple": tuple, "!deque": deque, "!set": set}


def write_state(
    folder: Path,
    state: Any,
    *,
    facts: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
    written: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a state. The arguments are those of `take_state` and of `TakenState.write`.

    Raises:
        TypeError: the state holds what no file can hold.
    """
    take_state(state, files).write(folder, facts=facts, written=written)


def take_state(state: Any, files: Mapping[str, str] | None = None) -> TakenState:
    """Takes a state as it is now; it may change before it is written.

    Args:
        state: Dictionaries, lists, tuples, deques, sets, numbers, texts, None, numpy arrays, torch tensors, Arrow tables, and
            `Sliced` for arrays in files that are there already.
        files: Names of safetensors files for parts of the tree, by the path of the part (keys joined by `/`). All other arrays
            go to `arrays.safetensors`, and are copied. Those of the parts are not: they are large, so who gives them has made
            copies where they would change.

    Raises:
        TypeError: the state holds something else.
    """
    taker = _Taker(dict(files or {}))
    text = json.dumps(taker.encoded(state, ""), allow_nan=False, separators=(",", ":"))
    return TakenState(text, taker.arrays, taker.tables)


@dataclass(frozen=True)
class TakenState:
    """A state as it was when it was taken."""

    text: str
    """The tree as JSON."""
    arrays: Mapping[str, Mapping[str, Any]]
    """Arrays by their key, under the name of each file."""
    tables: Mapping[str, pa.Table]
    """By the names of their files; Arrow's tables never change."""

    def write(
        self,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        written: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Writes it.

        Args:
            folder: Is made, if it is not there.
            facts: What the manifest says of it, as JSON.
            written: `Fingerprint.facts` of the files that are there already, by their names. They are not read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _STATE).write_text(self.text, encoding="utf-8")
        for file, table in self.tables.items():
            with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        known = {file: write_arrays(folder / file, arrays) for file, arrays in self.arrays.items()}
        own = [path for path in sorted(folder.iterdir()) if path.name not in {MANIFEST, *(written or {})}]
        all_files = {path.name: known.get(path.name) or fingerprint(path) for path in own} | dict(written or {})
        manifest = json.loads(json.dumps({"format": FORMAT, **facts, "files": all_files}))
        manifest[_CHECKSUM] = _digest(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what `write_state` was told of the state, and its files.

    Raises:
        DamagedState: there is no manifest, or not one of this format.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DamagedState(
            f"it has no {MANIFEST}, which is written last: it is not whole, or not of this format"
        ) from None
    except (OSError, ValueError) as error:
        raise DamagedState(f"{MANIFEST} cannot be read: {error}") from None
    return parse_manifest(text)


def parse_manifest(text: str) -> dict[str, Any]:
    """Returns what the text of a manifest says.

    Raises:
        DamagedState: it is not what was written, or not of this format.
    """
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise DamagedState(f"{MANIFEST} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedState(f"{MANIFEST} is not one of a checkpoint")
    if manifest.pop(_CHECKSUM, None) != _digest(manifest):
        raise DamagedState(f"{MANIFEST} is not what was written: its checksum differs")
    if manifest.get("format") != FORMAT:
        raise DamagedState(f"its format is {manifest.get('format')!r}, and this version reads format {FORMAT}")
    return manifest


def check_sizes(folder: Path) -> dict[str, Any]:
    """Checks that every file is there in its size, and returns the manifest.

    Raises:
        DamagedState: names the files that are missing, cut or longer.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"], contents=())
    return manifest


def check_contents(folder: Path) -> None:
    """Checks that every file is as it was written, several at a time.

    Raises:
        DamagedState: names all files that are not.
    """
    check_files(folder, read_manifest(folder)["files"])


def check_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], *, contents: Collection[str] | None = None
) -> None:
    """Checks that files are as they were written.

    Args:
        folder: Where they are.
        files: What a manifest says of each.
        contents: Names of those whose checksum is looked at, beside the sizes of all; None: all.

    Raises:
        DamagedState: names all that are missing or others.
    """
    bad = damaged_sizes(files, sizes_in(folder))
    looked_at = [name for name in (files if contents is None else contents) if name not in bad]
    with ThreadPoolExecutor(_READERS) as readers:
        found = dict(zip(looked_at, readers.map(lambda name: fingerprint(folder / name), looked_at), strict=True))
    bad |= {
        name: f"{name} is not what was written: its checksum differs"
        for name in looked_at
        if found[name] != files[name]
    }
    if bad:
        raise DamagedState("; ".join(bad[name] for name in files if name in bad))


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder, by name."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def damaged_sizes(files: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> dict[str, str]:
    """Says of each file that is missing, cut or longer what is wrong, by its name.

    Args:
        files: What a manifest says of each.
        sizes: Bytes that there are, by name.
    """
    bad = {}
    for name, expected in files.items():
        if name not in sizes:
            bad[name] = f"{name} is missing"
        elif sizes[name] != expected["size"]:
            bad[name] = f"{name} has {sizes[name]} bytes, and {expected['size']} were written"
    return bad


def files_of_part(folder: Path, part: str) -> dict[str, dict[str, Any]]:
    """Returns what the manifest says of each file of a part of the tree (keys joined by `/`).

    Raises:
        DamagedState: there is no such part, or the state is damaged.
    """
    return _expected(read_manifest(folder), _files_of(_part(_tree(folder), part)))


def read_state(
    folder: Path, *, part: str | None = None, without: str | None = None, lazily: bool = False, check: bool = True
) -> Any:
    """Returns a state whose files are as they were written.

    Args:
        folder: That of `write_state`.
        part: Path of a part of the tree (keys joined by `/`), to read and check no files but its own; None: all.
        without: Key of the tree that is left out, with its files.
        lazily: Whether numpy arrays are `StoredArray`s, whose rows are read when they are asked for.
        check: Whether to look at the checksums of the files; else the caller has done so (`check_files`).

    Raises:
        DamagedState: see `check_files`.
    """
    tree = _tree(folder)
    if part is not None:
        tree = _part(tree, part)
    if without is not None:
        tree = {key: value for key, value in tree.items() if key != without}
    if check:
        manifest = read_manifest(folder)
        everything = part is None and without is None
        check_files(folder, manifest["files"] if everything else _expected(manifest, _files_of(tree)))
    return _Reader(folder, lazily=lazily).decoded(tree)


def _tree(folder: Path) -> Any:
    check_files(folder, _expected(read_manifest(folder), {_STATE}))
    return json.loads((folder / _STATE).read_text(encoding="utf-8"))


def _part(tree: Any, part: str) -> Any:
    for key in part.split("/"):
        try:
            tree = tree[key]
        except (KeyError, TypeError):
            raise DamagedState(f"it holds no {part}") from None
    return tree


def _expected(manifest: Mapping[str, Any], names: Collection[str]) -> dict[str, dict[str, Any]]:
    for name in names:
        if name not in manifest["files"]:
            raise DamagedState(f"{MANIFEST} knows no {name}")
    return {name: manifest["files"][name] for name in sorted(names)}


def _files_of(tree: Any) -> set[str]:
    """Names of the files that a part of the tree refers to."""
    if isinstance(tree, list):
        return {name for item in tree for name in _files_of(item)}
    if not isinstance(tree, dict):
        return set()
    for kind in ("!array", "!tensor"):
        if kind in tree:
            return {tree[kind][0]}
    if "!slices" in tree:
        return set(Sliced(*tree["!slices"]).files)
    return {tree["!table"]} if "!table" in tree else {name for item in tree.values() for name in _files_of(item)}


class _Taker:
    def __init__(self, files: dict[str, str]) -> None:
        self.arrays: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, pa.Table] = {}
        self._files = files
        self._names = Counter[str]()
        self._places: dict[tuple[Any, ...], list[str]] = {}
        """Place of each array by its memory: tied weights are there under two names."""

    def encoded(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            return {"!scalar": [value.dtype.str, _number(value.item())]}
        if value is None or isinstance(value, bool | str | int | float):
            return _number(value)
        if isinstance(value, Sliced):
            return {"!slices": [value.name, value.parts, value.key, list(value.shape)]}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list | tuple | deque | set | frozenset):
            return self._sequence(value, path)
        return self._table(value, path) if isinstance(value, pa.Table) else self._array(value, path)

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
        self.tables[file] = table
        return {"!table": file}

    def _array(self, value: Any, path: str) -> Any:
        import torch

        if not isinstance(value, np.ndarray | torch.Tensor):
            raise TypeError(f"{path}: a checkpoint holds data alone, and no {type(value).__name__}")
        kind, memory = "!array" if isinstance(value, np.ndarray) else "!tensor", _memory_of(value)
        if memory in self._places:
            return {kind: self._places[memory]}
        home = max((part for part in self._files if path.startswith(f"/{part}/")), key=len, default=None)
        file = f"{'arrays' if home is None else self._files[home]}.safetensors"
        key = path.strip("/") if home is None else path[len(home) + 2 :]
        arrays = self.arrays.setdefault(file, {})
        assert key not in arrays, f"two arrays at {path}"
        arrays[key] = value if home is not None else _copy(value)
        if value.nbytes:
            self._places[memory] = [file, key]
        return {kind: [file, key]}


class _Reader:
    def __init__(self, folder: Path, *, lazily: bool) -> None:
        self._folder = folder
        self._lazily = lazily
        self._open: dict[str, ArrayFile] = {}

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
        if kind in ("!array", "!tensor", "!slices"):
            return self._array(kind, value)
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

    def _array(self, kind: str, value: Any) -> Any:
        if kind == "!slices":
            sliced = Sliced(*value)
            stored = StoredArray(sliced.key, [self._file(name) for name in sliced.files], sliced.shape)
        else:
            file, key = self._file(value[0]), value[1]
            if kind == "!tensor":
                return file.file.get_tensor(key)
            stored = StoredArray(key, [file], file.file.get_slice(key).get_shape())
        return stored if self._lazily else np.asarray(stored)

    def _file(self, name: str) -> ArrayFile:
        if name not in self._open:
            self._open[name] = ArrayFile(self._folder / Path(name).name)
        return self._open[name]


def _number(value: Any) -> Any:
    """A number, text or None as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"!float": repr(float(value))}
    return value


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value.detach().clone()


def _memory_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        return value.ctypes.data, value.shape, value.strides, value.dtype.str
    return value.data_ptr(), tuple(value.shape), value.stride(), str(value.dtype)


def _digest(manifest: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != _CHECKSUM}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
