"""Registries of the parts that users may replace: rewards, advantage estimators, policy losses, engines, algorithms.

An option that names a part is a registered name, or the place of a user's own object:

    policy_loss: cispo                                      a registered name
    policy_loss: {type: cispo, cap: 5.0}                    with arguments
    policy_loss: my_package.losses:squared                  an object of an importable module
    policy_loss: {type: ./losses.py:squared, scale: 2.0}    an object of a file

Every process finds an object by its place, so no user code is pickled. Environments are in Gymnasium's own registry.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tppo_rl.core.errors import OptionError, unknown_key, unknown_value
from tppo_rl.core.reward_signature import (
    COMPUTE_SCORE_ARGUMENTS,
    RESPONSE_ARGUMENTS,
    RUN_ARGUMENTS,
    has_open_keywords,
    is_compute_score,
)


@dataclass(frozen=True)
class PartSpec:
    """A part as an option names it: the object and its arguments."""

    name: str
    """A registered name, `module:object`, or `file.py:object`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any) -> PartSpec:
        """Reads `name`, or a mapping of `type` and arguments.

        Raises:
            ValueError: the value is neither.
        """
        if isinstance(value, PartSpec):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and isinstance(value.get("type"), str):
            return cls(value["type"], {str(key): given for key, given in value.items() if key != "type"})
        raise ValueError("must be a name, module:object, or a mapping with `type` and the arguments of that object")

    def flat(self) -> str | dict[str, Any]:
        """The value as a user writes it."""
        return {"type": self.name, **self.arguments} if self.arguments else self.name

    @property
    def is_registered(self) -> bool:
        """Whether `name` is a name, not a place."""
        return ":" not in self.name


class Registry(Mapping[str, str]):
    """Names of one kind of part, and the places of their objects (`module:object`).

    Args:
        option: The option that takes such a part, for messages.
        places: Place by name. An object is imported when it is asked for.
        by_keyword: Whether callers pass keyword arguments. Then every named parameter may be set, and none must be.
        of_caller: Parameters that callers give, so that messages do not offer them to users.
        open_keywords: Whether a function with these parameters takes arguments of any name through its `**kwargs`.
    """

    def __init__(
        self,
        option: str,
        places: Mapping[str, str],
        *,
        by_keyword: bool = False,
        of_caller: frozenset[str] = frozenset(),
        open_keywords: Callable[[Mapping[str, inspect.Parameter]], bool] = lambda parameters: False,
    ) -> None:
        self._option = option
        self._by_keyword = by_keyword
        self._of_caller = of_caller
        self._open_keywords = open_keywords
        self._places = dict(places)

    def __getitem__(self, name: str) -> str:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def register(self, name: str, place: str) -> None:
        """Adds a name.

        Raises:
            ValueError: the name is taken, or the place is not `module:object`.
        """
        if name in self._places:
            raise ValueError(f"{self._option}: the name {name!r} is taken by {self._places[name]}")
        if ":" not in place:
            raise ValueError(f"{self._option}: the place of {name!r} must be module:object, got {place!r}")
        self._places[name] = place

    def find(self, name: str) -> Any:
        """Returns the object of a registered name or at a place.

        Raises:
            OptionError: no such name, module or object.
        """
        place = self._places.get(name, name)
        if ":" not in place:
            raise OptionError(f"{unknown_value(self._option, name, self)}, or module:object for one of your own")
        return find_object(self._option, place, written=name)

    def resolve(self, spec: PartSpec) -> Callable[..., Any]:
        """Returns the part, ready to be called: the object with its arguments checked and bound.

        A class is called with the arguments, so its own model checks them. The arguments of a function must be keyword-only
        parameters (any named ones with `by_keyword`); they are checked against its annotations.

        Raises:
            OptionError: no such object, or arguments that it does not take.
        """
        found = self.find(spec.name)
        if inspect.isclass(found):
            return self._instance(found, spec)
        if not callable(found):
            raise OptionError(f"{self._option}={spec.name!r}: is a {type(found).__name__}, which cannot be called")
        arguments = self._checked(found, spec)
        return partial(found, **arguments) if arguments else found

    def _instance(self, found: type, spec: PartSpec) -> Any:
        parameters = inspect.signature(found).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            for key in spec.arguments.keys() - parameters.keys():
                raise self._unknown_argument(spec, key, list(parameters))
        try:
            return found(**spec.arguments)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join([self._option, *map(str, problem["loc"])])
            raise OptionError(f"{key}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}") from None
        except (TypeError, ValueError) as error:
            raise OptionError(f"{self._option}={spec.flat()!r}: {error}") from None

    def _unknown_argument(self, spec: PartSpec, key: str, own: Sequence[str]) -> OptionError:
        own = [name for name in own if name not in self._of_caller]
        words = [f"{self._option}.{name}" for name in own]
        takes = f"{spec.name} takes {', '.join(own)}" if own else f"{spec.name} takes no arguments; remove it"
        message = unknown_key(f"{self._option}.{key}", spec.arguments[key], words).partition("; ")[0]
        return OptionError(f"{message}; {takes}")

    def _checked(self, found: Callable[..., Any], spec: PartSpec) -> dict[str, Any]:
        """Returns the arguments of a function, converted to the types of its annotations."""
        parameters = inspect.signature(found, eval_str=False).parameters
        settings: set[Any] = {inspect.Parameter.KEYWORD_ONLY}
        if self._by_keyword:
            settings.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
        own = {name: p for name, p in parameters.items() if p.kind in settings}
        annotations = _annotations(found)
        checked = {}
        for key, value in spec.arguments.items():
            if key not in own and not self._open_keywords(parameters):
                raise self._unknown_argument(spec, key, list(own))
            try:
                checked[key] = TypeAdapter(annotations.get(key, Any)).validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise OptionError(f"{self._option}.{key}={value!r}: {reason}") from None
        missing = [name for name, p in own.items() if p.default is p.empty and name not in checked]
        if missing and not self._by_keyword:
            raise OptionError(f"{self._option}={spec.flat()!r}: {spec.name} needs {', '.join(missing)}; give them")
        return checked


def _annotations(found: Callable[..., Any]) -> dict[str, Any]:
    try:
        return inspect.get_annotations(found, eval_str=True)
    except Exception:
        # Names imported under TYPE_CHECKING cannot be evaluated; then the types are unknown.
        return {}


def find_object(option: str, place: str, *, written: str | None = None) -> Any:
    """Returns the object at a place, `module:object` or `file.py:object`.

    Args:
        option: Option that names the object, for messages.
        place: Place of the object.
        written: The user's words for it, if they differ from the place.

    Raises:
        OptionError: no such module or object.
    """
    value = f"{option}={written or place!r}"
    module_name, _, attribute = place.rpartition(":")
    if not module_name or not attribute:
        raise OptionError(f"{value}: must be module:object, or file.py:object")
    try:
        found: Any = load_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, OSError) as error:
        raise OptionError(
            f"{value}: {module_name} cannot be imported: {error}; what stands before the colon must be an importable module "
            "or a Python file"
        ) from None
    except AttributeError:
        raise OptionError(f"{value}: {module_name} has no {attribute!r}; give a name that it defines") from None
    return found


def load_module(name: str) -> ModuleType:
    """Imports a module by name, or a Python file by its path, once per process.

    Raises:
        ImportError, OSError: the module does not exist, or cannot be imported.
    """
    try:
        return _import(name)
    except (ImportError, OSError):
        raise
    except (Exception, SystemExit) as error:
        # What a module of the user's does when it is imported may end in any error.
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ImportError(f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})") from error


def _import(name: str) -> ModuleType:
    if not name.endswith(".py"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise ImportError(f"{name!r} is no name of a module")
        return importlib.import_module(name)
    path = Path(name).resolve()
    unique = f"tppo_rl_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


ALGORITHMS = Registry(
    "run",
    {
        "TPPO": "tppo_rl.algorithms.tppo:SPEC",
        "PPO": "tppo_rl.algorithms.ppo:SPEC",
        "VAPO": "tppo_rl.algorithms.vapo:SPEC",
        "GRPO": "tppo_rl.algorithms.grpo:SPEC",
        "DAPO": "tppo_rl.algorithms.dapo:SPEC",
        "GSPO": "tppo_rl.algorithms.gspo:SPEC",
        "CISPO": "tppo_rl.algorithms.cispo:SPEC",
    },
)
"""Places of `AlgorithmSpec`s."""
ADVANTAGES = Registry(
    "advantage_estimator",
    {
        "egae": "tppo_rl.learner.advantages:extended_advantages",
        "gae": "tppo_rl.learner.advantages:plain_advantages",
        "group_relative": "tppo_rl.learner.advantages:group_advantages",
    },
)
"""Places of advantage estimators, see `tppo_rl.learner.advantages`."""
POLICY_LOSSES = Registry(
    "policy_loss",
    {
        "clipped": "tppo_rl.learner.policy_losses:clipped",
        "cispo": "tppo_rl.learner.policy_losses:cispo",
        "gspo": "tppo_rl.learner.policy_losses:gspo",
    },
)
"""Places of policy losses, see `tppo_rl.learner.policy_losses`."""
REWARDS = Registry(
    "rewards",
    {
        "environment": "tppo_rl.rollout.reward_terms:environment",
        "zero_one": "tppo_rl.rollout.reward_terms:zero_one",
        "plus_minus_one": "tppo_rl.rollout.reward_terms:plus_minus_one",
        "format": "tppo_rl.rollout.reward_terms:Format",
        "length": "tppo_rl.rollout.reward_terms:Length",
        "calculation": "tppo_rl.rollout.calculation_reward:Calculation",
        "verifier": "tppo_rl.rollout.reward_terms:AnswerVerifier",
        "model": "tppo_rl.rollout.reward_model:RewardModel",
    },
    by_keyword=True,
    of_caller=RESPONSE_ARGUMENTS | RUN_ARGUMENTS | COMPUTE_SCORE_ARGUMENTS,
    open_keywords=lambda parameters: is_compute_score(parameters) and has_open_keywords(parameters),
)
"""Places of rewards, see `tppo_rl.rollout.reward_terms`."""
ENGINES = Registry("engine.type", {"vllm": "tppo_rl.rollout.vllm_engine:VLLMEngine"})
"""Places of engines, see `tppo_rl.rollout.engine`."""
