"""Questions of a verifiers package: an environment of its first form (`load_environment`), or a taskset of its second (`Taskset`).

`verifiers` itself is imported by the package that is named, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

from tppo_rl.core.registry import load_module
from tppo_rl.envs.text_env import require

Message = dict[str, str]


class UnfitTask(Exception):
    """A task or environment cannot be answered with one text; the message says why."""


@dataclass(frozen=True, eq=False)
class Task:
    """A question.

    Attributes:
        prompt: The last message, which is the user's.
        before: Messages before it.
        columns: What else the package says of it.
        reward: The weighted sum of the package's rewards for a response. It raises what they raise.
    """

    prompt: str
    before: tuple[Message, ...]
    columns: Mapping[str, Any]
    reward: Callable[[str], float] = field(repr=False)

    @property
    def before_text(self) -> str:
        """The earlier messages as one text."""
        return json.dumps(self.before)


def load_tasks(package: str, arguments: Mapping[str, Any], limit: int | None) -> tuple[Task, ...]:
    """The questions of a package; all environments of a process share them.

    Args:
        package: Module, hub id (`owner/name`), or Python file.
        arguments: Of `load_environment`, or fields of the taskset's config.
        limit: Most questions that are read.

    Raises:
        ValueError: There is no such package, it is neither form, it refuses the arguments, or it needs more than one turn.
    """
    try:
        key = json.dumps(arguments, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"arguments={arguments!r}: {error}; give texts, numbers, lists and mappings") from None
    return _load(package, key, limit)


@lru_cache(maxsize=4)
def _load(package: str, arguments: str, limit: int | None) -> tuple[Task, ...]:
    from tppo_rl.envs import verifiers_v0, verifiers_v1

    module = _module(package)
    given = json.loads(arguments)
    try:
        if callable(getattr(module, "load_environment", None)):
            tasks = verifiers_v0.tasks_of(module, given, limit)
        else:
            tasks = verifiers_v1.tasks_of(module, given, limit)
    except UnfitTask as error:
        raise ValueError(f"package={package!r}: {error}") from None
    require(bool(tasks), "package", package, "it has no questions")
    return tuple(tasks)


def _module(package: str) -> ModuleType:
    name = package
    if not package.endswith(".py"):
        # Hub ids are `owner/name@version`, and are installed as a module `name`.
        name = package.rpartition("/")[2].partition("@")[0].replace("-", "_")
    try:
        return load_module(name)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"package={package!r}: {name} cannot be imported ({error}); install it, with the version of verifiers that it needs"
        ) from error


def messages_of(prompt: Any) -> tuple[tuple[Message, ...], str]:
    """Messages before the last one, and the text of the last one, which is the user's.

    Raises:
        UnfitTask: They are not like that.
    """
    if isinstance(prompt, str):
        return (), prompt
    if not isinstance(prompt, list | tuple) or not prompt:
        raise UnfitTask("a task has no prompt: its conversation is begun by something else")
    *before, last = [_message(one) for one in prompt]
    if last["role"] != "user":
        raise UnfitTask(f"the last message of a prompt must be the user's, not that of {last['role']!r}")
    return tuple(before), last["content"]


def _message(message: Any) -> Message:
    fields = message if isinstance(message, Mapping) else message.model_dump()
    content = fields.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if part.get("type") == "text" else None for part in content]
        content = None if None in parts else "".join(map(str, parts))
    if not isinstance(content, str):
        raise UnfitTask(f"a message of role {fields.get('role')!r} is no text")
    return {"role": str(fields["role"]), "content": content}
