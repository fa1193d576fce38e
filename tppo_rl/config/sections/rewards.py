"""Options of rewards."""

from __future__ import annotations

from typing import Literal

from tppo_rl.config.section import Condition, Parts, Section, option
from tppo_rl.core.reward_parts import RewardParts

_SOMETHING_IS_WRONG_UNSCORED = Condition(
    "on_reward_failure='wrong' or truncated_responses='wrong'",
    lambda options: "wrong" in (options.rewards.on_reward_failure, options.rewards.truncated_responses),
)


class RewardOptions(Section):
    """The reward of a response."""

    rewards: Parts = option(
        RewardParts.parse("environment"),
        "`environment`: the environment's rewards; `zero_one`: 1 for a right response, else 0, at the episode's end; "
        "`plus_minus_one`: 1 for a right response, else -1 (DAPO); `verifier`, `format`, `length`, `model`; or `module:object` of "
        "your own reward function. A list adds up several, each a mapping with `type`, `weight`, `name` and the part's arguments.",
    )
    on_reward_failure: Literal["drop", "retry", "wrong"] = option(
        "drop",
        "What becomes of a response that could not be scored, because the environment or a reward raised, took too long or gave "
        "no number. `drop`: its last window is not trained; `retry`: what failed is called once more, then as `drop`; `wrong`: it "
        "gets the reward of a wrong response.",
    )
    truncated_responses: Literal["score", "mask", "wrong"] = option(
        "score",
        "What becomes of a response that `max_response_length` cut off. `score`: scored like any other; `mask`: its last window is "
        "left out of policy loss and critic targets; `wrong`: it gets the reward of a wrong response, and nothing scores it.",
    )
    wrong_reward: float | None = option(
        None,
        "Reward of a response that counts as wrong without having been scored. None: the weighted sum of what the parts give a "
        "wrong response: the environment's own, -1 for `plus_minus_one`, 0 for all others.",
        read_with=_SOMETHING_IS_WRONG_UNSCORED,
        allow_inf_nan=False,
    )
    max_failed_fraction: float = option(
        0.5,
        "Fraction of the last 256 responses that could not be scored above which the run ends with an error.",
        gt=0,
        le=1,
    )
    overlong_fraction: float | None = option(
        None,
        "Last fraction of `max_response_length` over which a penalty grows linearly to -1; the reward gets it at the "
        "episode's end (DAPO: 0.2). None: no penalty.",
        gt=0,
        le=1,
    )
