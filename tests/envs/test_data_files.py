"""The same rows come out of every format, and what is wrong is named with its place."""

from __future__ import annotations

import builtins
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_sets import write_lines
from pyarrow import parquet

from tppo_rl.envs.data_files import Source, read_rows, stamp

ROWS = [{"question": f"What is {k} + {k}?\u2028", "answer": str(2 * k)} for k in range(5)]


def columns(place: Path | str, **options: Any) -> list[Any]:
    return [row.columns for row in read_rows(Source((str(place),), **options))]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        write_lines(path, ROWS)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".tsv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert columns(write(tmp_path, suffix)) == ROWS


def test_json_lines_may_be_called_json_and_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + Path(write_lines(tmp_path / "rows.jsonl", ROWS)).read_bytes())
    assert columns(path) == ROWS


def test_several_files_follow_one_another(tmp_path: Path) -> None:
    first, second = write(tmp_path, ".csv"), write(tmp_path, ".parquet")
    rows = list(read_rows(Source((str(first), str(second)))))
    assert [row.columns for row in rows] == ROWS + ROWS
    assert rows[0].place == f"{first}, line 2"
    assert rows[-1].place == f"{second}, row 5"


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.jsonl", b'{"x": 1}\n\n{"x": }\n', "a.jsonl, line 3", r"^no JSON \(Expecting value at column 7\)$"),
        ("a.jsonl", b'{"x": 1}\n[1]\n', "a.jsonl, line 2", "must be an object .* not list"),
        ("a.jsonl", b'{"x": "\xff"}\n', "a.jsonl, line 1", "no JSON"),
        ("a.json", b'[{"x": 1}, 2]', "a.json, row 2", "not int"),
        ("a.csv", b"x,y\n1,2\n1\n", "a.csv, line 3", "fewer values"),
        ("a.csv", b"x,y\n1,2,3\n", "a.csv, line 2", "more values"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, place: str, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (bad,) = [row for row in read_rows(Source((str(path),))) if row.columns is None]
    assert place in bad.place
    assert re.search(reason, bad.reason)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl: no JSON"),
        ("a.json", b'[{"x": 1}, ', r"a\.json: no JSON"),
        ("a.csv", b'x,y\n1,2\n1,"2\n', r"a\.csv, line \d+: no CSV"),
        ("a.csv", b"x,y\n\xff,2\n", r"a\.csv, line \d+: no CSV"),
        ("a.parquet", b"PAR1 nothing else", r"a\.parquet, row 1: no Parquet"),
    ],
)
def test_a_file_that_is_broken_is_not_read_in_part(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        columns(tmp_path / name)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no/such/file.jsonl", "no such file or folder"),
        ("nothing.parquet", "no such file"),
        ("./nowhere", "no such file"),
        ("a/b/c", "no such file"),
    ],
)
def test_a_place_that_is_not_there(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^heldout.source='{place}': {message}"):
        columns(place, key="heldout.source")


def test_a_format_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"source='.*rows\.xlsx': files end with \.jsonl, \.json, \.parquet"):
        columns(tmp_path / "rows.xlsx")


def test_a_file_that_is_written_anew_has_another_stamp(tmp_path: Path) -> None:
    source = Source((str(write(tmp_path, ".jsonl")), "hub/id"))
    before = stamp(source)
    assert stamp(source) == before
    write_lines(tmp_path / "rows.jsonl", ROWS[:2])
    assert stamp(source) != before


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("datasets")


@pytest.mark.integration
def test_folders_that_the_datasets_package_saved(tmp_path: Path, datasets: Any) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    assert columns(tmp_path / "one") == ROWS
    two = datasets.DatasetDict(train=one, test=one.select([0]))
    two.save_to_disk(str(tmp_path / "two"))
    assert columns(tmp_path / "two") == ROWS
    assert columns(tmp_path / "two", source_split="test") == ROWS[:1]
    with pytest.raises(ValueError, match=r"^source_split='dev': .*two has the splits train, test; choose one"):
        columns(tmp_path / "two", source_split="dev")


@pytest.mark.integration
def test_a_folder_in_the_form_of_the_hub(tmp_path: Path, datasets: Any) -> None:
    """What a hub id is downloaded as: files by split, which the package recognizes."""
    folder = tmp_path / "on_the_hub"
    folder.mkdir()
    write_lines(folder / "train.jsonl", ROWS)
    write_lines(folder / "test.jsonl", ROWS[:2])
    assert columns(folder) == ROWS
    assert columns(folder, source_split="test") == ROWS[:2]
    assert columns(folder, source_split="train[:3]") == ROWS[:3]
    with pytest.raises(ValueError, match=r"^source=.*cannot load it .*source_split \(now 'dev'\)"):
        columns(folder, source_split="dev")


def test_without_the_datasets_package_one_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_datasets(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_datasets)
    (tmp_path / "folder").mkdir()
    for place in (str(tmp_path / "folder"), "openai/gsm8k"):
        with pytest.raises(ValueError, match=r"^source=.*pip install 'tppo-rl\[data\]'"):
            columns(place)
    assert columns(write(tmp_path, ".parquet")) == ROWS
