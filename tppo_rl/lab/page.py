"""Blocks of a report, written as Markdown and as one HTML page that holds its figures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636d; --paper: #fff; --line: #d6dae0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2abb6; --paper: #16191d; --line: #383e46; } }
body { margin: 0 auto; padding: 1rem; max-width: 1100px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .875rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` stands between backticks."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column has names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Image:
    """A PNG file beside the page."""

    file: str
    caption: str


Block = Heading | Text | Table | Image


def to_markdown(blocks: Iterable[Block]) -> str:
    """Returns the blocks as Markdown."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Image):
            parts += [f"![{block.caption}]({block.file})", block.caption]
        else:
            lines = [_line(block.columns), "|---" * len(block.columns) + "|", *map(_line, block.rows)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """Returns the blocks as one page, which asks nothing of other files.

    Args:
        blocks: The first one is the heading of the page.
        folder: Of the images.
    """
    title = next(block.text for block in blocks if isinstance(block, Heading))
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
        elif isinstance(block, Text):
            text = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(block.text))
            parts.append(f"<p>{text}</p>")
        elif isinstance(block, Image):
            png = base64.b64encode((folder / block.file).read_bytes()).decode()
            caption = html.escape(block.caption)
            parts.append(
                f'<figure><img alt="{caption}" src="data:image/png;base64,{png}"><figcaption>{caption}</figcaption></figure>'
            )
        else:
            rows = [_cells(block.columns, "th"), *(_cells(row, "td") for row in block.rows)]
            parts.append(f'<div class="scroll"><table>{"".join(rows)}</table></div>')
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cells(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
