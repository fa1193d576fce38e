"""Options of groups: several responses to one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from tppo_rl.config.section import Condition, Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

_DYNAMIC = Condition("dynamic_sampling", lambda options: options.groups.dynamic_sampling)


class GroupOptions(Section):
    """Several responses to one prompt."""

    group_size: PositiveInt = option(1, "Responses to each prompt (GRPO 64, DAPO and VAPO 16); 1: no groups.")
    dynamic_sampling: bool = option(
        False,
        "Drop and replace groups whose returns are all equal, for they teach nothing (DAPO). With `rewards` other than "
        "`environment`, drop groups that are all right or all wrong, whatever penalty `overlong_fraction` gives.",
    )
    dynamic_sampling_max_rounds: PositiveInt = option(
        10,
        "Most rounds of sampling (where slots are refilled at once: batches of dropped tokens); then an update takes the groups that "
        "there are.",
        read_with=_DYNAMIC,
    )

    def check(self, options: Options) -> None:
        """Checks that groups are complete where they are compared."""
        num_slots = options.rollout.num_slots
        if options.waits_for_longest and num_slots % self.group_size:
            refuse(
                "group_size",
                self.group_size,
                f"a step has {num_slots} slots, which are no whole number of groups; make num_envs_per_env_runner x "
                "num_env_runners a multiple of it, or set partial_rollouts to true",
            )
        if self.dynamic_sampling and (self.group_size == 1 or options.rollout.has_windows):
            refuse(
                "dynamic_sampling",
                self.dynamic_sampling,
                "whether a group has variance is known when all its responses have ended; it needs group_size of 2 or more "
                "and window_length=null",
            )
