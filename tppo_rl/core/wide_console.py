"""A console for tables whose cells must not be cut."""

from __future__ import annotations

from rich.console import Console


def wide_console(least: int = 110) -> Console:
    """Returns a console for the standard output. A narrow terminal wraps its lines, and a file has them whole.

    Args:
        least: Columns of the table.
    """
    console = Console()
    console.width = max(console.width, least)
    return console
