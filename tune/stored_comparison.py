"""A comparison whose results are kept at a URI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tppo_rl.config.run_files import Experiment
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.storage import Storage, first_line, persistently
from tppo_rl.experiment.stored_checkpoints import newest_stored
from tppo_rl.experiment.stored_runs import fetch_records
from tppo_rl.experiment.summary import SUMMARY

OPTIONS_FILE = "options.json"
"""Of each run: what it was begun with."""


def options_text(run: Experiment) -> str:
    """What `OPTIONS_FILE` holds."""
    return json.dumps(run.model_dump(include={"run", "env", "stop", "config"}), indent=1, sort_keys=True)


class StoredComparison:
    """The folder of a comparison at a URI, with a folder for each run.

    Args:
        storage: The folder.

    Raises:
        OptionError: it cannot be written.
    """

    def __init__(self, storage: Storage) -> None:
        storage.check_writable("--results")
        self._storage = storage

    def claim(self, run: Experiment, folder: Path) -> None:
        """Takes the folder of a run, and fetches what is there if the run has ended.

        Args:
            run: With its seed.
            folder: Of this machine, for what is fetched.

        Raises:
            OptionError: a run with other options is there, or it cannot be read or written.
        """
        stored = self._storage.joined(run.name)
        try:
            options, summary = (persistently(lambda: stored.read(name)) for name in (OPTIONS_FILE, SUMMARY))  # noqa: B023
            if options is None:
                persistently(lambda: stored.write(OPTIONS_FILE, options_text(run).encode()))
        except OSError as error:
            raise OptionError(f"--results={stored.shown!r}: {first_line(error)}") from None
        if options is not None and options.decode("utf-8") != options_text(run):
            raise OptionError(
                f"{run.name}: {stored.shown} holds a run with other options; give another folder with --results, or remove it there"
            )
        has_ended = summary is not None and not json.loads(summary).get("interrupted")
        here = folder / SUMMARY
        if has_ended and not (here.is_file() and here.read_bytes() == summary):
            fetch_records(stored, folder, "--results")

    def has_checkpoint(self, run: Experiment) -> bool:
        """Whether there is a checkpoint of a run to go on from.

        Raises:
            OptionError: it cannot be read.
        """
        stored = self._storage.joined(run.name)
        try:
            return newest_stored(stored, persistently(stored.sizes)) is not None
        except OSError as error:
            raise OptionError(f"--results={stored.shown!r}: {first_line(error)}") from None

    def put(self, folder: Path, names: Sequence[str]) -> None:
        """Copies files of the comparison.

        Raises:
            RunError: the file system refuses one, after a few tries.
        """
        try:
            for name in names:
                persistently(lambda: self._storage.put(folder / name, name))  # noqa: B023
        except OSError as error:
            raise RunError(
                f"{self._storage.shown} cannot be written: {first_line(error)}; {folder} holds everything, and the same command copies it"
            ) from None
