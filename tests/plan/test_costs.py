from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tppo_rl.bench.records import figure_of, write_json
from tppo_rl.options import OptionError
from tppo_rl.plan.costs import (
    AffineEngineCost,
    Costs,
    MeasuredLearnerCost,
    PassCost,
    engine_of_records,
    fit_engine,
    fit_pass,
    learner_of_records,
    learner_of_speed,
    read_costs,
    write_costs,
)
from tppo_rl.plan.windows import LearnerWork, PassWork

ENGINE = AffineEngineCost(1e-3, 1e-4, 1e-7, 2e-5, 0.02)
LEARNER = MeasuredLearnerCost(
    PassCost(0.01, 1e-5, 2e-5, 1e-8), PassCost(0.02, 2e-5, 6e-5, 3e-8), PassCost(0.02, 0.0, 6e-5, 0.0), PassCost()
)


def test_a_fit_finds_the_curve_through_noise() -> None:
    rng = np.random.default_rng(0)
    running, context, prompts = rng.integers(1, 65, 200), rng.integers(100, 20000, 200), rng.integers(0, 200, 200)
    seconds = ENGINE.seconds(running, context, prompts) * rng.normal(1.0, 0.01, 200)
    fitted = fit_engine(running, context, prompts, seconds, weight_update=0.02)  # type: ignore[arg-type]
    assert astuple(fitted) == pytest.approx(astuple(ENGINE), rel=0.1)


def test_a_fit_never_goes_below_zero() -> None:
    fitted = fit_engine([8, 16, 32], [0, 0, 0], [0, 0, 0], [1e-3, 2.5e-3, 6e-3])
    assert min(astuple(fitted)) == 0
    assert fitted.per_sequence > 0
    passes = [PassWork(count, 50 * count, 2500 * count) for count in (1, 10, 100)]
    assert fit_pass(passes, [0.5, 5.0, 50.0]).seconds(passes[1], 1) == pytest.approx(5.0, rel=1e-6)


def test_an_update_is_the_sum_of_its_passes() -> None:
    work = LearnerWork(PassWork(2, 100, 5000), PassWork(2, 98, 4802), PassWork(1, 60, 3600))
    values = 0.01 + 2e-5 + 2e-3 + 5e-5
    policy = 0.02 + 4e-5 + 98 * 6e-5 + 4802 * 3e-8
    critic = 0.02 + 60 * 6e-5
    assert LEARNER.seconds(work, 1.0) == pytest.approx(values + policy + critic)
    assert LEARNER.seconds(work, 1.0) - LEARNER.seconds(work, 0.0) == pytest.approx(0.05)


def test_files_bring_back_what_was_written(tmp_path: Path) -> None:
    costs = Costs(ENGINE, LEARNER, "a machine")
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


def test_a_speed_is_of_forward_and_backward_passes() -> None:
    learner = learner_of_speed(1000.0)
    assert learner.policy.per_position == pytest.approx(1e-3)
    assert learner.values.per_position == pytest.approx(1e-3 / 3)
    with pytest.raises(OptionError, match="learner_speed=0"):
        learner_of_speed(0.0)
