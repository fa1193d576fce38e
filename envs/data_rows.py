"""From a row's columns to a question: prompt, turns before it, answer.

An option names a column (dotted where columns are nested: `reward_model.ground_truth`) or is a template, which is what
has a brace: `{Body} {Question}`. The words of a template are those of `str.format` without conversions; `{Body:sentence}`
ends the text with a period where it has no mark at its end. Literal braces are doubled.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tppo_rl.envs.text_env import require

Message = dict[str, str]
"""A turn: `role` and `content`."""

ROLES = ("system", "user", "assistant")
_ENDS = (".", "?", "!", ":", ";")
_MISSING = object()


class BadRow(Exception):
    """A row is unfit; the text says why."""


def look_up(columns: Mapping[str, Any], name: str) -> Any:
    """The value of a column, `_MISSING` where there is none; `a.b` is also entry `b` of column `a`, `a.0` its first one."""
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def as_text(value: Any) -> str | None:
    """A value as text (a whole float as an integer), or None where it is empty or no single value."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if value is None or isinstance(value, Mapping | list | tuple | bytes):
        return None
    return str(value)


class Template:
    """A text with names of columns in braces.

    Args:
        text: The template.
        key: Option that holds it, for messages.

    Raises:
        ValueError: The braces cannot be understood.
    """

    def __init__(self, text: str, key: str) -> None:
        self._text = text
        self._key = key
        try:
            self._parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{key}={text!r}: {error}; write literal braces twice") from None
        for _, name, form, conversion in self._parts:
            fits = name is None or (bool(name) and form in ("", "sentence") and conversion is None)
            require(
                fits, key, text, "braces hold a column's name, as {question} or {body:sentence}; write others twice"
            )

    @property
    def names(self) -> list[str]:
        """The columns that it names."""
        return [name for _, name, _, _ in self._parts if name]

    def fill(self, columns: Mapping[str, Any]) -> str:
        """The text with the row's values.

        Raises:
            BadRow: A value is missing or is no single value.
        """
        pieces = []
        for literal, name, form, _ in self._parts:
            pieces.append(literal)
            if name:
                text = text_of(columns, name, f"{self._key}={self._text!r}")
                pieces.append(_as_sentence(text) if form else text)
        return "".join(pieces)


def _as_sentence(text: str) -> str:
    text = text.rstrip()
    return text if text.endswith(_ENDS) else f"{text}."


def text_of(columns: Mapping[str, Any], name: str, option: str) -> str:
    """The text in a column.

    Raises:
        BadRow: The row has no such column, or no single value in it; says which option (`option`) asks for it.
    """
    text = as_text(_value_of(columns, name, option))
    if text is None:
        raise BadRow(f"{option}: {name!r} holds no text and no number ({_short(look_up(columns, name))})")
    return text


def _value_of(columns: Mapping[str, Any], name: str, option: str) -> Any:
    value = look_up(columns, name)
    if value is _MISSING:
        raise BadRow(f"{option}: no column {name!r}; the row has {', '.join(map(str, columns))}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_template(text: str) -> bool:
    return "{" in text or "}" in text


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. Of several names the first one counts that the row has.

    Attributes:
        prompt: Columns or templates of the prompt.
        answer: Columns or templates of the answer; empty: there is none.
        answer_after: The answer is what stands after the last of these in the column.
        answer_pattern: Regular expression that finds the answer: its group 1, or all of it.
        example_answer: Column or template of the answer in an example; None: the answer's column, whole.
        key: What stands before the names of these options in messages.
    """

    prompt: tuple[str, ...]
    answer: tuple[str, ...] = ()
    answer_after: str | None = None
    answer_pattern: str | None = None
    example_answer: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Question:
    """What a row asks.

    Attributes:
        place: File and line of the row.
        text: Last user turn.
        before: Turns before it that the row has.
        answer: Gold answer; None where there is none.
        example_answer: The answer that an example shows.
        columns: All columns of the row.
        is_conversation: Whether the row's prompt is a list of messages.
    """

    place: str
    text: str
    before: tuple[Message, ...]
    answer: str | None
    example_answer: str | None
    columns: Mapping[str, Any]
    is_conversation: bool = False

    @property
    def identity(self) -> str:
        """What says whether two prompts are the same, whatever their white space and system message."""
        turns = [turn["content"] for turn in self.before if turn["role"] != "system"]
        return " ".join(re.findall(r"\w+|[^\w\s]", "\n".join([*turns, self.text])))


class RowReader:
    """Reads questions out of rows.

    Args:
        columns: Which columns hold what.

    Raises:
        ValueError: A template or the pattern cannot be understood.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._key = columns.key
        self._templates = {
            text: Template(text, f"{self._key}{option}")
            for option, texts in (
                ("prompt", columns.prompt),
                ("answer", columns.answer),
                ("example_answer", [columns.example_answer] if columns.example_answer else []),
            )
            for text in texts
            if _is_template(text)
        }
        self._pattern = _compiled(columns.answer_pattern, f"{self._key}answer_pattern")

    def question(self, place: str, columns: Mapping[str, Any]) -> Question:
        """The question of a row.

        Raises:
            BadRow: The row has no prompt or no answer where they should stand.
        """
        before, text, is_conversation = self._prompt(columns)
        answer = example = None
        if self._columns.answer:
            example = self._text(columns, self._first(columns, self._columns.answer), "answer")
            answer = self._extracted(example)
        if self._columns.example_answer is not None:
            example = self._text(columns, self._columns.example_answer, "example_answer")
        for part in (text, answer, example, *(turn["content"] for turn in before)):
            _check_characters(part)
        return Question(place, text, before, answer, example, columns, is_conversation)

    def _first(self, columns: Mapping[str, Any], names: Sequence[str]) -> str:
        """The first name that the row has, or the first of all."""
        for name in names:
            needed = self._templates[name].names if name in self._templates else [name]
            if all(look_up(columns, column) is not _MISSING for column in needed):
                return name
        return names[0]

    def _text(self, columns: Mapping[str, Any], name: str, option: str) -> str:
        if name in self._templates:
            return self._templates[name].fill(columns)
        return text_of(columns, name, f"{self._key}{option}={name!r}")

    def _prompt(self, columns: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, bool]:
        name = self._first(columns, self._columns.prompt)
        option = f"{self._key}prompt={name!r}"
        before: list[Message] = []
        value = None if name in self._templates else _value_of(columns, name, option)
        is_conversation = False
        if isinstance(value, list | tuple):
            is_conversation = True
            *before, last = _messages(value, option)
            text = last["content"]
        else:
            text = self._text(columns, name, "prompt")
        if not text.strip():
            raise BadRow(f"{option}: the prompt is empty")
        return tuple(before), text, is_conversation

    def _extracted(self, text: str) -> str:
        marker = self._columns.answer_after
        if marker is not None:
            _, found, text = text.rpartition(marker)
            if not found:
                raise BadRow(f"{self._key}answer_after={marker!r}: the answer has no such mark ({_short(text)})")
        if self._pattern is not None:
            match = self._pattern.search(text)
            matched = None if match is None else match[1 if self._pattern.groups else 0]
            if matched is None:
                raise BadRow(
                    f"{self._key}answer_pattern={self._columns.answer_pattern!r}: not found in the answer ({_short(text)})"
                )
            text = matched
        if not text.strip():
            raise BadRow(f"{self._key}answer: it is empty")
        return text.strip()


def _check_characters(text: str | None) -> None:
    """Refuses halves of surrogate pairs, which JSON can write, but no tokenizer and no file can hold."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"no text of Unicode ({error})") from None


def _compiled(pattern: str | None, key: str) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}={pattern!r}: no regular expression ({error}); correct it") from None


def _messages(value: Sequence[Any], option: str) -> list[Message]:
    """Turns with texts as contents; the last one is the user's.

    Raises:
        BadRow: They are not like that.
    """
    turns = []
    for turn in value:
        role = turn.get("role") if isinstance(turn, Mapping) else None
        content = _content(turn.get("content")) if isinstance(turn, Mapping) else None
        if role not in ROLES or content is None:
            raise BadRow(
                f"{option}: a message needs a role ({', '.join(ROLES)}) and a text as content; got {_short(turn)}"
            )
        turns.append({"role": role, "content": content})
    if not turns or turns[-1]["role"] != "user":
        raise BadRow(f"{option}: the last message must be the user's; got {_short(turns[-1:])}")
    return turns


def _content(content: Any) -> str | None:
    """The text of a message, also where it comes as a list of parts that are all text."""
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") if part.get("type") == "text" else None for part in content]
        return None if None in texts else "".join(map(str, texts))
    return content if isinstance(content, str) else None
