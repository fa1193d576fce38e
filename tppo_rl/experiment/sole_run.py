"""One run a folder: a second one of the same name would move the folder aside while the first writes into it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tppo_rl.core.errors import OptionError


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Keeps a run's folder for this process. The lock is the operating system's, and ends with the process, however that ends.

    Args:
        folder: Of the run; it need not be there.

    Raises:
        OptionError: another process of this machine has it.
    """
    locks = Path(tempfile.gettempdir(), f"tppo_rl_{os.getuid()}")
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    with (locks / f"{name}.lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"{folder}: another process trains this run; wait for it, end it, or give this run another name or --results"
            ) from None
        yield
