"""`result.json` and `progress.csv` of a run that Tune does not drive, in Tune's formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = "result.json"
"""One line for each iteration."""
_NOT_IN_RESULTS = ("config",)


class ResultLog:
    """Appends results to the files of a run's folder; the columns of the CSV are those of its first result.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._json = folder / RESULTS
        self._csv = folder / "progress.csv"

    def append(self, result: Mapping[str, Any]) -> None:
        """Writes one result to both files."""
        kept = {key: value for key, value in result.items() if key not in _NOT_IN_RESULTS}
        with self._json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept, default=_plain) + "\n")
        row = flatten(kept)
        columns = self._columns() or sorted(row)
        is_new = not self._csv.exists()
        with self._csv.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def _columns(self) -> list[str]:
        if not self._csv.exists():
            return []
        with self._csv.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of a run, one for each iteration, from its `result.json`."""
    with (folder / RESULTS).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def last_result(folder: Path, iteration: int) -> dict[str, Any]:
    """The result of an iteration, the last one if it was written more than once; empty where there is none."""
    if not (folder / RESULTS).is_file():
        return {}
    return next((result for result in reversed(read_results(folder)) if result["training_iteration"] == iteration), {})


def flatten(result: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results by path, `{"a": {"b": 1}}` as `{"a/b": 1}`; only numbers and texts are kept."""
    flat: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float | str | np.number):
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
