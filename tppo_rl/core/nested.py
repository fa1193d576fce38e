"""Look-ups in nested results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lookup(result: Mapping[str, Any], path: str) -> Any:
    """Value at `a/b/c` in nested results, None where there is none."""
    value: Any = result
    for part in path.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
