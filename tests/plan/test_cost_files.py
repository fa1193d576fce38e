from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from tppo_rl.bench.records import figure_of, write_json
from tppo_rl.core.errors import OptionError
from tppo_rl.plan.cost_files import engine_of_records, learner_of_records, read_costs, write_costs
from tppo_rl.plan.costs import ONE_CORE


def test_files_bring_back_what_was_written(tmp_path: Path) -> None:
    costs = ONE_CORE
    write_costs(costs, tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == costs


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a readable JSON file"),
        ({"engine": {}}, "'engine' and 'learner'"),
        ({"engine": {"bse": 1}, "learner": {}}, "'engine' takes base"),
        ({"engine": {"base": -1}, "learner": {}}, "engine.base=-1"),
        ({"engine": {"base": "1"}, "learner": {}}, "engine.base='1'"),
        ({"engine": {}, "learner": {"actor": {}}}, "'learner' takes values"),
        ({"engine": {}, "learner": {"values": 3}}, "'values' takes base"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: Any, words: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(OptionError, match=words):
        read_costs(file)


def test_records_of_the_other_benches_give_costs(tmp_path: Path) -> None:
    steps = [(32, 4.3e-3), (64, 7.5e-3)]
    figures = [figure_of(f"rollout_tokens_per_second, {n} slots", [n / seconds], "tokens/s") for n, seconds in steps]
    figures += [figure_of(f"weight_update_seconds, {n} slots", [0.01], "s") for n, _ in steps]
    write_json(figures, tmp_path / "rollout.json")
    assert astuple(engine_of_records(tmp_path / "rollout.json")) == pytest.approx((1.1e-3, 1e-4, 0, 0, 0.01))
    write_json(figures[:1], tmp_path / "one.json")
    with pytest.raises(OptionError, match="two or more"):
        engine_of_records(tmp_path / "one.json")

    # A position costs 7 microseconds and 7 nanoseconds for each that attention pairs it with; all but one are trained.
    figures = []
    for length in (64, 256):
        figures.append(figure_of(f"processed_per_trained_token, {length} tokens", [1.25], "positions/token"))
        speed = 1 / (1.25 * 7 * (1e-6 + 1e-9 * length))
        figures.append(figure_of(f"learner_tokens_per_second, {length} tokens", [speed], "tokens/s"))
    write_json(figures, tmp_path / "learner.json")
    learner = learner_of_records(tmp_path / "learner.json")
    assert astuple(learner.values) == pytest.approx((0, 0, 1e-6, 1e-9))
    assert astuple(learner.policy) == astuple(learner.critic) == pytest.approx((0, 0, 3e-6, 3e-9))
    write_json(figures[:2], tmp_path / "one.json")
    assert learner_of_records(tmp_path / "one.json").values.per_position == pytest.approx(1e-6 + 64e-9)
    for reader in (learner_of_records, engine_of_records):
        write_json([figure_of("another", [1.0], "s")], tmp_path / "other.json")
        with pytest.raises(OptionError, match=r"_records='.*other.json'"):
            reader(tmp_path / "other.json")
        (tmp_path / "none.json").write_text('{"a": 1}', encoding="utf-8")
        with pytest.raises(OptionError, match="no records"):
            reader(tmp_path / "none.json")
