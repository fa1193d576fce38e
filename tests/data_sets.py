"""Data sets for tests: small files of our own, and published ones where a machine has them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parent / "data"
"""Files of our own in the formats of published data sets."""

NOT_SHIPPED = {
    "real.yaml": [
        f"env_config.source={SAMPLES / 'mawps.jsonl'}",
        "policy_model=tppo_rl/arithmetic-chain",
        "critic_layers=1",
        "evaluation_duration=1",
    ]
}
"""What stands in for a model and data that a run file gets from elsewhere."""

_PUBLISHED = Path(os.environ.get("TPPO_RL_DATA") or Path(__file__).parents[2] / "shared" / "data")


def sample(name: str) -> str:
    """Place of a file of our own."""
    return str(SAMPLES / name)


def published(*names: str) -> list[str]:
    """Places of published files; the test is skipped where they are absent."""
    places = [_PUBLISHED / name for name in names]
    if not all(place.is_file() for place in places):
        pytest.skip(f"no {', '.join(names)} in {_PUBLISHED}; TPPO_RL_DATA names the folder")
    return [str(place) for place in places]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> str:
    """Writes JSON lines (texts as they are) and returns the place."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def number_of_rows(place: str) -> int:
    """Number of lines that hold something."""
    return sum(bool(line.strip()) for line in Path(place).read_text(encoding="utf-8").splitlines())
