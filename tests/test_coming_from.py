"""Every option that the tables for users of other packages name exists here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tppo_rl.config.options import OPTIONS
from tppo_rl.config.rllib_options import RLLIB_KEYS_READ

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_options_that_exist(row: list[str]) -> None:
    theirs, ours, _ = row
    assert re.fullmatch(r"(`[^`]+`(, )?)+", theirs)
    names = re.findall(r"`([^`]+)`", ours)
    assert names
    assert re.fullmatch(r"(`[^`]+`(, )?)+", ours)
    assert set(names) <= set(OPTIONS) | RLLIB_KEYS_READ
