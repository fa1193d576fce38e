"""Options of rewards."""

from __future__ import annotations

from tppo_rl.config.section import Part, Section, option
from tppo_rl.core.registry import PartSpec


class RewardOptions(Section):
    """The reward of a response."""

    rewards: Part = option(
        PartSpec("environment"),
        "`environment`: the environment's rewards; `zero_one`: 1 for a right response, else 0, at the episode's end; "
        "`plus_minus_one`: 1 for a right response, else -1 (DAPO); or `module:object` of your own reward function.",
    )
    overlong_fraction: float | None = option(
        None,
        "Last fraction of `max_response_length` over which a penalty grows linearly to -1; the reward gets it at the "
        "episode's end (DAPO: 0.2). None: no penalty.",
        gt=0,
        le=1,
    )
