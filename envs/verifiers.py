"""Functions that say how right a response is, given the gold answer: 1.0 right, 0.0 wrong."""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from tppo_rl.envs.text_env import require

Verifier = Callable[..., float]
"""`(response: str, answer: str, **options) -> float`."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MAX_DIGITS = 100


def exact(response: str, answer: str, *, ignore_case: bool = False) -> float:
    """Whether the whole response is the answer, but for white space around it."""
    given, gold = response.strip(), answer.strip()
    return float(given.casefold() == gold.casefold() if ignore_case else given == gold)


def numeric(response: str, answer: str, *, tolerance: float = 0.0) -> float:
    """Whether the last number of the response equals the answer's last number, or is off by at most `tolerance`."""
    given, gold = _last_number(response), _last_number(answer)
    if given is None or gold is None:
        return 0.0
    return float(abs(given - gold) <= Decimal(str(tolerance)))


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    if not numbers or len(numbers[-1]) > _MAX_DIGITS:
        return None
    return Decimal(numbers[-1].replace(",", ""))


VERIFIERS: dict[str, Verifier] = {"exact": exact, "numeric": numeric}
"""Verifiers by name."""


def find_verifier(spec: str | Mapping[str, Any]) -> Callable[[str, str], float]:
    """The verifier that an option names, with its options bound.

    Args:
        spec: A name, `module:function` or `file.py:function`, or a mapping of `type` (one of these) and options.

    Raises:
        ValueError: No such verifier, or it does not take these options.
    """
    options = {} if isinstance(spec, str) else {str(key): value for key, value in spec.items() if key != "type"}
    name = spec if isinstance(spec, str) else spec.get("type")
    require(isinstance(name, str), "verifier", spec, "give a name, or a mapping with `type` and options")
    verifier = _function_at(str(name)) if ":" in str(name) else VERIFIERS.get(str(name))
    if verifier is None:
        raise ValueError(f"verifier={name!r}: there are {', '.join(VERIFIERS)}; or name your own as module:function")
    try:
        inspect.signature(verifier).bind("", "", **options)
    except TypeError as error:
        raise ValueError(f"verifier={spec!r}: {error}; correct or remove that option") from None
    return partial(verifier, **options) if options else verifier


def _function_at(place: str) -> Verifier:
    module, _, name = place.rpartition(":")
    try:
        found = getattr(
            _module_of_file(Path(module)) if module.endswith(".py") else importlib.import_module(module), name
        )
    except (ImportError, OSError, AttributeError) as error:
        raise ValueError(f"verifier={place!r}: {error}; give module:function or file.py:function") from None
    require(callable(found), "verifier", place, "this is no function; name one")
    return found


def _module_of_file(path: Path) -> Any:
    name = f"tppo_rl_verifiers_{path.stem}_{abs(hash(path.resolve()))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
