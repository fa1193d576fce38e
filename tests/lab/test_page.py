"""Blocks as Markdown and as a page: no text breaks out of its place."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

from tppo_rl.lab.page import Heading, Image, Table, Text, to_html, to_markdown

BLOCKS = [
    Heading("A <b> & c", 1),
    Text("`code<x>` of 3 < 4"),
    Table(["", "run | one"], [["a<i>", "0.5 ± 0.1"], ["b", "-"]]),
    Image("figure.png", 'says "yes"'),
]


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_shows_texts_as_they_are_and_holds_its_figures(tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(b"png")
    seen = Seen()
    seen.feed(to_html(BLOCKS, tmp_path))
    assert not {"b", "i", "x"} & set(seen.tags)
    assert seen.tags.count("tr") == 3
    assert seen.tags.count("td") == 4
    for text in ("A <b> & c", "code<x>", " of 3 < 4", "run | one", "a<i>", "0.5 ± 0.1", 'says "yes"'):
        assert text in seen.texts, text
    (image,) = seen.images
    assert image["src"] == f"data:image/png;base64,{base64.b64encode(b'png').decode()}"
    assert image["alt"] == 'says "yes"'


def test_markdown_tables_keep_their_columns() -> None:
    lines = to_markdown(BLOCKS).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table == ["|  | run / one |", "|---|---|", "| a<i> | 0.5 ± 0.1 |", "| b | - |"]
    assert '![says "yes"](figure.png)' in lines
    assert lines[0] == "# A <b> & c"
