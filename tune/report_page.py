"""The page of a report: one HTML file that refers to nothing outside of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from tppo_rl.tune.report_figures import ReportFigure

_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class PageTable:
    """A table of texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: frozenset[int] = field(default_factory=frozenset)
    """Those that are aligned as texts; the others are numbers."""

    def is_text(self, column: int) -> bool:
        """Whether a column is aligned as text."""
        return column in self.text_columns


@dataclass(frozen=True)
class PageFigure:
    """A figure and the name of its file beside the page."""

    file: str
    figure: ReportFigure

    @property
    def title(self) -> str:
        return self.figure.title

    @property
    def caption(self) -> str:
        return self.figure.caption

    @property
    def base64(self) -> str:
        """The PNG file as a data URI has it."""
        return base64.b64encode(self.figure.png).decode("ascii")


@dataclass(frozen=True)
class PageTask:
    """The section of one task."""

    title: str
    findings: Sequence[str]
    figures: Sequence[PageFigure]
    groups: PageTable
    comparisons: PageTable


@dataclass(frozen=True)
class PageProvenance:
    """A command that had part in it."""

    when: str
    command: str
    versions: str


@dataclass(frozen=True)
class Page:
    """All that the page shows; texts are escaped when it is rendered."""

    title: str
    overview: str
    notes: Sequence[str]
    tasks: Sequence[PageTask]
    methods: Sequence[str]
    trials: PageTable
    provenance: Sequence[PageProvenance]


def render_page(page: Page) -> str:
    """The HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("tppo_rl.tune").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return template.render({name: getattr(page, name) for name in Page.__dataclass_fields__}) + "\n"
