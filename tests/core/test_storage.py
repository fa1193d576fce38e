"""Folders at URIs: what they are made of, what is refused, and what is written and read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from storages import watched_storage

from tppo_rl.algorithms.checkpoint_places import local_copy_of, local_folder
from tppo_rl.core import storage as module
from tppo_rl.core.errors import OptionError
from tppo_rl.core.storage import folder_here, local_path_of, persistently, storage_at, without_secrets


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://bucket/x", r"--results='foo://bucket/x': pyarrow makes no file system of it: .*foo.*known are s3://"),
        ("s3://bucket/x?regio=eu", r"--results=.*regio"),
        ("s3://", r"--results='s3://': names no bucket or folder; give one: s3://bucket/folder"),
        ("s3://key:secret@", r"--results='s3://\*\*\*@': "),
    ],
)
def test_a_uri_that_is_none_is_one_error(uri: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as told:
        storage_at(uri, "--results")
    assert "secret" not in str(told.value)


def test_names_are_joined_before_the_query_and_decoded_in_paths() -> None:
    storage = storage_at("s3://bucket/my runs/ä?region=eu-west-1&endpoint_override=127.0.0.1:1", "x")
    assert storage.path == "bucket/my runs/ä"
    joined = storage.joined("a run")
    assert joined.path == "bucket/my runs/ä/a run"
    assert joined.uri == "s3://bucket/my runs/ä/a%20run?region=eu-west-1&endpoint_override=127.0.0.1:1"
    assert storage_at(joined.uri, "x").path == joined.path
    assert joined.name == "a run"
    assert folder_here(joined) == Path("runs/s3/bucket/my runs/ä/a run")
    assert folder_here(Path("results")) == Path("results")


def test_no_password_is_shown() -> None:
    assert without_secrets("s3://KEY:SECRET@bucket/a s3://b/c@d:e") == "s3://***@bucket/a s3://b/c@d:e"
    assert without_secrets("abfs://container@account/a") == "abfs://container@account/a"


def test_a_file_uri_is_a_folder_of_this_machine(tmp_path: Path) -> None:
    place = tmp_path / "a b ä"
    for uri in (f"file://{place}", f"file://{str(place).replace(' ', '%20')}", f"file://localhost{place}"):
        assert local_path_of(uri) == place
        with local_copy_of(uri) as folder:
            assert folder == place
        with local_folder(uri) as folder:
            assert folder == place
    assert local_path_of("s3://bucket/x") is None


def test_files_are_written_read_listed_and_removed(tmp_path: Path) -> None:
    storage = watched_storage(tmp_path / "there")
    assert storage.sizes() == {}
    assert storage.read("x") is None
    (tmp_path / "rows").write_bytes(b"one\ntwo\n")
    storage.put(tmp_path / "rows", "deep/rows", 5)
    storage.write("small", b"abc")
    assert storage.sizes() == {"deep/rows": 5, "small": 3}
    storage.get("deep/rows", tmp_path / "new" / "rows")
    assert (tmp_path / "new" / "rows").read_bytes() == b"one\nt"
    storage.put(tmp_path / "rows", "deep/rows")
    assert storage.read("deep/rows") == b"one\ntwo\n"
    storage.remove_folder("deep")
    storage.remove_file("small")
    assert storage.sizes() == {}
    storage.check_writable("--results")
    assert storage.sizes() == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def refuse(words: str) -> None:
        raise PermissionError("access denied\nby the bucket")

    with pytest.raises(
        OptionError, match=r"^--results='watched://kept/run': cannot be written: access denied; give a bucket"
    ):
        watched_storage(tmp_path, refuse).check_writable("--results")


def test_errors_of_pyarrow_are_errors_of_the_system(tmp_path: Path) -> None:
    def refuse(words: str) -> None:
        raise pa.ArrowInvalid("no such thing")

    with pytest.raises(OSError, match="no such thing"):
        watched_storage(tmp_path, refuse).write("x", b"1")


def test_what_fails_is_tried_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    calls = 0

    def work() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("not now")
        return calls

    assert persistently(work, pauses=(1, 2, 3)) == 3
    assert slept == [1, 2]
    calls = -10
    with pytest.raises(OSError, match="not now"):
        persistently(work, pauses=(1, 2, 3))
    assert calls == -6
