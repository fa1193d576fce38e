"""Bad input on the command line: one message and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TextIO, TypeVar

import click

from tppo_rl.core.errors import OptionError, OptionWarning, RunError
from tppo_rl.core.whole_files import is_full_disk, is_refused

BAD_INPUT = 2
"""Exit status, the one that click uses for a bad call."""
FAILED = 1
"""Exit status of a run that began and failed."""
INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def one_clear_error(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a command end with the message of an `OptionError` (status 2) or `RunError` (status 1), without a traceback.

    A disk that is full or read-only is such a message too. Ctrl-C gives status 130.
    """

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return command(*args, **kwargs)
        except OptionError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_INPUT)
        except RunError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(FAILED)
        except KeyboardInterrupt as interrupt:
            _leave(interrupt)
        except Exception as error:
            full = is_full_disk(error)
            if not full and not is_refused(error):
                raise
            where = getattr(error, "filename", None)
            place = f"{where}: " if where else ""
            why, remedy = (
                ("there is no room left on the disk", "Make room")
                if full
                else ("it may not be written", "Give the right")
            )
            click.echo(
                f"error: {place}{why}; what was written whole is there still. {remedy}, and go on with --resume where the command has it "
                f"({error})",
                err=True,
            )
            sys.exit(FAILED)

    return wrapped


_shown_by_python = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning of ours in its own words alone; where in our code it was written helps nobody."""
    if issubclass(category, OptionWarning):
        click.echo(f"warning: {message}", err=True)
    else:
        _shown_by_python(message, category, filename, lineno, file, line)


def _leave(interrupt: KeyboardInterrupt) -> NoReturn:
    """Ends the process without a traceback, by the status that shells give to a program that a signal ended."""
    status = getattr(interrupt, "status", None)
    if status is None:
        click.echo("Ctrl-C: stopped", err=True)
        sys.exit(INTERRUPTED)
    if not getattr(interrupt, "at_once", True):
        sys.exit(status)
    # It takes seconds, and a third Ctrl-C would only add a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads and actors may be at work for minutes; Python would wait for the threads.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
