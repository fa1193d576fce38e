"""Words for several values: what they stand for, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.config.options import MAPPINGS
from tppo_rl.config.run_files import make_experiment
from tppo_rl.config.search_space import axes, check_axis, check_words, grid_points, points_to_check
from tppo_rl.core.errors import OptionError


def make_body(**config: Any) -> dict[str, Any]:
    return {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", **config},
    }


@pytest.mark.parametrize(
    ("value", "ends"),
    [
        ({"grid_search": [8, 16, 32]}, [8, 16, 32]),
        ({"choice": ["a", "b"]}, ["a", "b"]),
        ({"uniform": [0, 1]}, [0.0, 1.0]),
        ({"loguniform": [1e-5, 1e-3]}, [1e-5, 1e-3]),
        ({"quniform": [0, 1, 0.25]}, [0.0, 1.0]),
        ({"randint": [2, 6]}, [2, 5]),
        ({"qrandint": [2, 6, 2]}, [2, 6]),
        ({"qlograndint": [2, 6, 1]}, [2, 5]),
    ],
)
def test_an_axis_stands_for_all_values_of_a_list_or_the_ends_of_a_range(value: dict[str, Any], ends: list[Any]) -> None:
    (axis,) = axes({"outer": {"inner": value}, "fixed": {"a": 1, "b": 2}})
    check_axis(axis)
    assert axis.key == "outer.inner"
    assert axis.values() == ends
    assert [type(found) for found in axis.values()] == [type(end) for end in ends]


def test_points_are_all_of_the_grids_with_the_ends_of_every_range() -> None:
    options = {"a": {"grid_search": [1, 2]}, "b": {"uniform": [0, 1]}, "c": 5}
    assert list(grid_points(options)) == [{"a": value, "b": {"uniform": [0, 1]}, "c": 5} for value in (1, 2)]
    assert [(point["a"], point["b"], point["c"]) for point in points_to_check(options)] == [
        (1, 0.0, 5),
        (1, 1.0, 5),
        (2, 0.0, 5),
        (2, 1.0, 5),
    ]


def test_of_very_many_points_every_value_is_still_checked() -> None:
    options = {f"c{index}": {"choice": list(range(4))} for index in range(6)} | {"g": {"grid_search": [0, 1, 2]}}
    points = list(points_to_check(options))
    assert len(points) == 3 + 6 * 3
    for key in options:
        assert {point[key] for point in points} == set(next(iter(options[key].values())))


@pytest.mark.parametrize(
    "option",
    [
        {"runtime_env": {"pip": ["numpy"]}},
        {"chat_template_args": {"enable_thinking": False}},
        {"critic_lora": {"rank": 8}},
        {"lora": {"rank": 8}},
        {"env_config": {"max_operands": 3}},
        {"sampling": {"temperature": 0.5}},
        {"engine": {"max_num_seqs": 8}},
        {"trackers": {"wandb": {"project": "p"}}},
        {"rewards": {"type": "zero_one"}},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_mapping_of_one_key_is_the_value_of_its_option(option: dict[str, Any]) -> None:
    check_words(option, MAPPINGS)
    with pytest.raises(OptionError, match=r"lr\.rank=8: unknown search word"):
        check_words({"lr": {"rank": 8}} | option, MAPPINGS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": {"grid_search": []}}, r"lr\.grid_search=\[\]: must be a list of at least one value"),
        ({"lr": {"choice": []}}, r"lr\.choice=\[\]: must be a list of at least one value"),
        ({"lr": {"choice": 3}}, r"lr\.choice=3: must be a list"),
        ({"lr": {"loguniform": [1e-5]}}, r"lr\.loguniform=\[1e-05\]: must be the numbers \[lower, upper\]"),
        ({"lr": {"loguniform": [0, 1]}}, r"lr\.loguniform=\[0, 1\]: a logarithmic range begins above 0"),
        ({"lr": {"uniform": [2, 1]}}, r"lr\.uniform=\[2, 1\]: the lower bound must be below"),
        ({"lr": {"loguniforn": [1, 2]}}, r"lr\.loguniforn=\[1, 2\]: unknown search word, did you mean loguniform\?"),
        ({"num_epochs": {"randint": [1, 2.5]}}, r"num_epochs\.randint=\[1, 2\.5\]: draws whole numbers"),
        ({"num_epochs": {"uniform": [1, 3]}}, "num_epochs=1.0: input should be a valid integer"),
        ({"clip_low": {"uniform": [0.1, 1.5]}}, "clip_low=1.5: input should be less than or equal to 1"),
        ({"mode": {"choice": ["async", "synk"]}}, "mode='synk': input should be 'async' or 'sync'"),
        ({"window_length": {"grid_search": [8, 999]}}, "window_length=999: longer than max_response_length=256"),
        ({"window_length": {"randint": [8, 1000]}}, "window_length=999: longer than max_response_length=256"),
        ({"lr": {"uniform": [0, float("nan")]}}, r"lr\.uniform=\[0, nan\]: must be finite numbers"),
        ({"lr": {"loguniform": [1e-5, float("inf")]}}, r"lr\.loguniform=\[1e-05, inf\]: must be finite numbers"),
        (
            {"lr": {"grid_search": [1e-4] * 50}, "clip_low": {"grid_search": [0.1] * 50}},
            r"a\.config\.lr\.grid_search=\[.*…: with it the search space has 2,500 grid points .*at most 1,000: draw from a range",
        ),
        ({"lr": {"choice": list(range(5000))}}, r"a\.config\.lr\.choice=.* 5,000 values"),
        ({"env_config": {1: 2}}, r"env_config\.1=1: input should be a valid string"),
        ({"env_config": {1: {"grid_search": [2, 3]}}}, r"env_config\.1=1: input should be a valid string"),
        ({"windw_length": {"grid_search": [8, 16]}}, "windw_length=8: unknown option, did you mean window_length"),
        ({"env_config": {"max_operand": {"grid_search": [3]}}}, "env_config.max_operand=3"),
    ],
)
def test_a_bad_axis_names_key_value_and_remedy(config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_experiment("a", make_body(**config))


def test_seeds_are_an_axis() -> None:
    experiment = make_experiment("a", make_body(window_length={"grid_search": [8, 16]}) | {"seeds": 3})
    assert [(point["window_length"], point["seed"]) for point in experiment.points()] == [
        (window, seed) for window in (8, 16) for seed in (0, 1, 2)
    ]
    assert make_experiment("a", make_body() | {"seeds": 10_000}).num_trials == 10_000, "seeds need no check each"
    assert make_experiment("a", make_body() | {"seeds": [4, 7]}).num_trials == 2
    assert make_experiment("a", make_body(lr={"uniform": [0.1, 1]}) | {"seeds": 2, "num_samples": 3}).num_trials == 6
