"""Errors that a user can mend."""

from __future__ import annotations


class OptionError(ValueError):
    """A bad option: the message names key, value and remedy."""
