"""Bad input on the command line: one message and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import click

from tppo_rl.core.errors import OptionError, RunError

BAD_INPUT = 2
"""Exit status, the one that click uses for a bad call."""
FAILED = 1
"""Exit status of a run that began and failed."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def one_clear_error(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a command end with the message of an `OptionError` (status 2) or `RunError` (status 1), without a traceback."""

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except OptionError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_INPUT)
        except RunError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(FAILED)

    return wrapped
