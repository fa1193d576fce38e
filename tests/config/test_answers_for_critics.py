"""A critic that sees answers needs an environment that knows them, and room for them."""

from __future__ import annotations

import pytest

from tppo_rl.config.checks import check_environment, check_model
from tppo_rl.config.options import Options
from tppo_rl.config.value_forms import check_saved_form, value_form_settings
from tppo_rl.core.errors import OptionError

MODEL = {"policy_model": "tppo_rl/arithmetic-chain", "critic_sees_answer": True}


def test_an_environment_without_answers_is_refused() -> None:
    check_environment(Options.of(MODEL | {"env": "tppo_rl/ArithmeticChain-v0"}))
    with pytest.raises(OptionError, match=r"^critic_sees_answer=True: the info of tppo_rl/GuessNumber-v0 has neither"):
        check_environment(Options.of(MODEL | {"env": "tppo_rl/GuessNumber-v0"}))


def test_the_critic_needs_room_for_the_answer() -> None:
    lengths = {"max_prompt_length": 100, "max_response_length": 924}
    blind = Options.of(MODEL | lengths | {"critic_sees_answer": False})
    check_model(blind)
    with pytest.raises(
        OptionError, match=r"^critic_sees_answer=True: with 64 tokens .* may read 1088, .* holds 1024; .* by 64"
    ):
        check_model(Options.of(MODEL | lengths))


def test_a_run_does_not_go_on_with_a_critic_that_sees_something_else() -> None:
    sees, blind = (
        Options.of(MODEL | {"env": "tppo_rl/ArithmeticChain-v0", "critic_sees_answer": one}) for one in (True, False)
    )
    with pytest.raises(
        OptionError, match=r"^critic_sees_answer=False: the checkpoint's critic was saved with True; go on"
    ):
        check_saved_form(blind, value_form_settings(sees))
    check_saved_form(sees, value_form_settings(sees))
