"""Options of rewards: what a response is worth."""

from __future__ import annotations

from tppo_rl.config.section import Part, Section, option
from tppo_rl.core.registry import PartSpec


class RewardOptions(Section):
    """What a response is worth."""

    rewards: Part = option(
        PartSpec("environment"),
        "`environment`: what it returns; `zero_one`, `plus_minus_one`: 1 or 0, or 1 or -1, as the environment calls the "
        "answer right or wrong at the episode's end (DAPO); or `module:object` of a reward function of one's own.",
    )
    overlong_fraction: float | None = option(
        None,
        "Last fraction of `max_response_length` over which a penalty grows linearly to -1, added to the reward (DAPO: 0.2); "
        "None: no penalty.",
        gt=0,
        le=1,
    )
