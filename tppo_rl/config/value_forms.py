"""The form of the critic's value head, and the range of returns that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.config.sections.models import SEPARATE, SHARED
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.errors import OptionError
from tppo_rl.core.reward_parts import RewardPart
from tppo_rl.core.value_head_file import SEES_ANSWER, SQUARED_ERROR, form_on_file, form_text

_RANGES = {
    "zero_one": (0.0, 1.0),
    "plus_minus_one": (-1.0, 1.0),
    "verifier": (0.0, 1.0),
    "format": (0.0, 1.0),
    "calculation": (0.0, 1.0),
}
"""Ranges of registered rewards."""


def value_form_settings(options: Options) -> dict[str, Any] | None:
    """Returns the settings of `maths.value_forms.value_form`, with what the critic reads; None without a critic.

    Raises:
        OptionError: `critic_loss` needs a range that is neither given nor known.
    """
    if options.models.critic is None:
        return None
    # A critic that sees answers gives other values without them.
    return _form(options) | ({SEES_ANSWER: True} if options.critic.critic_sees_answer else {})


def _form(options: Options) -> dict[str, Any]:
    critic = options.critic
    if critic.critic_loss == "squared_error" or (critic.critic_loss == "auto" and critic.value_clip is not None):
        return SQUARED_ERROR
    bounds = critic.value_range or return_range(options)
    if critic.critic_loss == "auto":
        if bounds is None:
            return SQUARED_ERROR
        return {"loss": "cross_entropy", "low": bounds[0], "high": bounds[1]}
    if bounds is None:
        raise OptionError(
            f"critic_loss={critic.critic_loss!r}: needs the range of returns, which `rewards` and the environment do not tell; set "
            "value_range to [lowest, highest], or critic_loss to 'squared_error'"
        )
    settings = {"loss": critic.critic_loss, "low": bounds[0], "high": bounds[1]}
    return settings | {"bins": critic.value_bins} if critic.critic_loss == "hl_gauss" else settings


def check_value_form(options: Options) -> None:
    """Checks that there is a form, that values may begin where they are told to, and that a value head which `critic` brings along
    has this form.

    Raises:
        OptionError: as for `value_form_settings`, the first value lies outside of the range, or the two forms differ.
    """
    form = value_form_settings(options)
    critic, value = options.models.critic, options.critic.critic_initial_value
    if form is None:
        return
    if isinstance(value, float) and "low" in form and not form["low"] <= value <= form["high"]:
        raise OptionError(
            f"critic_initial_value={value!r}: lies outside of the range of returns, {form['low']:g} to {form['high']:g}; give a number "
            "inside, or value_range"
        )
    if critic in (SEPARATE, SHARED):
        return
    found = form_on_file(Path(resolve_model(str(critic))))
    if found is not None and found != form:
        raise OptionError(
            f"critic={critic!r}: its value head has the form {form_text(found)}, and the options give {form_text(form)}; set these "
            "options as the head has them"
        )


def check_saved_form(options: Options, saved: dict[str, Any] | None) -> None:
    """Checks that the outputs of a checkpoint's value head mean what those of this run's critic mean.

    Args:
        options: Of the run that goes on.
        saved: Form of the value head in the checkpoint; None: it has no critic.

    Raises:
        OptionError: they mean something else.
    """
    form = value_form_settings(options)
    if form is not None and saved is not None and form.get(SEES_ANSWER) != saved.get(SEES_ANSWER):
        raise OptionError(
            f"critic_sees_answer={options.critic.critic_sees_answer}: the checkpoint's critic was saved with "
            f"{not options.critic.critic_sees_answer}; go on with that, or begin anew"
        )
    if form is not None and saved is not None and form != saved:
        raise OptionError(
            f"critic_loss={options.critic.critic_loss!r}: gives the value head the form {form_text(form)}, and the checkpoint's "
            f"critic has the form {form_text(saved)}; go on with that one, or begin anew"
        )


def evaluated_return(options: Options, statistics: Mapping[str, float]) -> float | None:
    """Returns the mean return of training, given that of held-out responses sampled at the training temperature.

    It is known before the first responses of training have ended. Of those the short ones end first, so that their mean says little.

    Args:
        options: Of the run.
        statistics: Of an evaluation: `return_mean` of the environment's rewards and, where responses are right or wrong, `accuracy`.

    Returns:
        None where no critic wants it, or an evaluation does not tell it: other rewards are given in training alone.
    """
    if options.models.critic is None or isinstance(options.critic.critic_initial_value, float):
        return None
    accuracy, mean_return = statistics.get("accuracy"), statistics.get("return_mean")
    of_part = {
        "environment": mean_return,
        "zero_one": accuracy,
        "plus_minus_one": None if accuracy is None else 2 * accuracy - 1,
    }
    values = [(part.weight, of_part.get(part.spec.name)) for part in options.rewards.rewards]
    if options.policy_loss.has_kl_in_rewards or any(value is None for _, value in values):
        return None
    return sum(weight * value for weight, value in values if value is not None)


def return_range(options: Options) -> tuple[float, float] | None:
    """Returns the lowest and highest return that an episode can have, 0 included, or None where that is not known."""
    if options.policy_loss.has_kl_in_rewards:
        return None
    low = high = 0.0
    for part in options.rewards.rewards:
        bounds = _range_of(part, options)
        if bounds is None:
            return None
        scaled = [part.weight * bound for bound in bounds]
        low, high = low + min(0.0, *scaled), high + max(0.0, *scaled)
    if options.rewards.overlong_fraction is not None:
        low -= 1.0
    if options.rewards.wrong_reward is not None:
        low, high = min(low, options.rewards.wrong_reward), max(high, options.rewards.wrong_reward)
    return (low, high) if low < high else None


def _range_of(part: RewardPart, options: Options) -> tuple[float, float] | None:
    if part.spec.name == "environment":
        if options.environment.env is None:
            return None
        env = make_text_env(options.environment, "train")
        found = cast("tuple[float, float] | None", getattr(env.unwrapped, "return_range", None))
        env.close()
        return found
    if part.spec.name == "length":
        return (-float(part.spec.arguments.get("most", 1.0)), 0.0)
    return _RANGES.get(part.spec.name)
