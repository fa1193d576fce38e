"""Figures of walks whose true values are known, parts of their states, boundary values, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from walks import true_value, walk_sampler

from tppo_rl.lab.page import to_markdown
from tppo_rl.lab.quality import boundaries, figures_of, parts_of
from tppo_rl.lab.report import DETAILS, blocks_of, write_report
from tppo_rl.lab.samples import Samples
from tppo_rl.lab.sampling import Draw, Plan

WINDOW = 6


@pytest.fixture(scope="module")
def samples() -> Samples:
    plan = Plan(10**6, responses=250, prefixes=6, continuations=8, split="heldout", seed=1)
    return Draw(walk_sampler(7), plan, None).samples()


def truth_along(samples: Samples) -> list[np.ndarray]:
    return [
        np.array([true_value(response.tokens[:position]) for position in range(len(response))])
        for response in samples.responses
    ]


@pytest.fixture(scope="module")
def results(samples: Samples) -> dict[str, Any]:
    truth = truth_along(samples)
    rng = np.random.default_rng(0)
    critics = {
        "perfect": truth,
        "constant": [np.full(len(values), 0.5) for values in truth],
        "half as far": [0.3 + 0.5 * values for values in truth],
        "noise": [rng.normal(size=len(values)) for values in truth],
    }
    settings = {"model": "walk", "environment": "walks-v0", "split": "heldout", "temperature": 1.0}
    return {"settings": settings} | figures_of(samples, critics, gamma=1.0, window=WINDOW)


def rows(results: dict[str, Any], kind: str) -> dict[str, Any]:
    return {row["name"]: row for row in results["parts"] if row["kind"] == kind}


def near(estimate: dict[str, Any], truth: float, errors: float = 3.0) -> bool:
    return bool(abs(estimate["value"] - truth) <= errors * estimate["error"])


def test_the_perfect_critic_is_at_the_ceiling_everywhere(results: dict[str, Any]) -> None:
    perfect = results["critics"]["perfect"]
    assert near(perfect["correlation_of_differences"], 1.0)
    assert near(perfect["slope_of_differences"], 1.0)
    assert near(perfect["slope"], 1.0)
    for kind in ("all", "position", "window", "share"):
        for row in rows(results, kind).values():
            if row["ceiling"] is not None and row["name"] != "prompts":
                found = row["critics"]["perfect"]
                assert near(row["by_true_values"], found["explained_of_returns"]["value"], 3.5)
                assert near(found["explained_of_true_values"], 1.0, 3.5)
                assert near(found["mean_error"], 0.0, 3.5)
    # Continuation means have noise, so they divide right from wrong no better.
    assert perfect["auroc"]["value"] > results["ceilings"]["auroc"]["value"] - 0.02


def test_other_critics_have_the_figures_that_they_were_made_with(results: dict[str, Any]) -> None:
    half, constant, noise = (results["critics"][name] for name in ("half as far", "constant", "noise"))
    assert near(half["slope_of_differences"], 2.0)
    assert near(half["correlation_of_differences"], 1.0)
    assert near(half["slope"], 2.0)
    assert constant["correlation_of_differences"]["value"] is None
    assert constant["auroc"]["value"] == 0.5
    assert near(noise["correlation_of_differences"], 0.0)
    everything = rows(results, "all")["tokens"]["critics"]
    assert everything["constant"]["explained_of_returns"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert near(everything["half as far"]["explained_of_true_values"], 0.75)
    assert everything["noise"]["explained_of_returns"]["value"] < -1


def test_at_the_prompt_nothing_is_known(results: dict[str, Any]) -> None:
    """All walks begin at 0."""
    prompts = rows(results, "all")["prompts"]
    assert prompts["states"] == 250
    assert near(prompts["ceiling"], 0.0)
    later = [row["ceiling"]["value"] for row in rows(results, "share").values()]
    assert later == sorted(later)
    assert later[-1] > later[0] + 0.2


def test_parts_hold_every_state_once(samples: Samples) -> None:
    states = samples.states(1.0)
    parts = list(parts_of(states, WINDOW))
    for kind in ("window", "share", "length"):
        chosen = np.concatenate([part.chosen for part in parts if part.kind == kind])
        assert sorted(chosen.tolist()) == list(range(len(states)))
    chosen = np.concatenate([part.chosen for part in parts if part.kind == "position" or part.name == "prompts"])
    assert sorted(chosen.tolist()) == list(range(len(states)))
    for part in parts:
        if part.kind == "window" and "later" not in part.name:
            assert set(states.positions[part.chosen] // WINDOW) == {int(part.name) - 1}
    thirds = [len({int(state) for state in states.responses[part.chosen]}) for part in parts if part.kind == "length"]
    assert sum(thirds) == 250
    assert min(thirds) > 50


def test_held_values_are_wrong_by_one_step(samples: Samples) -> None:
    states, known = samples.states(1.0), samples.known()
    truth = truth_along(samples)
    found = boundaries(samples, states, known, truth)
    later = [samples.places[index] for index in known if samples.places[index].position > 0]
    weights = [place.weight for place in later]
    steps = [truth[place.response][place.position] - truth[place.response][place.position - 1] for place in later]
    expected = np.sqrt(np.average(np.square(steps), weights=weights))
    assert near(found["hold"]["root_mean_square_error"], expected)
    assert found["bootstrap"]["root_mean_square_error"]["value"] < 0.5 * expected
    assert found["tail_corrected"] == found["bootstrap"]
    # Walks drift upwards, so the value before is too low.
    assert near(found["hold"]["mean_error"], -float(np.average(steps, weights=weights)))


def test_the_page_has_every_figure(results: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, results)
    assert json.loads((tmp_path / "critic_lab.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    text = (tmp_path / "critic_lab.md").read_text(encoding="utf-8")
    for name in ("explained.png", "calibration.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).stat().st_size > 5000
    ceiling = results["ceilings"]["explained_of_returns"]
    assert (
        f"| weighed by: tokens | {results['sampled']['known_states']} | {ceiling['value']:.2f} ± {ceiling['error']:.2f} |"
        in text
    )
    slope = results["critics"]["half as far"]["slope_of_differences"]
    (line,) = [line for line in text.splitlines() if line.startswith("| slope of true differences")]
    assert line.split(" | ")[4] == f"{slope['value']:.2f} ± {slope['error']:.2f}"
    assert line.split(" | ")[3] == "-"
    assert "| half as far | hold |" in text.partition(DETAILS)[2]
    page = (tmp_path / "critic_lab.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert f"<td>{slope['value']:.2f} ± {slope['error']:.2f}</td>" in page
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for head, rule in pairwise(tables):
        if rule.startswith("|---"):
            assert head.count("|") == rule.count("|")


def test_without_critics_the_page_tells_the_ceiling(samples: Samples, tmp_path: Path) -> None:
    results: dict[str, Any] = {
        "settings": {"model": "walk", "environment": "walks-v0", "split": "train", "temperature": 0.5}
    } | figures_of(samples, {}, gamma=1.0, window=WINDOW)
    write_report(tmp_path, results)
    text = (tmp_path / "critic_lab.md").read_text(encoding="utf-8")
    assert "explained.png" in text
    assert "calibration" not in text
    assert not (tmp_path / "calibration.png").exists()
    assert text.startswith(to_markdown(blocks_of(results)).rstrip())


def test_without_verdicts_high_returns_are_right(samples: Samples) -> None:
    silent = replace(samples, responses=[replace(response, correct=None) for response in samples.responses])
    truth = {"perfect": truth_along(samples)}
    found = figures_of(silent, truth, gamma=1.0, window=WINDOW)
    assert found["sampled"]["accuracy"] is None
    told = figures_of(samples, truth, gamma=1.0, window=WINDOW)
    assert found["critics"]["perfect"]["auroc"] == told["critics"]["perfect"]["auroc"]
