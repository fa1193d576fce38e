"""Options of held-out evaluations."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from tppo_rl.config.section import Condition, Section, option

_EVALUATES = Condition("an evaluation_interval", lambda options: options.evaluation.evaluation_interval is not None)


class EvaluationOptions(Section):
    """Held-out evaluations."""

    evaluation_interval: PositiveInt | None = option(
        None, "Iterations, or sampled tokens, between evaluations; None: never."
    )
    evaluation_interval_unit: Literal["iterations", "tokens"] = option(
        "iterations",
        "Unit of `evaluation_interval`; tokens make runs with unequal updates comparable.",
        read_with=_EVALUATES,
    )
    evaluation_duration: PositiveInt = option(512, "Number of held-out prompts of an evaluation.")
    evaluation_num_env_runners: int = option(0, "Env-runners for evaluations alone; 0 uses the training ones.", ge=0)
