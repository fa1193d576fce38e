"""The page of a report in a real browser: Chromium, where it is installed."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

import pytest
from browser import CHROMIUM, needs_browser
from synthetic_sweep import write_comparison

from tppo_rl.tune.report import write_report

pytestmark = [pytest.mark.integration, needs_browser]

PROBE = """<!doctype html><iframe id="page" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<p id="found">waiting</p>
<script>
document.getElementById("page").addEventListener("load", (event) => {{
  const seen = event.target.contentDocument;
  const images = [...seen.images];
  const sizes = [...seen.querySelectorAll("p, td, th, figcaption, li")].map((e) => parseFloat(getComputedStyle(e).fontSize));
  document.getElementById("found").textContent = [
    seen.documentElement.scrollWidth,
    images.filter((image) => image.complete && image.naturalWidth > 0).length,
    Math.min(...images.map((image) => image.getBoundingClientRect().width)),
    Math.min(...sizes),
    [...seen.querySelectorAll("td, th")].filter((cell) => cell.scrollWidth > cell.clientWidth + 1).length,
  ].join(" ");
}});
</script>"""


def chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiments = {
        f"{name}_of_two_numbers_{value}": {"env_config": {"task": name}, "boundary_value": value}
        for name in ("lcm", "gcd")
        for value in ("hold", "bootstrap", "tail_corrected")
    }
    return write_report([write_comparison(tmp_path_factory.mktemp("sweep"), experiments, [0.7, 0.8, 0.9])])


@pytest.mark.parametrize(("width", "least_figure"), [(390, 340), (1280, 340)])
def test_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, width: int, least_figure: int) -> None:
    text = page.read_text(encoding="utf-8")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=html.escape(text)), encoding="utf-8")
    found = re.search(r'<p id="found">([^<]*)</p>', chromium("--dump-dom", probe.as_uri()))
    assert found is not None
    scroll_width, loaded, narrowest_figure, smallest_letters, overlapping = map(float, found.group(1).split())
    assert scroll_width <= width
    assert loaded == text.count("<img ")
    assert narrowest_figure >= least_figure
    assert smallest_letters >= 13
    assert overlapping == 0, "texts of cells that lie on their neighbors"


def test_it_prints(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "report.pdf"
    chromium(f"--print-to-pdf={pdf}", page.as_uri())
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    figures = page.read_text(encoding="utf-8").count("<figure ")
    # Four figures a page, and a few pages of tables and text.
    assert figures / 6 <= pages <= figures / 4 + 8
