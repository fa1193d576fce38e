"""What `tppo-rl retrain` writes and says; that weights are equal is tested with a run, in `tests/algorithms/test_replay.py`."""

from __future__ import annotations

import json
from pathlib import Path

from tppo_rl.experiment.retrain import Retrained, write_and_compare

MADE = [Retrained(1, {"policy/loss": 0.5}, True), Retrained(2, {"policy/loss": 0.25}, False)]


def test_a_run_of_the_builder_has_no_results_to_stand_beside(tmp_path: Path) -> None:
    said = write_and_compare(iter(MADE), tmp_path, tmp_path / "out")
    assert "update      1  - → 0.5" in said
    assert "2 updates; the weights differ from the run's from update 2 on" in said
    rows = [json.loads(line) for line in (tmp_path / "out" / "result.json").read_text(encoding="utf-8").splitlines()]
    assert [(row["training_iteration"], row["weights_are_equal"], row["policy/loss"]) for row in rows] == [
        (1, True, 0.5),
        (2, False, 0.25),
    ]


def test_the_last_line_of_an_iteration_stands_beside_it(tmp_path: Path) -> None:
    lines = [{"training_iteration": 1, "policy": {"loss": loss}} for loss in (9.0, 0.75)]
    (tmp_path / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = write_and_compare(iter(MADE[:1]), tmp_path, tmp_path / "out")
    assert "update      1  0.75 → 0.5" in said
    assert "1 update; the weights are those of the run, to the last bit, after each" in said
