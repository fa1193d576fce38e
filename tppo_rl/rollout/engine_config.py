"""vLLM's configuration of an engine, and one error where vLLM does not take the arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tppo_rl.core.errors import OptionError

_LONGEST_VALUE = 200


def engine_config(arguments: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Returns vLLM's `VllmConfig` for arguments of its `EngineArgs`.

    Args:
        arguments: All of them.
        given: Those of the option `engine`.

    Raises:
        OptionError: vLLM does not take them, together or with this model.
    """
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        return EngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    except (ValueError, TypeError, NotImplementedError) as error:
        lengths = {key: arguments[key] for key in ("max_model_len", "max_num_seqs") if key in arguments}
        raise OptionError(
            f"engine={dict(given)}: vLLM cannot make an engine of it with {lengths} for model {arguments.get('model')}: {_said(error)}"
        ) from error


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(_said_of_place(**found) for found in error.errors(include_url=False))
    return str(error)


def _said_of_place(*, loc: tuple[Any, ...], msg: str, input: Any, **_: Any) -> str:
    where = ".".join(map(str, loc))
    # What pydantic was given as a whole is the configuration itself, and long.
    value = f"={input!r}" if len(repr(input)) < _LONGEST_VALUE else ""
    return f"{where}{value}: {msg}" if where else msg
