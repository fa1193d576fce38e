"""YAML by the rules of run files: what would be dropped or read as something else is one error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tppo_rl.config.yaml_text import parse_yaml, read_yaml
from tppo_rl.core.errors import OptionError


def test_values_are_read_as_they_are_written() -> None:
    text = "a: 1e-4\nb: [0, -1, 1_000, 0x1f, 0o17, .inf]\nc: '12:30'\nd: 0.010\ne: {f: null, g: true}\nh: 08\n"
    assert parse_yaml(text) == {
        "a": 1e-4,
        "b": [0, -1, 1000, 31, "0o17", float("inf")],
        "c": "12:30",
        "d": 0.01,
        "e": {"f": None, "g": True},
        "h": "08",
    }


def test_merged_keys_may_be_changed() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"line 3, column 1: .*the key 'a' is given twice, first in line 1; remove one"),
        ("{lr: 1, 'lr': 2}", r"the key 'lr' is given twice, first in line 1"),
        ("a: {<<: {x: 1}, <<: {y: 1}}", r"the key '<<' is given twice"),
        ("seed: 010", r"line 1, column 7: .*YAML reads 010 as a number in base 8; .*'010' in quotes"),
        ("time: 12:30", r"YAML reads 12:30 as a number in base 60"),
        ("time: 1:30.5", r"YAML reads 1:30\.5 as a number in base 60"),
        ("day: 2001-01-01", r"YAML reads this as a date; write it in quotes"),
        ("day: 2001-99-99", r"YAML reads this as a date; write it in quotes"),
        ("a: =", r"YAML's default value; write it in quotes"),
        ("a: !!set {b}", r"a value of the kind 'set', which run files do not have; remove the tag"),
        ("a: !!binary eA==", r"a value of the kind 'binary'"),
        ("a: !!python/name:os.system x", r"a value of the kind 'python/name:os\.system'"),
        ("a: !!bool x", r"not a value of the kind 'bool' .*; correct it"),
        ("a: !!int x", r"not a value of the kind 'int'"),
        ("a: !!float x", r"not a value of the kind 'float'"),
        ("a: " + "9" * 5000, r"a whole number of more than 64 bits; write a smaller one"),
        ("a: 0x" + "f" * 5000, r"a whole number of more than 64 bits"),
        ("a: -9223372036854775809", r"a whole number of more than 64 bits"),
        ("? {a: b}\n: 1", r"a key must be a text; write out what is meant"),
        ("? [a]\n: 1", r"a key must be a text"),
        ("a: &a [*a]", r"the value &a holds itself; write out what is meant"),
        ("a: &a {b: {c: *a}}", r"the value &a holds itself"),
        ("a: &a {<<: *a}", r"the value &a holds itself"),
        ("[" * 1000, r"values are nested more than 32 levels deep; take some out"),
        ("a: " * 40, r"mapping values are not allowed here"),
        ("- " * 1000 + "1", r"values are nested more than 32 levels deep"),
        ("".join(f"a{k}: &a{k} [{f'*a{k - 1}' if k else 1}]\n" for k in range(40)), r"nested more than 32 levels deep"),
        (
            "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}' if k else '1'] * 9)}]\n" for k in range(9)),
            r"more than 20,000 values, aliases written out; take some out",
        ),
        ("[" + "1," * 30_000 + "]", r"more than 20,000 values"),
        ('a: "\\0"', r"texts do not hold the character '\\x00'; remove it"),
        ('"\\ud800": 1', r"texts do not hold the character '\\ud800'"),
        ("a: \x07", r"line 1: .*the character '\\x07' stands in no text"),
        ("a: *nothing", r"line 1, column 4: .*undefined alias"),
    ],
)
def test_what_is_not_meant_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=rf"line \d+.*{message}" if not message.startswith("line") else message):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "a: 1\nb: Größe\n".encode("latin-1"),
            r", line 2: the byte 0xf6 is no UTF-8; save the file in the encoding UTF-8",
        ),
        ("a: 1\n".encode("utf-16"), r", line 1: the byte 0xff is no UTF-8"),
        ("a: 1\n".encode("utf-16-le"), r", line 1: not valid YAML: the character '\\x00'"),
        (b"#" * 300_000, r": has 300,000 bytes, and a run file at most 262,144; make it smaller"),
    ],
)
def test_a_file_that_is_no_text_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(data)
    with pytest.raises(OptionError, match=rf"^file='.*run\.yaml'{message}"):
        read_yaml(file)


def test_a_mark_of_the_encoding_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: ä\n", encoding="utf-8-sig")
    assert read_yaml(file) == {"a": "ä"}


def test_what_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^file=.*: cannot be read: Is a directory; give a file that can"):
        read_yaml(tmp_path)
