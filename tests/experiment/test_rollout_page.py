"""The page of `tppo-rl rollouts --html` without a browser: its data, its escapes, its size."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers import make_fragment
from synthetic_rollouts import BYTES_FROM, HOSTILE, PieceTokenizer, ids_of, many_episodes, windows_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tppo_rl.base_models import resolve_model
from tppo_rl.cli import main
from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.core.recorded_windows import recorded_window, table_from_windows, windows_from_table
from tppo_rl.experiment.recorded_episodes import Episode, episodes_of, matching, read_episodes, thinned
from tppo_rl.experiment.rollout_page import LARGEST_FILE, page_of, write_page
from tppo_rl.experiment.rollout_view import Kept
from tppo_rl.experiment.token_pieces import pieces_of

MODEL = "tppo_rl/arithmetic-chain"


class Read(NamedTuple):
    """What a page's script reads."""

    header: dict[str, Any]
    columns: dict[str, np.ndarray]


def read(page: bytes) -> Read:
    (data,) = re.findall(rb'<script type="application/octet-stream" id="data">([^<]*)</script>', page)
    block = gzip.decompress(base64.b64decode(data, validate=True))
    length = int.from_bytes(block[:4], "little")
    header = json.loads(block[4 : 4 + length])
    columns = {
        name: np.frombuffer(block, np.dtype(dtype).newbyteorder("<"), count, 4 + length + offset)
        for name, (dtype, offset, count) in header["arrays"].items()
    }
    return Read(header, columns)


def page_with(episodes: list[Episode], title: str = "run") -> bytes:
    return page_of(episodes, PieceTokenizer(), title=title, recorded=len(episodes))


def test_numbers_of_the_page_are_those_that_were_recorded() -> None:
    windows = windows_of(7, [20, 21, 22, 23, 24], prompt=[30, 31], prompt_index=3, iteration=4, length=2, reward=0.5)
    header, columns = read(page_with(episodes_of((), windows)))
    log_probs = np.concatenate([window.fragment.behavior_log_probs for window in windows])
    np.testing.assert_allclose(columns["token_log_prob"] / -header["log_prob_steps"], log_probs, atol=1 / 4000)
    for name in ("values", "advantages"):
        known = np.concatenate([getattr(window.recorded, name) for window in windows])
        found = columns[f"token_{name}"] * columns[f"{name}_scale"][0]
        np.testing.assert_allclose(found, known, atol=np.abs(known).max() / 60_000)
    assert [header["pieces"][place] for place in columns["piece"]] == [
        PieceTokenizer().decode([token]) for token in (20, 21, 22, 23, 24)
    ]
    assert columns["piece_id"][columns["piece"]].tolist() == [20, 21, 22, 23, 24]
    assert columns["window_start"].tolist() == [0, 2, 4]
    assert columns["window_stop"].tolist() == [2, 4, 5]
    assert columns["window_iteration"].tolist() == [4, 5, 6]
    np.testing.assert_allclose(
        columns["window_boundary_value"], [window.recorded.boundary_value for window in windows], rtol=1e-6
    )
    assert (columns["reward_at"].tolist(), columns["reward"].tolist()) == ([4], [0.5])
    assert (columns["episode_id"].tolist(), columns["episode_group"].tolist()) == ([7], [3])
    assert (columns["episode_correct"].tolist(), columns["episode_end"].tolist()) == ([1], [1])
    assert header["has"] == ["values", "advantages"]


def test_what_was_not_recorded_is_not_offered() -> None:
    windows = windows_of(7, [20, 21], prompt=[30], prompt_index=0, iteration=1, length=9, with_values=False)
    header, columns = read(page_with(episodes_of((), windows)))
    assert header["has"] == []
    assert not {"token_values", "token_advantages"} & set(columns)
    assert np.isnan(columns["window_boundary_value"]).all()


def test_no_text_of_a_model_stands_in_the_page() -> None:
    windows = windows_of(1, range(len(HOSTILE)), prompt=range(len(HOSTILE)), prompt_index=0, iteration=1, length=3)
    page = page_with(episodes_of((), windows), title="<script>window.pwned=9</script>&\"'").decode()
    assert "pwned=" not in page.replace("&lt;script&gt;window.pwned=9&lt;/script&gt;", "")
    assert page.count("<script") == page.count("</script>") == 2
    assert read(page.encode()).header["pieces"] == list(HOSTILE)
    assert read(page.encode()).header["prompts"] == ["".join(HOSTILE)]


def test_the_policy_lets_its_own_script_and_style_run_and_nothing_else() -> None:
    page = page_with(many_episodes(3, mean_length=5)).decode()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert not re.search(r"""(src|href|action)\s*=\s*["']|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page)
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(.(on|style)", page
    )


def test_two_thousand_episodes_and_a_million_tokens_fit(tmp_path: Path) -> None:
    episodes = many_episodes(2000, mean_length=490)
    assert sum(len(episode.tokens) for episode in episodes) > 950_000
    file = tmp_path / "page.html"
    assert write_page(file, episodes, PieceTokenizer(), title="run", most=2000) == 2000
    assert file.stat().st_size <= LARGEST_FILE / 2
    assert read(file.read_bytes()).columns["token_start"][-1] == sum(len(episode.tokens) for episode in episodes)


def test_a_page_that_is_too_large_holds_fewer_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = many_episodes(80, mean_length=200, longest=300)
    file = tmp_path / "page.html"
    write_page(file, episodes, PieceTokenizer(), title="run", most=2000)
    largest = int(file.stat().st_size * 0.8)
    monkeypatch.setattr("tppo_rl.experiment.rollout_page.LARGEST_FILE", largest)
    shown = write_page(file, episodes, PieceTokenizer(), title="run", most=2000)
    assert file.stat().st_size <= largest
    assert 20 < shown < 80
    header, columns = read(file.read_bytes())
    assert header["facts"]["recorded"] == 80
    assert len(columns["episode_id"]) == shown


def test_a_part_of_the_episodes_keeps_prompts_whole() -> None:
    episodes = many_episodes(400, mean_length=5)
    answers = {
        prompt: sum(one.prompt.tobytes() == prompt for one in episodes)
        for prompt in {e.prompt.tobytes() for e in episodes}
    }
    some = thinned(episodes, 120)
    assert len(some) == 120
    taken = {prompt: sum(one.prompt.tobytes() == prompt for one in some) for prompt in answers}
    partly = [prompt for prompt in answers if 0 < taken[prompt] < answers[prompt]]
    assert len(partly) <= 1
    assert some == [one for one in episodes if one in some], "in the same order"
    few_tokens = thinned(episodes, 400, 500)
    assert 400 <= sum(len(one.tokens) for one in few_tokens) <= 560


def test_prompts_with_recorded_values_go_first() -> None:
    sampled = [kept(iteration, 0, 3, episode_id=10 + iteration, context=[iteration, 2]) for iteration in range(1, 9)]
    whole = windows_of(3, [20, 21], prompt=[5, 2], prompt_index=0, iteration=2, length=9)
    some = thinned(episodes_of(sampled, whole), 2)
    assert {one.last.episode_id for one in some} == {3, 15}


def kept(iteration: int, start: int, stop: int, **fields: Any) -> Kept:
    """A part of the response 5, 6, 7, … to the prompt 1, 2."""
    response = list(range(5, 5 + stop))
    given = {"context": [1, 2, *response[:start]], "prompt_length": 2, "tokens": response[start:]}
    return Kept(iteration, make_fragment(**(given | fields)))


def test_fragments_of_one_episode_come_together() -> None:
    (episode,) = episodes_of(
        [kept(4, 6, 9, window_index=3, terminated=True), kept(2, 0, 3), kept(3, 3, 5, window_index=1)]
    )
    assert episode.tokens.tolist() == [*range(5, 14)]
    assert [(window.recorded.start, window.stop, window.iteration) for window in episode.windows] == [
        (0, 3, 2),
        (3, 5, 3),
        (6, 9, 4),
    ]
    assert episode.prompt.tolist() == [1, 2]
    assert episode.last.terminated
    assert episode.iteration == 4
    # Versions are all 0: ages of 1, 2 and 3 updates, by tokens.
    assert episode.staleness == pytest.approx((3 * 1 + 2 * 2 + 3 * 3) / 8)


def test_a_number_that_was_given_twice_is_two_episodes() -> None:
    other = kept(5, 0, 3, tokens=[40, 41])
    assert [one.tokens.tolist() for one in episodes_of([kept(2, 0, 3), other])] == [[5, 6, 7], [40, 41]]


def test_windows_of_a_recorded_episode_go_before_the_sample() -> None:
    whole = windows_of(0, [5, 6, 7, 8], prompt=[1, 2], prompt_index=0, iteration=2, length=3)
    (episode,) = episodes_of([kept(3, 3, 4, window_index=1), kept(2, 0, 3)], whole)
    assert episode.windows == whole
    assert episode.tokens.tolist() == [5, 6, 7, 8]


def test_recorded_windows_are_as_they_were_written(tmp_path: Path) -> None:
    fragment = make_fragment(context=[1, 2, 9], prompt_length=2, window_index=1, sampled=[1, 0, 1])
    windows = [
        recorded_window(fragment, values=[0.25, 0.5], advantages=[-1.0, 2.0], boundary_value=0.75),
        recorded_window(make_fragment(), values=None, advantages=None, boundary_value=None),
    ]
    pq.write_table(table_from_windows(windows), tmp_path / "file.parquet")
    second, first = windows_from_table(pq.read_table(tmp_path / "file.parquet"))
    assert (second.start, second.fragment.context.tolist(), second.boundary_value) == (1, [], 0.75)
    np.testing.assert_array_equal(second.values, np.array([0.25, np.nan, 0.5], np.float32))
    np.testing.assert_array_equal(second.advantages, np.array([-1.0, np.nan, 2.0], np.float32))
    assert (first.start, first.fragment.context.tolist(), first.values, first.boundary_value) == (0, [1, 2], None, None)
    with pytest.raises(ValueError, match="not a table of recorded windows"):
        windows_from_table(table_from_fragments([fragment]))


def test_conditions_of_the_command_line() -> None:
    episodes = episodes_of([kept(2, 0, 3), kept(3, 0, 3, episode_id=1, terminated=True, correct=True)])

    def text(tokens: Any) -> str:
        return " ".join(map(str, tokens))

    assert [one.last.episode_id for one in matching(episodes, text, finished=True)] == [1]
    assert [one.last.episode_id for one in matching(episodes, text, correct=True)] == [1]
    assert [one.last.episode_id for one in matching(episodes, text, finished=False)] == [0]
    assert len(matching(episodes, text, search="2 5 6")) == 2
    assert not matching(episodes, text, search="6 5")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(letters)} | {"<end>": 256}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def test_bytes_that_are_no_text_alone_are_given_as_bytes() -> None:
    tokenizer = byte_level_tokenizer()
    tokens = [*tokenizer.encode("ü €", add_special_tokens=False), tokenizer.eos_token_id]
    pieces = pieces_of(tokenizer, tokens)
    raw = b"".join(pieces.parts.get(place, text.encode()) for place, text in enumerate(pieces.texts))
    assert raw.decode() == "ü €<end>"
    assert sorted(pieces.parts) == [0, 1, 3, 4, 5]
    assert pieces.special == {6}
    fallback = pieces_of(PieceTokenizer(), [*ids_of("é"), 1, BYTES_FROM + 65])
    assert fallback.parts == {0: b"\xc3", 1: b"\xa9"}
    assert fallback.texts == ["", "", HOSTILE[1], "A"]


def test_pieces_of_a_shipped_tokenizer_are_its_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL))
    tokens = tokenizer.encode("12 + 7 * 3 = ?", add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, tokens).texts) == tokenizer.decode(tokens)


def test_an_episode_that_began_before_the_chosen_iterations_is_whole(tmp_path: Path) -> None:
    windows = windows_of(9, [8, 9, 10], prompt=[6], prompt_index=2, iteration=3, length=2)
    (tmp_path / "episodes").mkdir()
    for window in windows:
        table = table_from_windows([window.recorded])
        pq.write_table(table, tmp_path / "episodes" / f"iteration_{window.iteration:06d}.parquet")
    (episode,) = read_episodes(tmp_path, 4, None)
    assert (episode.tokens.tolist(), episode.iteration) == ([8, 9, 10], 4)
    (beginning,) = read_episodes(tmp_path, 1, 3)
    assert beginning.tokens.tolist() == [8, 9]
    assert read_episodes(tmp_path, 5, None) == []


def test_answers_to_a_heldout_prompt_stand_together_over_the_training_and_apart_from_it(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    trained = windows_of(0, [8, 9, 10], prompt=[6], prompt_index=0, iteration=3, length=9)
    files = {"iteration_000003": trained}
    for updates in (0, 2):
        files[f"heldout_{updates:06d}"] = windows_of(
            0, [11, 12 + updates], prompt=[7], prompt_index=0, iteration=1, length=9, with_values=False
        )
    for name, windows in files.items():
        table = table_from_windows([window.recorded for window in windows])
        pq.write_table(table, tmp_path / "episodes" / f"{name}.parquet")
    episodes = read_episodes(tmp_path, 1, None)
    assert [(one.heldout, one.iteration, one.tokens.tolist()) for one in episodes] == [
        (True, 0, [11, 12]),
        (True, 2, [11, 14]),
        (False, 3, [8, 9, 10]),
    ]
    assert [one.iteration for one in read_episodes(tmp_path, 2, 2)] == [2]
    _, columns = read(page_with(episodes))
    assert columns["episode_is_heldout"].tolist() == [1, 1, 0]
    assert len(set(columns["episode_group"])) == 3
    assert columns["episode_prompt"][0] == columns["episode_prompt"][1] != columns["episode_prompt"][2]
    assert np.isnan(columns["episode_staleness"][:2]).all()
    assert columns["token_version"][:4].tolist() == [-1] * 4
    assert len([one for one in thinned(episodes, 2) if one.is_whole]) == 2


def write_run(folder: Path) -> None:
    for name, table in (
        ("rollouts", table_from_fragments([kept(1, 0, 3, episode_id=5).fragment])),
        (
            "episodes",
            table_from_windows(
                [window.recorded for window in windows_of(9, [8, 9], prompt=[6], prompt_index=2, iteration=1, length=9)]
            ),
        ),
    ):
        (folder / name).mkdir(parents=True)
        pq.write_table(table, folder / name / "iteration_000001.parquet")


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    file = tmp_path / "out" / "page.html"
    arguments = ["rollouts", str(tmp_path / "run"), "--model", MODEL, "--html", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "2 of 2 episodes" in result.output
    assert read(file.read_bytes()).columns["episode_id"].tolist() == [5, 9]
    assert "<h1>run</h1>" in file.read_text(encoding="utf-8")
    limited = CliRunner().invoke(main, [*arguments, "--finished", "--limit", "1"])
    assert "1 of 1 episodes" in limited.output


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--show"], "drop --show"), (["--sort", "length"], "drop --show"), (["--search", "no such words"], "no episode")],
)
def test_options_that_would_be_ignored_and_empty_pages_are_refused(
    more: list[str], message: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run")
    file = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["rollouts", str(tmp_path / "run"), "--model", MODEL, "--html", str(file), *more])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not file.exists()
