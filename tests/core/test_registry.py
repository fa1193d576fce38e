"""Doors: parts by name, by module and by file, with arguments that are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import (
    ADVANTAGES,
    ALGORITHMS,
    ENGINES,
    POLICY_LOSSES,
    REWARDS,
    PartSpec,
    Registry,
)


def double(value: float, *, times: int = 2) -> float:
    return times * value


def needs(value: float, *, times: int) -> float:
    return times * value


class Power(BaseModel):
    """A part with a model of its own."""

    exponent: int = 2

    def __call__(self, value: float) -> float:
        return float(value**self.exponent)


class Refuses:
    def __init__(self, reason: str) -> None:
        raise ValueError(reason)


NUMBER = 3
OWN = Registry("part", {"double": f"{__name__}:double"})


def resolve(spec: Any, registry: Registry = OWN) -> Any:
    return registry.resolve(PartSpec.parse(spec))


def test_parts_by_name_by_place_and_with_arguments() -> None:
    assert resolve("double")(3.0) == 6.0
    assert resolve({"type": "double", "times": 5})(3.0) == 15.0
    assert resolve(f"{__name__}:double") is double
    assert resolve({"type": f"{__name__}:Power", "exponent": 3})(2.0) == 8.0
    assert resolve("math:sqrt")(9.0) == 3.0


def test_a_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts.py").write_text(
        "class A:\n    @staticmethod\n    def add(value, *, more=1):\n        return value + more\n"
    )
    assert resolve(f"{tmp_path}/parts.py:A.add")(2) == 3
    monkeypatch.chdir(tmp_path)
    relative = resolve({"type": "./parts.py:A.add", "more": 4})
    assert relative(2) == 6
    assert relative.func is resolve(f"{tmp_path}/parts.py:A.add"), "the file is imported once"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("doubl", r"^part='doubl': unknown name, did you mean double\?; known are double, or module:object"),
        ("no_such_package:x", "no_such_package cannot be imported: No module named"),
        ("./no_such_file.py:x", "no_such_file.py cannot be imported"),
        ("math:nothing", "math has no 'nothing'"),
        (f"{__name__}:NUMBER", "is a int, which cannot be called"),
        (
            {"type": "double", "tims": 3},
            r"part\.tims=3: unknown option, did you mean part\.times\?; double takes times",
        ),
        ({"type": "double", "times": "often"}, r"part\.times='often': .*integer"),
        (f"{__name__}:needs", "needs times; give them"),
        ({"type": f"{__name__}:Power", "exponent": "x"}, r"part\.exponent='x': .*integer"),
        ({"type": f"{__name__}:Power", "nothing": 1}, r"part\.nothing=1: unknown option; .*Power takes exponent"),
        ({"type": f"{__name__}:Refuses", "reason": "it is late"}, "it is late"),
        ({"type": f"{__name__}:Refuses"}, "reason"),
    ],
)
def test_what_cannot_be_is_refused_by_name(spec: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve(spec)


@pytest.mark.parametrize("value", [3, None, ["double"], {"name": "double"}, {"type": 3}])
def test_a_spec_is_a_name_or_a_mapping_with_a_type(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a name, module:object, or a mapping"):
        PartSpec.parse(value)


def test_specs_are_written_as_they_were_read() -> None:
    for value in ("double", {"type": "double", "times": 3}):
        assert PartSpec.parse(value).flat() == value
        assert PartSpec.parse(PartSpec.parse(value)) == PartSpec.parse(value)


def test_names_are_registered_once() -> None:
    registry = Registry("part", {})
    registry.register("root", "math:sqrt")
    assert list(registry) == ["root"]
    assert resolve("root", registry)(4.0) == 2.0
    with pytest.raises(ValueError, match="is taken by math:sqrt"):
        registry.register("root", "math:cbrt")
    with pytest.raises(ValueError, match="must be module:object"):
        registry.register("other", "math")


@pytest.mark.parametrize("registry", [ADVANTAGES, ALGORITHMS, ENGINES, POLICY_LOSSES, REWARDS], ids=lambda r: r._option)
def test_every_registered_place_exists(registry: Registry) -> None:
    assert len(registry) >= 1
    for name in registry:
        assert registry.find(name) is not None
