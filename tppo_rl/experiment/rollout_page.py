"""`tppo-rl rollouts --html`: one page with everything in it, that asks nothing of the network.

Text that a model wrote is data from end to end: it stands compressed in the page, scripts put it in as text alone, and the
page's policy allows no script but its own, by hash.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.page_data import pack
from tppo_rl.experiment.recorded_episodes import Episode, matching, read_episodes, thinned
from tppo_rl.experiment.rollout_view import tokenizer_of

LARGEST_FILE = 30_000_000
"""Bytes of a page; with more episodes than that it shows a part of them."""
_SCRIPTS = ("data.js", "tokens.js", "response.js", "curve.js", "compare.js", "list.js", "main.js")
_FOLDER = resources.files("tppo_rl.experiment") / "page"


def write_page_of_run(
    file: Path,
    run: Path,
    model: str | None,
    *,
    first: int,
    last: int | None,
    most: int,
    finished: bool | None = None,
    correct: bool | None = None,
    search: str | None = None,
) -> tuple[int, int]:
    """Writes the page of a run; returns the number of its episodes and of those there were.

    Args:
        file: Is overwritten.
        run: Folder of the run.
        model: Whose tokenizer to take; None: that of the newest checkpoint.
        first: First iteration.
        last: Last iteration; None: the newest.
        most: Most episodes.
        finished: See `matching`, as the rest.
    """
    episodes = read_episodes(run, first, last)
    tokenizer = tokenizer_of(run, model)

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    found = matching(episodes, text, finished=finished, correct=correct, search=search)
    return write_page(file, found, tokenizer, title=run.resolve().name, most=most), len(found)


def write_page(file: Path, episodes: Sequence[Episode], tokenizer: Any, *, title: str, most: int) -> int:
    """Writes the page and returns the number of episodes that it holds.

    Args:
        file: Is overwritten.
        episodes: From `episodes_of`.
        tokenizer: Of the run's model.
        title: Name of the run.
        most: Most episodes.

    Raises:
        OptionError: there are none.
    """
    if not episodes:
        raise OptionError("--html: no episode meets the conditions; drop some of --from, --to, --right, --search")
    shown = thinned(episodes, most)
    content = page_of(shown, tokenizer, title=title, recorded=len(episodes))
    while len(content) > LARGEST_FILE:
        tokens = sum(len(episode.tokens) for episode in shown)
        fraction = 0.95 * LARGEST_FILE / len(content)
        fewer = thinned(shown, max(1, min(most, len(shown) - 1)), max(1, int(tokens * fraction)))
        if not fewer:
            raise OptionError(f"--html: one episode alone is larger than {LARGEST_FILE / 1e6:.0f} MB")
        shown = fewer
        content = page_of(shown, tokenizer, title=title, recorded=len(episodes))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OptionError(f"--html={str(file)!r}: {file.parent} is a file; name a folder") from None
    file.write_bytes(content)
    return len(shown)


def page_of(episodes: Sequence[Episode], tokenizer: Any, *, title: str, recorded: int) -> bytes:
    """Returns the page's HTML.

    Args:
        episodes: What it shows.
        tokenizer: Of the run's model.
        title: Name of the run.
        recorded: Episodes that there were to choose from.
    """
    block = pack(episodes, tokenizer, {"title": title, "recorded": recorded})
    data = base64.b64encode(gzip.compress(block, 6, mtime=0)).decode()
    script = '"use strict";\n(() => {\n' + "\n".join(map(_source, _SCRIPTS)) + "\n})();\n"
    style = _source("page.css")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(_source("page.html")).render(
        title=title,
        policy="; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(script)}",
                f"style-src {_hash(style)}",
                "base-uri 'none'",
                "form-action 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        ),
        script=Markup(script),
        style=Markup(style),
        data=data,
    )
    return page.encode()


def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
