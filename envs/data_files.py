"""Rows of data files: JSON lines, JSON, CSV, Parquet, folders of the `datasets` package and ids of its hub.

Every row knows its place (file and line), so that whoever finds it unfit can say where it stands.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tppo_rl.core.paths import exists, expanded
from tppo_rl.envs.text_env import require

_HUB_ID_PARTS = 2


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        places: Files, folders and hub ids, read one after the other.
        subset: Subset ("configuration") of a hub id; None: its only one.
        source_split: Split of a hub id or folder; None: "train", or the only one there is.
        key: Option that names the places, for messages.
    """

    places: tuple[str, ...]
    subset: str | None = None
    source_split: str | None = None
    key: str = "source"


@dataclass(frozen=True)
class Row:
    """One row as it was read.

    Attributes:
        place: File and line, for messages.
        columns: Values by column, or None where the row cannot be read.
        reason: Why it cannot be read.
    """

    place: str
    columns: Mapping[str, Any] | None
    reason: str = ""


def read_rows(source: Source) -> Iterator[Row]:
    """The rows of all places, in order.

    Raises:
        ValueError: A place does not exist, is of no known form, or cannot be read to its end.
    """
    for place in source.places:
        path = expanded(place)
        if exists(path) and path.is_file():
            yield from _rows_of_file(path, place, source.key)
        elif exists(path) and path.is_dir():
            yield from _rows_of_folder(path, place, source)
        else:
            require(_may_be_hub_id(place), source.key, place, f"no such file or folder (in {Path.cwd()})")
            yield from _rows_of_hub_id(place, source)


def stamp(source: Source) -> tuple[tuple[str, int, int], ...]:
    """Path, time of change and size of the files among the places: different where a file was written anew."""
    paths = [expanded(place) for place in source.places]
    states = [(str(path), path.stat()) for path in paths if exists(path) and path.is_file()]
    return tuple((path, state.st_mtime_ns, state.st_size) for path, state in states)


def _may_be_hub_id(place: str) -> bool:
    parts = place.split("/")
    named = all(part and part.strip(".~") for part in parts)
    return len(parts) <= _HUB_ID_PARTS and named and Path(place).suffix.lower() not in _READERS


def _rows_of_file(path: Path, place: str, key: str) -> Iterator[Row]:
    suffix = path.suffix.lower()
    require(
        suffix in _READERS, key, place, f"files end with {', '.join(_READERS)}; write the rows in one of these formats"
    )
    try:
        yield from _READERS[suffix](path)
    except OSError as error:
        raise ValueError(f"{key}={place!r}: cannot be read ({error}); give a file that can") from None


def _broken(place: str, form: str, error: Exception) -> ValueError:
    """The error of a file of which more than a row is lost, so that no row can be skipped."""
    return ValueError(f"{place}: no {form} ({error}); correct the file")


def _json_rows(path: Path) -> Iterator[Row]:
    """Rows of a list of objects or, where the file does not begin with a bracket, of JSON lines."""
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        yield from _rows_of_list(path, file) if start.startswith(b"[") else _rows_of_lines(path, file)


def _rows_of_lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    # Lines end with \n alone: texts may hold the other line breaks of Unicode.
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _json_row(f"{path}, line {number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _json_row(place: str, line: bytes) -> Row:
    try:
        value = json.loads(line.decode())
    except json.JSONDecodeError as error:
        # Its own text counts lines from this one on.
        return Row(place, None, f"no JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Row(place, None, f"no JSON ({error})")
    return _object_row(place, value)


def _object_row(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, None, f"must be an object with a value for each column, not {type(value).__name__}")


def _rows_of_list(path: Path, file: IO[bytes]) -> Iterator[Row]:
    try:
        values = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _broken(str(path), "JSON", error) from None
    for number, value in enumerate(values, start=1):
        yield _object_row(f"{path}, row {number}", value)


def _delimited_rows(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            try:
                for columns in reader:
                    yield _delimited_row(f"{path}, line {reader.line_num}", columns)
            except (csv.Error, UnicodeDecodeError) as error:
                raise _broken(f"{path}, line {reader.line_num + 1}", "CSV", error) from None

    return rows


def _delimited_row(place: str, columns: dict[str | Any, Any]) -> Row:
    # DictReader puts surplus values under None, and None where values are missing.
    if None in columns:
        return Row(place, None, "has more values than the first line has names")
    if None in columns.values():
        return Row(place, None, "has fewer values than the first line has names")
    return Row(place, columns)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", columns)
    except pa.ArrowException as error:
        raise _broken(f"{path}, row {number + 1}", "Parquet", error) from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _delimited_rows(","),
    ".tsv": _delimited_rows("\t"),
}


def _rows_of_folder(path: Path, place: str, source: Source) -> Iterator[Row]:
    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if not saved:
        yield from _rows_of_hub_id(str(path), source)
        return
    datasets = _datasets_package(place, source.key)
    yield from _numbered(place, _one_split(datasets.load_from_disk(str(path)), place, source))


def _rows_of_hub_id(place: str, source: Source) -> Iterator[Row]:
    datasets = _datasets_package(place, source.key)
    try:
        found = datasets.load_dataset(place, source.subset, split=source.source_split)
    except Exception as error:  # of the network, of the hub, or of one of many readers
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{source.key}={place!r}: no such file here, and the package datasets cannot load it ({reason}); give a file, a "
            f"folder, or a hub id with the right subset (now {source.subset!r}) and source_split (now {source.source_split!r})"
        ) from error
    # What `load_dataset` is asked for it gives, slices such as `train[:100]` among them.
    yield from _numbered(place, found if source.source_split is not None else _one_split(found, place, source))


def _datasets_package(place: str, key: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{key}={place!r}: folders and hub ids are read by the package datasets, which is not installed; "
            "pip install 'tppo-rl[data]', or give a file"
        ) from None
    return datasets


def _one_split(found: Any, place: str, source: Source) -> Any:
    """The split that is asked for, of a data set or of a dictionary of them."""
    if not isinstance(found, Mapping):
        split = str(found.split) if found.split is not None else None
        require(
            source.source_split in (None, split),
            source.key.removesuffix("source") + "source_split",
            source.source_split,
            f"{place} holds one split, {split!r}; remove the key",
        )
        return found
    names = list(found)
    wanted = source.source_split or (names[0] if len(names) == 1 else "train")
    require(
        wanted in names,
        source.key.removesuffix("source") + "source_split",
        source.source_split,
        f"{place} has the splits {', '.join(names)}; choose one",
    )
    return found[wanted]


def _numbered(place: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for number, columns in enumerate(rows, start=1):
        yield Row(f"{place}, row {number}", columns)
