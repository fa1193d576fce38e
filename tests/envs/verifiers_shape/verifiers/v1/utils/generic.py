"""Types that a generic class is made for."""

from typing import Any, get_args


def concrete_type(kind: type, base: type, origin: Any = None) -> Any:
    for one in kind.__mro__:
        for generic in getattr(one, "__orig_bases__", ()):
            for argument in get_args(generic):
                if isinstance(argument, type) and issubclass(argument, base):
                    return argument
    return None
