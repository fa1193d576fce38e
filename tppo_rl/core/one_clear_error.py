"""Bad input on the command line: one message and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import click

from tppo_rl.core.errors import OptionError

BAD_INPUT = 2
"""Exit status, the one that click uses for a bad call."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def one_clear_error(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a command end with the message of an `OptionError` and status 2, without a traceback."""

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except OptionError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_INPUT)

    return wrapped
