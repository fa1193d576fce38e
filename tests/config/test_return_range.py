"""The form of the critic's value head, and the range of returns, as the options and the environment give it."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.config.options import Options
from tppo_rl.config.value_forms import (
    check_saved_form,
    check_value_form,
    evaluated_return,
    return_range,
    value_form_settings,
)
from tppo_rl.core.errors import OptionError

CHAIN = {"env": "tppo_rl/ArithmeticChain-v0"}
CALCULATOR = {"env": "tppo_rl/Calculator-v0"}


def _own_reward(**columns: Any) -> list[float]:
    return [3.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CHAIN, (0.0, 1.0)),
        (CHAIN | {"env_config": {"correct_reward": 2.0, "wrong_reward": -0.5}}, (-0.5, 2.0)),
        (CHAIN | {"env_config": {"correct_reward": 2.0, "wrong_reward": 1.0}}, (0.0, 2.0)),
        (CALCULATOR | {"env_config": {"max_operations": 3, "call_reward": 0.5, "no_call_reward": -0.25}}, (-1.5, 2.5)),
        (CHAIN | {"rewards": "zero_one"}, (0.0, 1.0)),
        (CHAIN | {"rewards": "plus_minus_one"}, (-1.0, 1.0)),
        (CHAIN | {"rewards": "zero_one", "overlong_fraction": 0.2}, (-1.0, 1.0)),
        (CHAIN | {"rewards": [{"type": "zero_one"}, {"type": "calculation", "weight": 0.3}]}, (0.0, 1.3)),
        (CHAIN | {"rewards": [{"type": "zero_one"}, {"type": "format", "weight": -0.5, "pattern": "x"}]}, (-0.5, 1.0)),
        (
            CHAIN | {"rewards": [{"type": "environment", "weight": 2}, {"type": "length", "beyond": 5, "most": 0.25}]},
            (-0.25, 2.0),
        ),
        (CHAIN | {"rewards": "zero_one", "truncated_responses": "wrong", "wrong_reward": -3.0}, (-3.0, 1.0)),
        (CHAIN | {"rewards": f"{__file__}:_own_reward"}, None),
        (CHAIN | {"kl_coef": 0.1, "kl_in": "reward"}, None),
        ({"env": f"{__file__.rpartition('/')[0]}/../../examples/environment.py:examples/Backward-v0"}, None),
    ],
)
def test_the_range_of_returns(options: dict[str, Any], expected: tuple[float, float] | None) -> None:
    assert return_range(Options.of(options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"loss": "cross_entropy", "low": 0.0, "high": 1.0}),
        ({"critic_loss": "squared_error"}, {"loss": "squared_error"}),
        ({"value_clip": 0.2}, {"loss": "squared_error"}),
        ({"kl_coef": 0.1, "kl_in": "reward"}, {"loss": "squared_error"}),
        (
            {"kl_coef": 0.1, "kl_in": "reward", "value_range": [-2, 1]},
            {"loss": "cross_entropy", "low": -2.0, "high": 1.0},
        ),
        ({"critic_loss": "hl_gauss"}, {"loss": "hl_gauss", "low": 0.0, "high": 1.0, "bins": 51}),
        ({"critic": None}, None),
    ],
)
def test_the_form(options: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert value_form_settings(Options.of(CHAIN | options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.4),
        ({"rewards": "zero_one"}, 0.25),
        ({"rewards": "plus_minus_one"}, -0.5),
        ({"rewards": [{"type": "environment", "weight": 2}, {"type": "plus_minus_one"}]}, 0.3),
        ({"rewards": [{"type": "zero_one"}, {"type": "calculation", "weight": 0.3}]}, None),
        ({"critic_initial_value": 0.1}, None),
        ({"critic": None}, None),
        ({"kl_coef": 0.1, "kl_in": "reward"}, None),
    ],
)
def test_the_mean_return_that_an_evaluation_tells(options: dict[str, Any], expected: float | None) -> None:
    found = evaluated_return(Options.of(CHAIN | options), {"accuracy": 0.25, "return_mean": 0.4})
    assert found == (None if expected is None else pytest.approx(expected))


def test_without_right_and_wrong_an_evaluation_tells_the_return_alone() -> None:
    statistics = {"return_mean": 0.4}
    assert evaluated_return(Options.of(CHAIN), statistics) == 0.4
    assert evaluated_return(Options.of(CHAIN | {"rewards": "zero_one"}), statistics) is None
    assert evaluated_return(Options.of(CHAIN), {}) is None


def test_a_range_that_nobody_knows_is_asked_for() -> None:
    options = Options.of(CHAIN | {"rewards": f"{__file__}:_own_reward", "critic_loss": "hl_gauss"})
    with pytest.raises(OptionError, match=r"critic_loss='hl_gauss': needs the range of returns.*set\s+value_range"):
        value_form_settings(options)


@pytest.mark.parametrize("options", [{}, {"rewards": "plus_minus_one", "critic_loss": "hl_gauss"}])
def test_a_first_value_outside_of_the_range_is_refused(options: dict[str, Any]) -> None:
    found = Options.of(CHAIN | options | {"critic_initial_value": 3.0})
    with pytest.raises(
        OptionError, match=r"critic_initial_value=3\.0: lies outside of the range of returns, -?[01] to 1;"
    ):
        check_value_form(found)


def test_a_saved_critic_of_another_form_is_refused() -> None:
    options = Options.of(CHAIN)
    check_saved_form(options, value_form_settings(options))
    check_saved_form(options, None)
    with pytest.raises(OptionError, match=r"critic_loss='auto': .*the checkpoint's critic has the form"):
        check_saved_form(options, {"loss": "squared_error"})
