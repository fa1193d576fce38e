"""Every option of a run in one typed object, which the program carries and reads.

    YAML, builder, Tune: flat keys  ──Options.of──▶  options.rollout.window_length, options.critic.critic_lr, …

Sections are in `tppo_rl.config.sections`. Defaults are T-PPO's; the files of other algorithms say what they change. This
module imports neither torch nor Ray, so a mistake is reported before anything heavy is loaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tppo_rl.config.section import Condition, Section
from tppo_rl.config.sections.advantages import AdvantageOptions
from tppo_rl.config.sections.chat import ChatOptions
from tppo_rl.config.sections.compute import ComputeOptions
from tppo_rl.config.sections.critic import CriticOptions
from tppo_rl.config.sections.environment import EnvironmentOptions
from tppo_rl.config.sections.evaluation import EvaluationOptions
from tppo_rl.config.sections.groups import GroupOptions
from tppo_rl.config.sections.learners import LearnerOptions
from tppo_rl.config.sections.models import ModelOptions
from tppo_rl.config.sections.optimizer import OptimizerOptions
from tppo_rl.config.sections.pipeline import PipelineOptions
from tppo_rl.config.sections.placement import PlacementOptions
from tppo_rl.config.sections.policy_loss import PolicyLossOptions
from tppo_rl.config.sections.rewards import RewardOptions
from tppo_rl.config.sections.rollout import RolloutOptions
from tppo_rl.config.sections.run import RunOptions
from tppo_rl.config.sections.scoring import ScoringOptions
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.errors import OptionError, suggestion
from tppo_rl.core.registry import ALGORITHMS, PartSpec
from tppo_rl.core.reward_parts import RewardParts

_logger = logging.getLogger(__name__)
_QUOTED = re.compile(r"'([^']*)'")

RENAMED_KEYS = {
    "advantage_normalisation": "advantage_normalization",
    "advantage_normalisation_scope": "advantage_normalization_scope",
    "log_prob_gap_alarm": "log_prob_diff_alarm",
    "loss_mean": "loss_aggregation",
    "overlong_share": "overlong_fraction",
    "policy_token_share": "policy_token_fraction",
}
"""New names of options by their names in the last release, which still work with a warning."""
RENAMED_VALUES = {
    ("critic_targets", "also_truncated"): "include_unfinished",
    ("off_policy_correction", "behaviour"): "behavior",
}
"""New values by option and value of the last release, which still work with a warning."""


class Options(Section):
    """The options of a run, in sections."""

    environment: EnvironmentOptions = EnvironmentOptions()
    models: ModelOptions = ModelOptions()
    chat: ChatOptions = ChatOptions()
    rollout: RolloutOptions = RolloutOptions()
    groups: GroupOptions = GroupOptions()
    rewards: RewardOptions = RewardOptions()
    scoring: ScoringOptions = ScoringOptions()
    learners: LearnerOptions = LearnerOptions()
    placement: PlacementOptions = PlacementOptions()
    compute: ComputeOptions = ComputeOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    advantages: AdvantageOptions = AdvantageOptions()
    policy_loss: PolicyLossOptions = PolicyLossOptions()
    critic: CriticOptions = CriticOptions()
    pipeline: PipelineOptions = PipelineOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    run: RunOptions = RunOptions()

    @classmethod
    def of(cls, values: Mapping[str, Any] | None = None, **more: Any) -> Options:
        """Builds options from flat keys. Checks types and bounds, not combinations.

        Raises:
            OptionError: an unknown key, a wrong type, or a value out of bounds.
        """
        values = with_new_names({**(values or {}), **more})
        sections: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if key not in OPTIONS:
                raise OptionError(f"{key}={value!r}: unknown option")
            sections.setdefault(OPTIONS[key].section, {})[key] = value
        try:
            return cls.model_validate(sections)
        except ValidationError as error:
            problems = groupby(error.errors(), key=lambda problem: problem["loc"][1])
            raise OptionError("\n".join(_explain(values, list(of_key)) for _, of_key in problems)) from None

    def replace(self, **changes: Any) -> Options:
        """Returns a copy with some options changed, by key.

        Raises:
            OptionError: as for `of`.
        """
        return Options.of(self.flat() | changes)

    def flat(self) -> dict[str, Any]:
        """The options by key, as a user writes them."""
        return {key: _written(self.value(key)) for key in OPTIONS}

    def value(self, key: str) -> Any:
        """The value of an option, given its key."""
        return getattr(getattr(self, OPTIONS[key].section), key)

    @property
    def window(self) -> int:
        """Most sampled tokens of a fragment."""
        return self.rollout.window

    @property
    def waits_for_longest(self) -> bool:
        """Whether every slot generates one whole response a step, and none is refilled before all have ended."""
        return self.pipeline.mode == "sync" and not self.rollout.has_windows and not self.pipeline.partial_rollouts

    @property
    def batch_tokens(self) -> int:
        """Sampled tokens of one update, over all learners."""
        return self.optimizer.train_batch_size_per_learner * max(1, self.learners.num_learners)

    @property
    def staleness_bound(self) -> int:
        """Most policy versions between a token's sampling and its training; see `tppo_rl.rollout.train_queue`."""
        pipeline = self.pipeline
        return pipeline.max_staleness if pipeline.mode == "async" or pipeline.partial_rollouts else 0

    @property
    def max_queued_batches(self) -> float:
        """Batches that wait or were asked for, above which env-runners wait (async)."""
        given = self.pipeline.max_queued_batches
        # Open windows are few tokens beside a batch; of whole responses the most part is open.
        return given or (self.pipeline.max_staleness if self.rollout.has_windows else 1.0)


class OptionField(NamedTuple):
    """One option."""

    section: str
    info: FieldInfo

    @property
    def default(self) -> Any:
        """T-PPO's default, as a user writes it."""
        return _written(self.info.get_default(call_default_factory=True))

    @property
    def description(self) -> str:
        """Meaning and unit."""
        return self.info.description or ""

    @property
    def read_with(self) -> Condition | None:
        """Condition under which the option is read; None: always."""
        condition = self._extra("read_with")
        assert condition is None or isinstance(condition, Condition)
        return condition

    @property
    def perturbable(self) -> bool:
        """Whether the option may differ between the run that saved a checkpoint and the one that goes on from it."""
        return bool(self._extra("perturbable"))

    def _extra(self, key: str) -> Any:
        extra = self.info.json_schema_extra
        return extra.get(key) if isinstance(extra, dict) else None


def takes_a_part(key: str) -> bool:
    """Whether the option names an object: a registered name, or a place."""
    return isinstance(OPTIONS[key].info.default, PartSpec | RewardParts)


def _sections() -> dict[str, type[Section]]:
    fields = {name: field.annotation for name, field in Options.model_fields.items()}
    return {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, Section)}


SECTIONS: dict[str, type[Section]] = _sections()
"""Sections by name, in the order in which they are documented."""
OPTIONS: dict[str, OptionField] = {
    key: OptionField(name, info) for name, section in SECTIONS.items() for key, info in section.model_fields.items()
}
"""Every option by key."""


def _takes_a_mapping(kind: Any) -> bool:
    own = get_origin(kind) or kind
    if isinstance(own, type) and issubclass(own, Section | Mapping):
        return True
    return any(map(_takes_a_mapping, get_args(kind)))


MAPPINGS = frozenset(
    key for key, option in OPTIONS.items() if _takes_a_mapping(option.info.annotation) or takes_a_part(key)
)
"""Options whose value may be a mapping that is no search word."""


def algorithm_spec(name: str, *, key: str = "run") -> AlgorithmSpec:
    """Returns the algorithm that a run file names: a registered name, or `module:SPEC`.

    Raises:
        OptionError: no such object, or it is no `AlgorithmSpec`.
    """
    try:
        found = ALGORITHMS.find(name)
    except OptionError as error:
        raise OptionError(str(error).replace("run=", f"{key}=", 1)) from None
    if not isinstance(found, AlgorithmSpec):
        raise OptionError(
            f"{key}={name!r}: is a {type(found).__name__}, not an AlgorithmSpec; name the spec of an algorithm"
        )
    return found


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values under the names of this release, and warns of names of the last one."""
    renamed = {}
    for key, value in values.items():
        new = RENAMED_KEYS.get(key, key)
        if new != key:
            if new in values:
                raise OptionError(f"{key}={value!r}: is the old name of {new}, which is given too; give {new} alone")
            _logger.warning("%s is now called %s; the old name works for one more release", key, new)
        if isinstance(value, str) and (new, value) in RENAMED_VALUES:
            newer = RENAMED_VALUES[new, value]
            _logger.warning("%s: %s is now called %s; the old name works for one more release", new, value, newer)
            renamed[new] = newer
            continue
        renamed[new] = value
    return renamed


def _written(value: Any) -> Any:
    if isinstance(value, Section):
        given = {*value.model_fields_set, *(value.model_extra or {})}
        return {key: _written(getattr(value, key)) for key in sorted(given) if getattr(value, key) is not None}
    return value.flat() if isinstance(value, PartSpec | RewardParts) else value


def _explain(values: Mapping[str, Any], problems: Sequence[Any]) -> str:
    """Returns one line about one option, with a reason for each type that it may have."""
    option = str(problems[0]["loc"][1])
    # After the key come indices and keys of nested values, and the types that were tried.
    places = {place_of(option, values[option], problem["loc"][2:]) for problem in problems}
    key, value = (places.pop(), problems[0]["input"]) if len(places) == 1 else (option, values[option])
    own = [problem["msg"].removeprefix("Value error, ") for problem in problems if problem["type"] == "value_error"]
    if own:
        # A section's own message may name a nested key itself.
        return own[0] if own[0].startswith(f"{option}.") else f"{key}={value!r}: {own[0]}"
    if any(problem["type"] in ("missing", "extra_forbidden") for problem in problems):
        return _explain_keys(key, value, problems[0])
    reasons = dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in problems)
    words = _QUOTED.findall(" ".join(reasons))
    lower = value.lower() if isinstance(value, str) else ""
    hint = suggestion(lower, [lower] if lower in words else words) if lower else ""
    return f"{key}={value!r}: input should be {' or '.join(reasons)}{hint} ({first_sentence(_description(key))})"


def first_sentence(text: str) -> str:
    """Returns a text up to the first period that ends a sentence."""
    return text.partition(". ")[0].rstrip(".")


def place_of(option: str, value: Any, parts: Sequence[str | int]) -> str:
    """Returns the nested key that a problem is about."""
    place = [option]
    for part in parts:
        inside = isinstance(value, Mapping) or (isinstance(value, list | tuple) and isinstance(part, int))
        if not inside or (isinstance(value, Mapping) and part not in value and part != parts[-1]):
            continue
        place.append(str(part))
        try:
            value = value[part]  # type: ignore[index, call-overload]
        except (KeyError, IndexError, TypeError):
            break
    return ".".join(place)


def _explain_keys(key: str, value: Any, problem: Any) -> str:
    if problem["type"] == "missing":
        return f"{key}=None: is missing; set it ({_description(key)})"
    return f"{key}={value!r}: unknown key; remove the key"


def _description(key: str) -> str:
    """Returns the meaning of an option, or of a nested key such as `lora.rank`."""
    option, _, inner = key.partition(".")
    for kind in (OPTIONS[option].info.annotation, *get_args(OPTIONS[option].info.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section) and inner in kind.model_fields:
            return kind.model_fields[inner].description or ""
    return OPTIONS[option].description
