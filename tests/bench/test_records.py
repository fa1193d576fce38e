from __future__ import annotations

import json
from pathlib import Path

import pytest

from tppo_rl.bench.records import Figure, figure_of, machine, print_table, write_json


def test_a_figure_is_the_median_with_smallest_and_largest() -> None:
    assert figure_of("speed", [3.0, 1.0, 10.0], "m/s") == Figure("speed", 3.0, 1.0, 10.0, 3, "m/s")
    with pytest.raises(ValueError, match="speed"):
        figure_of("speed", [], "m/s")


def test_json_holds_the_fields_and_the_table_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [figure_of("speed", [3.0, 1.0], "m/s")]
    write_json(figures, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == [
        {"figure": "speed", "median": 2.0, "low": 1.0, "high": 3.0, "repeats": 2, "unit": "m/s"}
    ]
    print_table(figures)
    assert "speed" in capsys.readouterr().out


def test_the_machine_is_described_in_one_line() -> None:
    line = machine()
    assert "\n" not in line
    assert all(part in line for part in ("cores", "load", "torch thread", "torch 2", "ray ", "vllm "))
