"""The page of a report without a browser: parsed HTML, files, the command line."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from synthetic_sweep import WINDOW_TASK, write_comparison, write_trial, write_window_sweep

from tppo_rl.cli import main
from tppo_rl.tune.report import write_report

pytestmark = pytest.mark.integration

LARGEST = 1_500_000
"""Bytes of a page that a phone loads without thinking."""
REFERENCES = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Seen(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.meta: dict[str, str] = {}
        self.figures: dict[str, bytes] = {}
        self.headers: dict[str, list[str]] = {}
        self.texts: list[str] = []
        self._figure = self._table = ""
        self._in_header = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.references += [value for key, value in given.items() if key in REFERENCES]
        if tag == "meta" and "name" in given:
            self.meta[given["name"]] = given["content"]
        if tag == "figure":
            self._figure = given["id"]
        if tag == "img":
            kind, _, content = given["src"].partition(",")
            assert kind == "data:image/png;base64"
            assert given["alt"]
            self.figures[self._figure] = base64.b64decode(content, validate=True)
        if tag == "table":
            self._table = given["class"]
            self.headers.setdefault(self._table, [])
        self._in_header = tag == "th"

    def handle_endtag(self, tag: str) -> None:
        self._in_header = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_header:
            self.headers[self._table].append(data)


def page_of(sweep: Path) -> tuple[Path, Seen]:
    page = write_report([sweep])
    return page, Seen(page.read_text(encoding="utf-8"))


def test_a_window_sweep_has_all_its_figures_and_the_inflection(tmp_path: Path) -> None:
    finals = {320: [0.95, 0.94, 0.96], 80: [0.945, 0.95, 0.955], 20: [0.5, 0.52, 0.48]}
    page, seen = page_of(write_window_sweep(tmp_path, finals))
    assert set(seen.figures) == {
        "tokens_per_second",
        "seconds_to_target",
        "accuracy_equal_tokens",
        "accuracy_equal_time",
        "learning_tokens",
        "learning_time",
        "update_times",
        "explained_variance",
        "explained_variance_unfinished",
        "boundary_held_by_window",
        "boundary_held_by_position",
        "boundary_bootstrap_by_position",
        "boundary_step_by_position",
        "boundary_held_over_training",
    }
    for name, png in seen.figures.items():
        assert (page.parent / f"{name}.png").read_bytes() == png
        image = Image.open(io.BytesIO(png)).convert("L")
        assert image.size == (720, 525)
        assert len(image.getcolors()) > 10, "something is drawn"
    assert any("Inflection point: window_length 80 (0.25 of the response cap)" in text for text in seen.texts)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page, seen = page_of(write_window_sweep(tmp_path, {320: [0.9] * 3, 80: [0.8] * 3}))
    text = page.read_text(encoding="utf-8")
    assert all(reference.startswith("data:") for reference in seen.references)
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert len(text) < LARGEST
    assert seen.meta["viewport"] == "width=device-width, initial-scale=1"
    assert "@media print" in text


def test_the_table_of_trials_has_exactly_the_options_that_differ(tmp_path: Path) -> None:
    experiments = {"a": {"lambda_": 0.9}, "b": {"boundary_value": "bootstrap"}}
    page, seen = page_of(write_comparison(tmp_path, experiments, [0.7, 0.8, 0.9]))
    header = seen.headers["trials"]
    assert header[: header.index("status")] == ["trial", "boundary_value", "lambda_", "seed"]
    with (page.parent / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["boundary_value"], row["lambda_"]) for row in rows[2:4]] == [
        ("a-seed2", "hold", "0.9"),
        ("b-seed0", "bootstrap", "0.95"),
    ]
    assert float(rows[2]["accuracy_final"]) == pytest.approx(0.9)


def test_two_seeds_get_means_but_no_intervals(tmp_path: Path) -> None:
    _, seen = page_of(write_window_sweep(tmp_path, {320: [0.9, 0.8], 80: [0.8, 0.9]}))
    text = " ".join(seen.texts)
    assert "cannot be determined, because window 80 shares 2 seeds with the longest" in text
    assert "n = 2: none: 3 repeats are the least" in text
    assert not re.search(r"\bnan\b", text.lower())


def test_windows_that_cost_nothing_are_said_to(tmp_path: Path) -> None:
    _, seen = page_of(write_window_sweep(tmp_path, {320: [0.95, 0.94, 0.96], 80: [0.951, 0.942, 0.959]}))
    text = " ".join(seen.texts)
    assert "not reached. Even the shortest window, 80 tokens (0.25 of the response cap)" in text
    # 140 tokens a second against 110.
    assert "It trains 1.27 times the tokens a second of window 320" in text


def test_sweeps_of_several_tasks_make_one_page_and_name_the_tasks(tmp_path: Path) -> None:
    sweeps = []
    for task, finals in {"sums": {"hold": 0.9, "bootstrap": 0.8}, "letters": {"hold": 0.5, "bootstrap": 0.6}}.items():
        sweeps.append(tmp_path / task)
        for index, (value, final) in enumerate(finals.items()):
            options = WINDOW_TASK | {"seed": 0, "env_config": {"task": f"{task}-0"}, "boundary_value": value}
            write_trial(sweeps[-1], index, options, final=final, speed=100.0)
    page = write_report(sweeps, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "Sweeps sums, letters" in text
    for task in ("sums", "letters"):
        assert f">{task}</h2>" in text
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = [
            (row["sweep"], row["boundary_value"], round(float(row["accuracy_final"]), 6))
            for row in csv.DictReader(file)
        ]
    # Trials of two sweeps may have the same name.
    assert rows == [
        ("sums", "hold", 0.9), ("sums", "bootstrap", 0.8), ("letters", "hold", 0.5), ("letters", "bootstrap", 0.6)
    ]  # fmt: skip


def test_several_sweeps_need_a_place_for_their_report(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 2
    assert result.output.startswith("error: out=None: 2 sweeps make one report")


def test_text_from_options_is_no_markup(tmp_path: Path) -> None:
    for index, name in enumerate(("<script>alert(1)</script>", "plain")):
        write_trial(tmp_path, index, WINDOW_TASK | {"seed": 0, "env_config": {"task": name}}, final=0.9, speed=100.0)
    _, seen = page_of(tmp_path)
    assert "script" not in seen.tags
    assert "<script>alert(1)</script>" in seen.texts


def test_without_evaluations_efficiency_is_left(tmp_path: Path) -> None:
    for folder in (write_trial(tmp_path, i, WINDOW_TASK | {"seed": i}, final=0.9, speed=100.0) for i in range(3)):
        results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
        blind = [
            {key: value for key, value in result.items() if key != "evaluation"}
            | {"heldout_before": {}, "heldout_latest": {}}
            for result in results
        ]
        (folder / "result.json").write_text("".join(json.dumps(result) + "\n" for result in blind))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"heldout_accuracy_after": None}))
    _, seen = page_of(tmp_path)
    assert "update_times" in seen.figures
    assert not {name for name in seen.figures if "accuracy" in name or "learning" in name}


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    sweep = write_window_sweep(tmp_path / "sweep", {320: [0.9] * 3, 80: [0.8] * 3})
    result = CliRunner().invoke(main, ["report", str(sweep), "--out", str(tmp_path / "out"), "--target", "0.5"])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out" / "report.html") in result.output
    assert "time to target 0.50" in (tmp_path / "out" / "report.html").read_text().lower()
    assert not (sweep / "report").exists()


def test_a_wrong_folder_is_one_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert result.output.startswith("error: sweep=")
