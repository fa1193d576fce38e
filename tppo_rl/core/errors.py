"""Errors that a user can fix, and messages for unknown names."""

from __future__ import annotations

import difflib
import pickle
import traceback
from collections.abc import Iterable
from typing import Any


class OptionError(ValueError):
    """A bad option. The message names key, value and remedy."""


class RunError(RuntimeError):
    """What ends a run although its options are right. The message says what to do; a traceback would say nothing more."""


class ProcessDied(RunError):
    """A process that a run cannot do without is gone. Whoever goes on from the newest checkpoint has lost nothing before it."""


class OptionWarning(UserWarning):
    """Something about options or data that a user should know. On the command line its message is shown alone."""


def portable(error: Exception, where: str) -> Exception:
    """Returns an error that another process can raise, with its traceback as a note.

    Args:
        error: The error; one that cannot be pickled becomes a RuntimeError with its type and words.
        where: What it happened in, such as "env-runner 1".
    """
    begins = f"In {where}:\n"
    if any(note.startswith(begins) for note in getattr(error, "__notes__", ())):
        return error
    note = f"In {where}:\n{''.join(traceback.format_exception(error))}"
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is not type(error) or str(copy) != str(error):
        error = RuntimeError(f"{where}: {type(error).__name__}: {error}")
    error.add_note(note)
    return error


def unknown_key(key: str, value: Any, known: Iterable[str]) -> str:
    """Message for a key that nothing reads."""
    return f"{key}={value!r}: unknown option{suggestion(key, known)}; `tppo-rl options` lists all"


def unknown_value(key: str, value: Any, known: Iterable[str]) -> str:
    """Message for a name that is not registered."""
    names = sorted(known)
    ours = [name for name in names if name.startswith("tppo_rl/")] or names
    return f"{key}={value!r}: unknown name{suggestion(str(value), names)}; known are {', '.join(ours)}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """End of a message on a word that is not known: what may have been meant; empty where nothing is like it."""
    close = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=3)
    return f", did you mean {' or '.join(close)}?" if close else ""
