"""YAML by the rules of run files, which are stricter than YAML's: what would be dropped or read as something else is refused.

A key that is given twice, `010` (YAML 1.1 reads 8) and `12:30` (750), dates, other tags, numbers of more than 64 bits, values
that hold themselves: each is one error with its line. Depth and number of values are bounded, so that no text takes long.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tppo_rl.core.errors import OptionError

_MOST_BYTES = 1 << 18
_MOST_SHOWN = 200
"""Characters of a text in a message."""
_MOST_LEVELS = 32
"""Levels of nesting; run files have about 8."""
_MOST_VALUES = 20_000
"""Values with every alias written out."""
_MOST_DIGITS = 80
"""Digits of a number of 64 bits in base 2, signs and underscores included."""
_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
_EXAMPLES = {
    "timestamp": "a date; write it in quotes for a text",
    "value": "YAML's default value; write it in quotes for a text",
}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number, which YAML 1.1 reads as a text, and refuses what the module's header says."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._composed = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Values and levels of a whole node, aliases written out, by the node's id."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._level += 1
        self._composed += 1
        if self._level > _MOST_LEVELS:
            self._refuse(f"values are nested more than {_MOST_LEVELS} levels deep; take some out", event.start_mark)
        node: Any = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            # The anchors of values that are not whole yet are known already.
            if id(node) not in self._sizes:
                self._refuse(f"the value &{event.anchor} holds itself; write out what is meant", event.start_mark)
            return node
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node, is_plain=event.style is None)
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        if node.tag not in _TAGS:
            name = node.tag.removeprefix(_TAG)
            meant = _EXAMPLES.get(name, f"a value of the kind {name!r}, which run files do not have; remove the tag")
            self._refuse(f"YAML reads this as {meant}", node.start_mark)
        self._measure(node)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # What a tag says is not what stands behind it.
            kind = node.tag.removeprefix(_TAG)
            self._refuse(
                f"not a value of the kind {kind!r} ({error}); correct it, or put it in quotes", node.start_mark
            )

    def _measure(self, node: Any) -> None:
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else []
        inner = node.value if isinstance(node, yaml.SequenceNode) else inner
        sizes = [self._sizes[id(one)] for one in inner]
        size, levels = 1 + sum(size for size, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
        if max(size, self._composed) > _MOST_VALUES:
            self._refuse(f"more than {_MOST_VALUES:,} values, aliases written out; take some out", node.start_mark)
        if levels > _MOST_LEVELS:
            self._refuse(f"values are nested more than {_MOST_LEVELS} levels deep; take some out", node.start_mark)
        self._sizes[id(node)] = size, levels

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key must be a text; write out what is meant", key.start_mark)
            same = key.tag, key.value
            if same in lines:
                problem = f"the key {key.value!r} is given twice, first in line {lines[same]}; remove one"
                self._refuse(problem, key.start_mark)
            lines[same] = key.start_mark.line + 1

    def _check_scalar(self, node: yaml.ScalarNode, *, is_plain: bool) -> None:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "str" and (found := _NO_TEXT.search(text)):
            self._refuse(f"texts do not hold the character {found[0]!r}; remove it", node.start_mark)
        if is_plain and kind in ("int", "float") and (":" in text or _OCTAL.fullmatch(text)):
            how = "in base 60" if ":" in text else "in base 8"
            self._refuse(
                f"YAML reads {text} as a number {how}; write a plain number, or '{text}' in quotes for a text",
                node.start_mark,
            )

    def _integer(self, node: yaml.ScalarNode) -> int:
        # Python takes long to read thousands of digits, and refuses to print them.
        value = int(self.construct_yaml_int(node)) if len(node.value) <= _MOST_DIGITS else 1 << 64
        if not -(1 << 63) <= value < 1 << 63:
            self._refuse("a whole number of more than 64 bits; write a smaller one", node.start_mark)
        return value

    def _refuse(self, problem: str, mark: Any) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, problem, mark)


_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_constructor(_TAG + "int", _Loader._integer)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file by the rules of run files.

    Raises:
        OptionError: the file cannot be read, is no UTF-8, too large, or not valid; the message says where.
    """
    where = f"file={str(path)!r}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror}; give a file that can") from None
    if len(data) > _MOST_BYTES:
        raise OptionError(f"{where}: has {len(data):,} bytes, and a run file at most {_MOST_BYTES:,}; make it smaller")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OptionError(
            f"{where}, line {line}: the byte 0x{data[error.start]:02x} is no UTF-8; save the file in the encoding UTF-8"
        ) from None
    return _parse(text, where, "YAML")


def parse_yaml(text: str) -> Any:
    """Reads a YAML or JSON text by the rules of run files.

    Raises:
        OptionError: the text is not valid YAML.
    """
    return _parse(text, repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"), "YAML or JSON")


def _parse(text: str, where: str, form: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise OptionError(_explain(where, form, text, error)) from None


def _explain(where: str, form: str, text: str, error: yaml.YAMLError) -> str:
    """Returns what is wrong with a YAML text, where, and the line with a mark below it."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{where}, line {line}: not valid {form}: the character {chr(error.character)!r} stands in no text; remove it"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{where}: not valid {form}: {' '.join(str(error).split())}"
    problem = ", ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
    lines = text.splitlines()
    # An error at the end of the text stands behind its last line.
    shown = lines[mark.line] if mark.line < len(lines) else ""
    if len(shown) > _MOST_SHOWN or not shown.isprintable():
        shown = ""
    picture = f"\n    {shown}\n    {' ' * mark.column}^" if shown else ""
    return f"{where}, line {mark.line + 1}, column {mark.column + 1}: not valid {form}: {problem}{picture}"
