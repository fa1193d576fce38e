"""Small files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tppo_rl.core.errors import OptionError
from tppo_rl.core.whole_files import is_full_disk, make_folder, write_whole


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.json"
    write_whole(file, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert file.read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_known_by_number_words_and_cause() -> None:
    by_number = OSError(errno.ENOSPC, "voll")
    caused = RuntimeError("cannot write")
    caused.__cause__ = by_number
    assert is_full_disk(by_number)
    assert is_full_disk(caused)
    assert is_full_disk(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(OSError(errno.ENOENT, "no such file"))
    assert not is_full_disk(None)


def test_a_folder_that_cannot_be_written_is_named_with_its_key(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(
        OptionError, match=r"^--out='.*/file/b': cannot be written: not a directory; name a folder that can$"
    ):
        make_folder(tmp_path / "file" / "b", "--out")
