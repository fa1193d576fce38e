"""Small files that are there whole or not at all, and the errors of disks that take nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tppo_rl.core.errors import OptionError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file; whatever ends the process meanwhile, the file is the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def make_folder(folder: Path, key: str) -> None:
    """Makes a folder, and sees whether one may write there.

    Args:
        folder: May be there.
        key: Of the user who named it.

    Raises:
        OptionError: it cannot be made, or one may not write.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise OptionError(f"{key}={str(folder)!r}: cannot be written: {reason}; name a folder that can") from None


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that there is no room left on a disk.

    Libraries in other languages say so in words alone.
    """
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _NO_ROOM) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_refused(error: BaseException | None) -> bool:
    """Whether an error says that one may not write: a file system that is read-only, or missing rights."""
    return isinstance(error, OSError) and error.errno in _REFUSED
