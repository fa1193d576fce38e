"""Options of scoring beside the engine: worker processes that run environments and reward functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt

from tppo_rl.config.section import Condition, Section, option
from tppo_rl.envs.data_presets import PRESETS

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

_AUTO_WORKERS = 2
_CHEAP_ENVS = (None, "tppo_rl/ArithmeticChain-v0", "tppo_rl/Calculator-v0", "tppo_rl/GuessNumber-v0")
_CHEAP_VERIFIERS = frozenset({"exact", "numeric", "multiple_choice"})
_CHEAP_REWARDS = frozenset(
    {"environment", "zero_one", "plus_minus_one", "format", "length", "calculation", "model"}
)  # `model` is not cheap, but it costs memory in every process, and comes back.

_HAS_WORKERS = Condition("scoring_workers above 0", lambda options: options.scoring.number(options) > 0)


class ScoringOptions(Section):
    """Where environments and reward functions run."""

    scoring_workers: Literal["auto"] | NonNegativeInt = option(
        "auto",
        "Worker processes of an env-runner that run `reset` and `step` of the environment and reward functions, while the engine "
        "generates. 0: they run in the env-runner's process, and the engine waits for them. `auto`: 0 where environment and "
        "rewards ship with the package and are cheap, else 2. Slow ones need as many as answers per second times seconds each.",
    )
    scoring_deadline_s: float = option(
        10.0,
        "Seconds that a worker may take for one reset, step, or call of the rewards; then it is killed and replaced, and what it "
        "was to score has failed.",
        read_with=_HAS_WORKERS,
        gt=0,
        allow_inf_nan=False,
    )
    scoring_memory_gib: float | None = option(
        2.0,
        "Resident memory of a worker, GiB, above which it is killed and replaced. None: no limit.",
        read_with=_HAS_WORKERS,
        gt=0,
        allow_inf_nan=False,
    )

    def number(self, options: Options) -> int:
        """Returns the number of workers of an env-runner."""
        if self.scoring_workers != "auto":
            return self.scoring_workers
        return 0 if _is_cheap(options) else _AUTO_WORKERS


def _is_cheap(options: Options) -> bool:
    """Whether nothing that scores can hang or take long."""
    env, settings = options.environment.env, options.environment.env_config
    cheap_env = env in _CHEAP_ENVS or (
        env == "tppo_rl/Dataset-v0"
        and _is_cheap_verifier(settings.get("verifier", _verifier_of(settings.get("preset"))))
    )
    return cheap_env and all(
        part.spec.name in _CHEAP_REWARDS
        or (part.spec.name == "verifier" and _is_cheap_verifier(part.spec.arguments.get("verifier", "math")))
        for part in options.rewards.rewards
    )


def _verifier_of(preset: Any) -> str:
    """The verifier of questions that name none."""
    return PRESETS[preset].verifier if isinstance(preset, str) and preset in PRESETS else "numeric"


def _is_cheap_verifier(verifier: Any) -> bool:
    name = verifier.get("type") if isinstance(verifier, Mapping) else verifier
    return name in _CHEAP_VERIFIERS
