"""The page of `tppo-rl rollouts --html` in Chromium: 2,000 episodes with a million tokens, hostile texts among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, needs_browser, opened
from synthetic_rollouts import HOSTILE, WORDS, PieceTokenizer, ids_of, many_episodes, windows_of

from tppo_rl.experiment.recorded_episodes import Episode, episodes_of
from tppo_rl.experiment.rollout_page import write_page

pytestmark = [pytest.mark.integration, needs_browser]
LONGEST = 8000
HOSTILE_EPISODE = 900_000
TEXT_EPISODE = 900_001
SEARCHED = PieceTokenizer().decode([3 * len(WORDS) + WORDS.index("therefore")]).strip()
LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => list.getEntries().forEach((one) => window.longTasks.push(one.duration)))
  .observe({ type: "longtask", buffered: true });
"""
SHOWN = "document.querySelector('#panel .response') && document.querySelectorAll('#panel .t').length"


def special_episodes() -> list[Episode]:
    """One whose prompt and response are hostile texts, and one with bytes, alone and together."""
    hostile = [*range(len(HOSTILE))] * 3
    texts = [*ids_of("aé€"), ids_of("é")[0], WORDS.index("answer"), *ids_of("😀")]
    windows = windows_of(
        HOSTILE_EPISODE, hostile, prompt=hostile, prompt_index=900_000, iteration=500, length=5, correct=None
    )
    windows += windows_of(
        TEXT_EPISODE, texts, prompt=[40], prompt_index=900_001, iteration=500, length=99, correct=False
    )
    return episodes_of((), windows)


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [*many_episodes(1998, mean_length=490, longest=LONGEST), *special_episodes()]


@pytest.fixture(scope="module")
def file(episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "rollouts.html"
    assert (
        write_page(file, episodes, PieceTokenizer(), title="</title><script>window.pwned=8</script>", most=2000) == 2000
    )
    return file


@pytest.fixture(scope="module")
def page(file: Path) -> Iterator[Page]:
    with opened() as page:
        page.resize(1280, 800)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=LONG_TASKS)
        page.goto(file.as_uri())
        page.until("document.documentElement.dataset.ready")
        yield page


@pytest.fixture(autouse=True)
def fresh(page: Page) -> None:
    """The list without conditions, nothing open, on a wide screen."""
    page.resize(1280, 800)
    page.js("location.hash = ''; document.getElementById('clear').click()")
    page.until("document.getElementById('count').textContent.startsWith('2,000 of')")
    page.until("!document.body.classList.contains('reading')")


@pytest.fixture(scope="module")
def show(page: Page, episodes: list[Episode]) -> Callable[..., None]:
    """Opens an episode by its number and waits until all of it is there."""
    places = {episode.last.episode_id: place for place, episode in enumerate(episodes)}

    def show(number: int, tab: str = "response") -> None:
        place = places[number]
        page.js(f"location.hash = '#{place}/{tab}'")
        if tab == "response":
            page.until(f"({SHOWN}) === {len(episodes[place].tokens)}")
        else:
            page.until("document.querySelector('#panel .card')")

    return show


def set_to(page: Page, name: str, value: Any, event: str = "change") -> None:
    page.js(
        f"{{ const e = document.getElementById({name!r}); e.value = {value!r}; e.dispatchEvent(new Event({event!r})); }}"
    )


def count(page: Page, expected: int) -> None:
    page.until(f"document.getElementById('count').textContent === '{expected:,} of 2,000 episodes'")


def texts(page: Page, selector: str) -> list[str]:
    return list(page.js(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)"))


def test_it_opens_and_asks_nothing_of_the_network(page: Page, file: Path, record_property: Any) -> None:
    assert page.js("document.documentElement.dataset.ready") == "yes"
    assert "2,000 kept episodes" in page.js("document.getElementById('facts').textContent")
    record_property("longest_task_ms", page.js("Math.max(0, ...window.longTasks)"))
    assert {request["request"]["url"] for request in page.of("Network.requestWillBeSent")} == {file.as_uri()}
    assert not page.of("Runtime.exceptionThrown")
    assert not page.of("Log.entryAdded"), "what the policy blocks is told here"


def test_nothing_that_a_model_wrote_runs(page: Page, show: Callable[..., None]) -> None:
    shown = [text for text in HOSTILE if text.isprintable()]
    for tab in ("response", "group", "training"):
        show(HOSTILE_EPISODE, tab)
        tokens = texts(page, "#panel .t")
        assert set(shown) <= set(tokens)
        assert "⟨2028⟩⟨2029⟩⟨202E⟩⟨0000⟩" in tokens
        assert all(text in texts(page, "#panel .prompt .text")[0] for text in shown)
    set_to(page, "search", HOSTILE[1], "input")
    page.until("!document.getElementById('count').textContent.startsWith('2,000 of')")
    assert any(text in row for text in shown for row in texts(page, ".episode .name"))
    assert page.js("document.querySelectorAll('script').length") == 1
    assert page.js("document.querySelectorAll('img, svg[onload], iframe, object, a, [onerror], [onload]').length") == 0
    assert page.js("document.title").startswith("</title><script>window.pwned=8</script>")
    assert page.js("typeof window.pwned") == "undefined"


def test_the_policy_stops_what_would_put_in_html_or_ask_a_server(page: Page) -> None:
    blocked = page.js("""(async () => {
        const found = [];
        try { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.pwned=1'>"); found.push("html"); } catch {}
        const script = document.createElement("script");
        try { script.text = "window.pwned = 2"; document.body.append(script); } catch {}
        try { await fetch("http://127.0.0.1:9/"); found.push("fetch"); } catch {}
        script.remove();
        return found.join() + typeof window.pwned;
    })()""")
    assert blocked == "undefined"
    assert any("127.0.0.1" in entry["entry"]["text"] for entry in page.of("Log.entryAdded"))


def test_conditions_and_searches_find_what_they_should(page: Page, episodes: list[Episode]) -> None:
    right = [episode for episode in episodes if episode.last.correct]
    set_to(page, "outcome", "right")
    count(page, len(right))
    set_to(page, "from", "20", "input")
    set_to(page, "to", "40", "input")
    between = [episode for episode in right if 20 <= episode.iteration <= 40]
    count(page, len(between))
    set_to(page, "search", SEARCHED.upper(), "input")
    tokenizer = PieceTokenizer()
    found = [one for one in between if SEARCHED in tokenizer.decode([*one.tokens]).casefold()]
    assert 0 < len(found) < len(between)
    count(page, len(found))
    set_to(page, "search", "no such words", "input")
    count(page, 0)
    assert page.js("document.getElementById('none').checkVisibility()")
    page.js("document.getElementById('clear').click()")
    set_to(page, "answers", "again")
    groups: dict[bytes, set[int]] = {}
    for episode in episodes:
        groups.setdefault(episode.prompt.tobytes(), set()).add(episode.last.prompt_index)
    count(page, sum(len(groups[episode.prompt.tobytes()]) > 1 for episode in episodes))


def test_the_list_holds_rows_only_where_one_looks_and_keeps_its_order(page: Page, episodes: list[Episode]) -> None:
    set_to(page, "sort", "length")
    by_length = sorted(episodes, key=lambda one: -one.length)
    lengths = [tokens_of(text) for text in sorted_rows(page)]
    assert lengths[:10] == [one.length for one in by_length[:10]]
    page.js("document.getElementById('list').scrollTop = 1e9")
    page.until(f"document.querySelector('#row-{len(episodes) - 1}')")
    rows = sorted_rows(page)
    assert tokens_of(rows[-1]) == by_length[-1].length
    assert len(rows) < 40
    assert page.js("document.querySelectorAll('.episode').length") < 60
    page.js("document.getElementById('direction').click()")
    page.until("document.getElementById('list').scrollTop === 0")
    assert tokens_of(sorted_rows(page)[0]) == by_length[-1].length
    page.js("document.getElementById('direction').click()")
    set_to(page, "sort", "iteration")


def tokens_of(figures: str) -> int:
    return int(figures.rpartition(" · ")[2].partition(" ")[0].replace(",", ""))


def sorted_rows(page: Page) -> list[str]:
    """Figures of the rows in sight, from above."""
    return list(
        page.js(
            "[...document.querySelectorAll('.episode:not([hidden])')].sort((a, b) => a.place - b.place)"
            ".map((e) => e.querySelector('.meta').textContent)"
        )
    )


def test_a_long_response_is_whole_with_windows_shades_and_values(
    page: Page, show: Callable[..., None], episodes: list[Episode], record_property: Any
) -> None:
    episode = next(one for one in episodes if len(one.tokens) == LONGEST)
    page.js("window.longTasks.length = 0")
    show(episode.last.episode_id)
    words = [PieceTokenizer().decode([token]) for token in episode.tokens]
    plain = [place for place, word in enumerate(words) if word.replace("\n", "").isprintable()]
    tokens = texts(page, "#panel .t")
    assert [tokens[place] for place in plain] == [words[place] for place in plain]
    headings = texts(page, "#panel .window")
    assert len(headings) == len(episode.windows) == 16
    for heading, window in zip(headings, episode.windows, strict=True):
        assert f"iteration {window.iteration}, tokens {window.recorded.start + 1} to {window.stop}" in heading
        assert f"boundary value {window.recorded.boundary_value:.3f}" in heading
    advantages = np.concatenate([window.recorded.advantages for window in episode.windows])
    largest = int(np.nanargmax(np.abs(advantages)))
    shades = page.js("[...document.querySelectorAll('#panel .t')].map((e) => e.shade)")
    assert shades[largest] == ("up8" if advantages[largest] > 0 else "down8")
    assert all(
        shade.startswith("up" if advantages[place] > 0 else "down") for place, shade in enumerate(shades) if shade
    )
    log_probs = np.concatenate([window.fragment.behavior_log_probs for window in episode.windows])
    set_to(page, "shade", "probability")
    unlikely = int(np.argmin(log_probs))
    page.until(f"document.querySelectorAll('#panel .t')[{unlikely}].classList.contains('much8')")
    assert page.js("document.querySelectorAll('#panel .t.up8, #panel .t.down8').length") == 0
    colors = page.js("""(() => {
        const canvas = document.querySelector("canvas.curve");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    })()""")
    assert colors > 20, "a curve is drawn"
    page.js("document.activeElement.blur()")
    page.press("]")
    page.press("ArrowRight")
    values = np.concatenate([window.recorded.values for window in episode.windows])
    second = episode.windows[1].recorded.start + 1
    told = texts(page, "#token")[0]
    assert f"token {second + 1} of {LONGEST}" in told
    assert f"value {values[second]:.3f}" in told
    assert f"advantage {advantages[second]:.3f}" in told
    assert f"probability {np.exp(log_probs[second]):.3f}" in told
    set_to(page, "shade", "advantages")
    record_property("longest_task_ms", page.js("Math.max(0, ...window.longTasks)"))


def test_bytes_are_text_together_and_bytes_alone(page: Page, show: Callable[..., None]) -> None:
    show(TEXT_EPISODE)
    assert texts(page, "#panel .t") == ["a", "", "é", "", "", "€", "", "answer", "", "", "", "😀"]
    assert page.js("document.querySelector('#panel .t.broken').dataset.bytes") == "C3"
    assert page.js("document.querySelectorAll('#panel .t.part').length") == 6


def test_groups_stand_side_by_side_and_answers_in_the_order_of_training(
    page: Page, show: Callable[..., None], episodes: list[Episode]
) -> None:
    chosen = episodes[100]
    show(chosen.last.episode_id, "group")
    group = [one for one in episodes if one.last.prompt_index == chosen.last.prompt_index]
    page.until(f"document.querySelectorAll('#panel .card').length === {len(group)}")
    same = sorted(one.iteration for one in episodes if one.prompt.tobytes() == chosen.prompt.tobytes())
    assert texts(page, "#tabs button")[1:] == [f"Group ({len(group)})", f"Over training ({len(same)})"]
    lefts = page.js("[...document.querySelectorAll('#panel .card')].map((e) => e.getBoundingClientRect().left)")
    assert lefts[1] > lefts[0]
    show(chosen.last.episode_id, "training")
    page.until(f"document.querySelectorAll('#panel .card').length === {min(24, len(same))}")
    heads = texts(page, "#panel .card header")
    assert [int(head.split("iteration ")[1].split(" ")[0]) for head in heads] == same[:24]
    assert page.js("document.querySelectorAll('#panel .history circle').length") == 2 * len(same)
    longest = page.js(
        "[...document.querySelectorAll('#panel .card')].findIndex((e) => e.querySelector('.text button'))"
    )
    card = f"document.querySelectorAll('#panel .card')[{longest}]"
    assert page.js(f"{card}.querySelectorAll('.t').length") == 400
    size = int(heads[longest].split(" · ")[2].split(" ")[0])
    assert page.js(f"{card}.querySelector('.text button').textContent") == f"{size - 400:,} more tokens"
    page.js(f"{card}.querySelector('.text button').click()")
    assert page.js(f"{card}.querySelectorAll('.t').length") == min(size, 800)
    page.js("document.querySelector('#panel .card header button').click()")
    page.until("document.querySelector('#panel .response')")


def test_searched_words_are_marked_in_the_response(page: Page, episodes: list[Episode]) -> None:
    set_to(page, "search", SEARCHED, "input")
    tokenizer = PieceTokenizer()
    count(page, sum(SEARCHED in tokenizer.decode([*one.tokens]).casefold() for one in episodes))
    page.js("document.querySelector('.episode:not([hidden])').click()")
    page.until("document.querySelector('#panel .hits button')")
    assert all(text.strip() == SEARCHED for text in texts(page, "#panel .t.hit"))
    assert texts(page, "#panel .hits button")[0].startswith("Hit 1 of")


def test_keys_walk_over_the_list_and_back(page: Page) -> None:
    page.js("document.getElementById('list').focus()")
    for key in ("Home", "ArrowDown", "j"):
        page.press(key)
    assert page.js("document.querySelector('.episode.chosen').id") == "row-2"
    page.press("Enter")
    page.until("document.querySelector('#panel .response')")
    page.press("Escape")
    page.until("document.getElementById('nothing').checkVisibility()")
    page.press("/")
    assert page.js("document.activeElement.id") == "search"


def test_on_a_phone_nothing_is_wider_than_the_screen(
    page: Page, show: Callable[..., None], episodes: list[Episode]
) -> None:
    page.resize(390, 844)
    inside = "document.documentElement.scrollWidth <= 390 && document.getElementById('detail').scrollWidth <= 390"
    assert page.js(inside)
    assert page.js("document.getElementById('list').getBoundingClientRect().width") == 390
    page.js("document.querySelector('.episode:not([hidden])').click()")
    page.until("document.querySelector('#panel .response')")
    assert not page.js("document.getElementById('list').checkVisibility()")
    for number in (HOSTILE_EPISODE, episodes[100].last.episode_id):
        for tab in ("response", "group", "training"):
            show(number, tab)
            assert page.js(inside), (number, tab)
    page.js("document.getElementById('back').click()")
    page.until("document.getElementById('list').checkVisibility()")


def test_light_and_dark(page: Page) -> None:
    colors = []
    for _ in range(2):
        page.js("document.getElementById('theme').click()")
        colors.append(page.js("getComputedStyle(document.body).backgroundColor"))
    assert sorted(colors) == ["rgb(22, 25, 29)", "rgb(255, 255, 255)"]


def test_without_values_none_are_offered(tmp_path: Path) -> None:
    file = tmp_path / "plain.html"
    write_page(
        file, many_episodes(3, mean_length=9, longest=9, with_values=False), PieceTokenizer(), title="plain", most=9
    )
    with opened(f"{file.as_uri()}#0/response") as page:
        page.until("document.querySelector('#curve-of')")
        assert texts(page, "#shade option") == ["nothing", "probability", "staleness"]
        assert texts(page, "#curve-of option") == ["probability", "staleness"]
        assert "no values were recorded" in texts(page, ".curvebox .note")[0]
        assert not texts(page, "#panel .boundary")
        assert not page.js("document.getElementById('estimated').checkVisibility()")


def test_a_response_without_values_shows_probabilities_beside_those_that_have_them(tmp_path: Path) -> None:
    file = tmp_path / "some.html"
    plain = many_episodes(3, mean_length=9, longest=9, with_values=False)
    windows = windows_of(70, [20, 21], prompt=[30], prompt_index=9, iteration=1, length=9)
    write_page(file, [*plain, *episodes_of((), windows)], PieceTokenizer(), title="some", most=9)
    with opened(f"{file.as_uri()}#3/response") as page:
        page.until("document.querySelector('#curve-of')")
        chosen = "['shade', 'curve-of'].map((id) => document.getElementById(id).value).join()"
        assert page.js(chosen) == "advantages,values"
        page.js("location.hash = '#0/response'")
        page.until("document.querySelector('#curve-of').options.length === 2")
        assert page.js(chosen) == "probability,probability"
        page.js("document.getElementById('estimated').click()")
        page.until("document.getElementById('count').textContent === '1 of 4 episodes'")
