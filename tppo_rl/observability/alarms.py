"""Alarms: signs that a run goes wrong or wastes its machine, each with the setting to look at.

Four are the failure signs of T-PPO (arXiv 2506.15050): values from too few finished episodes, values that stop
explaining returns, held boundary values that miss the return more and more, and slots that are not refilled. One says that the
differences of values, of which the advantages of unfinished windows are made, have the wrong sign. The others
say that one side of the pipeline waits for the other. All look at averages over some updates: one bad update is no alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

DECAY = 0.8
"""Decay of the running averages per update: half of the weight lies on the last three updates."""
FEW_EPISODES = 8.0
"""Finished episodes of a value batch below which Monte-Carlo targets are mostly noise."""
COLLAPSE = 0.3
"""Fall of the explained variance below its best that is a sign."""
GROWTH = 1.5
"""Ratio of the boundary error to its least that is a sign."""
LEAST_ERROR = 0.05
"""Boundary error, in units of reward, up to which no growth is a sign."""
WRONG_SIGNS, SLOPES = 12, 16
"""Slopes of the critic's differences of which so many are negative is a sign: where they mean nothing, this many come in one of 26 cases."""
SHARE = 0.1
"""Fraction of trained tokens in unfinished windows from which their advantages matter."""
OCCUPANCY = 0.9
IDLE = 0.3
"""Fraction of an iteration for which one side waits for the other."""


@dataclass(frozen=True)
class Alarm:
    """An alarm that is on."""

    name: str
    """`alarm/NAME` among the metrics."""
    message: str
    """The sign, and the settings to look at."""


class Alarms:
    """Watches the metrics of the updates of a run.

    Args:
        patience: Updates before the first alarm, which the averages need.
        asynchronous: Whether env-runners and learners work at the same time. If not, waiting is no sign.
        refills: Whether a slot whose episode has ended begins another one. If not, empty slots are no sign.
    """

    def __init__(self, *, patience: int = 10, asynchronous: bool = True, refills: bool = True) -> None:
        self._patience = patience
        self._signs: dict[str, Callable[[], str | None]] = {
            "few_finished_episodes": self._few_finished_episodes,
            "explained_variance": self._explained_variance,
            "boundary_error": self._boundary_error,
            "wrong_differences": self._wrong_differences,
        }
        if refills:
            self._signs["slot_occupancy"] = self._slot_occupancy
        if asynchronous:
            self._signs |= {"learner_idle": self._learner_idle, "env_runner_idle": self._env_runner_idle}
        self._updates = 0
        self._averages: dict[str, float] = {}
        self._best_explained_variance = -math.inf
        self._least_boundary_error = math.inf
        self._slopes: deque[float] = deque(maxlen=SLOPES)

    def watch(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Takes the metrics of an update by name (`tppo_rl.core.metric_table`), and returns the alarms that are on.

        A metric that is missing in an update leaves its average unchanged.
        """
        self._updates += 1
        # Returns that are all alike bear out nothing, and give 0.
        if slope := metrics.get("critic/difference_slope"):
            self._slopes.append(slope)
        for name, value in metrics.items():
            if math.isfinite(value):
                before = self._averages.get(name, value)
                self._averages[name] = DECAY * before + (1.0 - DECAY) * value
        if self._updates < self._patience:
            return []
        messages = {name: sign() for name, sign in self._signs.items()}
        return [Alarm(name, message) for name, message in messages.items() if message is not None]

    def names(self) -> list[str]:
        """Names of all alarms that can go on."""
        return list(self._signs)

    def _few_finished_episodes(self) -> str | None:
        finished = self._averages.get("critic/finished_episodes")
        if finished is None or finished >= FEW_EPISODES or "critic/loss" not in self._averages:
            return None
        return (
            f"{finished:.1f} finished episodes in a value batch, too few for stable Monte-Carlo targets: set "
            "value_batch_tokens, so that they are held until a batch is full, or raise train_batch_size_per_learner"
        )

    def _explained_variance(self) -> str | None:
        explained = self._averages.get("critic/explained_variance")
        if explained is None:
            return None
        self._best_explained_variance = max(self._best_explained_variance, explained)
        if explained >= self._best_explained_variance - COLLAPSE or explained > 0.5:
            return None
        return (
            f"the critic explains {explained:.2f} of the variance of returns, at best it was "
            f"{self._best_explained_variance:.2f}: lower critic_lr or critic_num_epochs, or bound a step by critic_grad_clip or "
            "value_clip"
        )

    def _boundary_error(self) -> str | None:
        error = self._averages.get("critic/boundary_error_held")
        if error is None:
            return None
        self._least_boundary_error = min(self._least_boundary_error, error)
        if error <= LEAST_ERROR or error <= GROWTH * self._least_boundary_error:
            return None
        return (
            f"values held at window ends miss the return by {error:.2f}, at best it was {self._least_boundary_error:.2f}: "
            "lengthen window_length, set boundary_value to 'bootstrap', or set hindsight to true"
        )

    def _wrong_differences(self) -> str | None:
        negative = sum(slope < 0 for slope in self._slopes)
        is_read = self._averages.get("policy/unfinished_fraction", 0.0) >= SHARE
        if negative < WRONG_SIGNS or not is_read or self._averages.get("policy/unfinished_scale") == 0.0:
            return None
        return (
            f"the critic's differences over windows point away from later returns in {negative} of the last {len(self._slopes)} updates, "
            "and unfinished windows are trained on them: set unfinished_advantage_scale to 'auto' or 0, set "
            "hindsight to true, or give the critic a longer warm-up (critic_warmup_responses)"
        )

    def _slot_occupancy(self) -> str | None:
        occupancy = self._averages.get("rollout/slot_occupancy")
        if occupancy is None or occupancy >= OCCUPANCY:
            return None
        return (
            f"{100 * occupancy:.0f} % of the slot-steps gave a token: finished slots are not refilled at once; look at "
            "engine.kv_cache_gib and engine.max_num_seqs, or lower num_envs_per_env_runner"
        )

    def _learner_idle(self) -> str | None:
        share = self._share_of_iteration("time/waiting_for_fragments")
        if share <= IDLE:
            return None
        return (
            f"learners wait {100 * share:.0f} % of the time for fragments: raise num_env_runners or "
            "num_envs_per_env_runner, or give learners less of the machine"
        )

    def _env_runner_idle(self) -> str | None:
        share = self._averages.get("rollout/env_runner_idle_fraction", 0.0)
        if share <= IDLE:
            return None
        return (
            f"env-runners wait {100 * share:.0f} % of the time, because updates take longer than sampling: raise num_learners, "
            "lengthen window_length (less context is computed again), give the critic fewer critic_layers, or raise max_staleness"
        )

    def _share_of_iteration(self, part: str) -> float:
        return self._averages.get(part, 0.0) / max(self._averages.get("time/iteration", 0.0), 1e-9)
