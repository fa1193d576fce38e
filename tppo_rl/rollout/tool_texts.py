"""Tools in a prompt: what the environment says of them, and a text for chat templates that have no place for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tppo_rl.envs.tool_calls import TOOL_SCHEMAS

_TEXT = """\
You can call tools. These are their JSON schemas:
{schemas}
To call a tool, write a JSON object between these tags, once for each call, and end your turn:
<tool_call>
{{"name": "the tool's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>
The answers come between <tool_response> tags. A turn without a call is your final answer."""


def turns_and_tools(info: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, str]], Sequence[Mapping[str, Any]]]:
    """Returns the turns before the prompt and the schemas of the tools, as `reset`'s info holds them."""
    return info.get("messages", ()), info.get(TOOL_SCHEMAS, ())


def tool_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Returns the system text that says which tools there are and how they are called."""
    return _TEXT.format(schemas="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def with_system_text(conversation: Sequence[Mapping[str, str]], text: str) -> list[Mapping[str, str]]:
    """Returns the conversation with a text at the end of its system message, which is made where there is none."""
    if conversation and conversation[0]["role"] == "system":
        first, *rest = conversation
        return [{"role": "system", "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *conversation]
