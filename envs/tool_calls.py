"""Tool calls in a turn of the model, and the methods of an object that answer them.

Calls are read in the form of Hermes and Qwen, any number in a turn, after the reasoning:

    <tool_call>
    {"name": "move", "arguments": {"direction": "up"}}
    </tool_call>

or as a turn that is such an object, or a list of them, and nothing else (a code fence may stand around it). Answers go back as Qwen's
template writes tool messages, which is a user turn: `<tool_response>…</tool_response>`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tppo_rl.envs.text_env import require

_RUNNERS = threading.local()

TOOL_SCHEMAS = "tool_schemas"
"""Key of `reset`'s info: JSON schemas of the tools, for the chat template."""

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)
_MAX_CALLS = 64
"""Calls of one turn that are answered; each may cost time."""


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it.

    Attributes:
        name: Name of the tool, empty where it cannot be read.
        arguments: By name.
        error: Why the call cannot be made, or None.
    """

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def tool_calls(text: str) -> list[ToolCall]:
    """The calls in a turn, in order; none where it calls no tool. Never fails, whatever the text is.

    What stands in the tags of a call and cannot be read is a call with an `error`, so that the model learns of it.
    """
    said = text.rpartition("</think>")[2].strip()
    tagged = _TAGGED.findall(said) if "<tool_call>" in said else []
    if tagged:
        return [_tagged_call(one) for one in tagged[:_MAX_CALLS]]
    fenced = _FENCE.match(said)
    bare = (fenced[1] if fenced else said).strip()
    if not bare.startswith(("{", "[")):
        return []
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        return []
    objects = value if isinstance(value, list) else [value]
    calls = [_call(one) for one in objects[:_MAX_CALLS]]
    # An answer that happens to be JSON is no call.
    return [call for call in calls if call is not None] if calls and None not in calls else []


def _tagged_call(text: str) -> ToolCall:
    try:
        call = _call(json.loads(text))
    except (ValueError, RecursionError) as error:
        return ToolCall(error=f"the call is no JSON: {error}")
    return call or ToolCall(error='a call is an object with "name" and "arguments"')


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(value["name"], arguments) if isinstance(arguments, Mapping) else None


class Tools:
    """The public methods of an object's class, as tools.

    Args:
        owner: The object.
        option: Option that names it, for messages.
        value: Its value.
        without: Names of public methods that are no tools.

    Raises:
        ValueError: A method has no type hints, or no Google-style docstring.
    """

    def __init__(self, owner: Any, option: str, value: str, without: Sequence[str] = ()) -> None:
        # Of the class: reading the object's own attributes would evaluate its properties.
        names = [name for name, _ in inspect.getmembers(type(owner), inspect.isfunction)]
        shown = [name for name in names if not name.startswith("_") and name not in without]
        self._methods: dict[str, Callable[..., Any]] = {name: getattr(owner, name) for name in shown}
        self.schemas = [_schema(method, option, value) for method in self._methods.values()]

    def answer(self, calls: Sequence[ToolCall]) -> str:
        """Makes the calls and returns the next user turn. What a tool raises becomes its answer, `{'error': …}`."""
        texts = [self._answer(call) for call in calls]
        return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)

    def _answer(self, call: ToolCall) -> str:
        if call.error is not None:
            return str({"error": call.error})
        method = self._methods.get(call.name)
        if method is None:
            return str({"error": f"Tool {call.name} not found."})
        try:
            return str(finished(method(**call.arguments)))
        except (Exception, SystemExit) as error:
            return str({"error": str(error)})


def finished(result: Any) -> Any:
    """The result itself, or what comes of it where it is a coroutine."""
    return _runner().run(_wait(result)) if inspect.isawaitable(result) else result


def _runner() -> asyncio.Runner:
    """The runner of this thread: clients and locks of an environment belong to the loop that they were made in."""
    if not hasattr(_RUNNERS, "runner"):
        _RUNNERS.runner = asyncio.Runner()
    return cast(asyncio.Runner, _RUNNERS.runner)


async def _wait(result: Any) -> Any:
    return await result


def _schema(method: Callable[..., Any], option: str, value: str) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        return dict(get_json_schema(method))
    except Exception as error:  # a class of its own for each fault, none of which is exported
        reason = " ".join(str(error).split())
        require(False, option, value, f"its tool {method.__name__} has no schema ({reason}); give it type hints and a "
                "Google-style docstring with a line for each argument")  # fmt: skip
        raise AssertionError from None
