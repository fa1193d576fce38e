"""`tppo-rl rollouts` on files as a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tppo_rl.base_models import resolve_model
from tppo_rl.cli import main
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.experiment.rollout_view import Kept, chosen, whole, without_what_all_share

MODEL = "tppo_rl/arithmetic-chain"


class Words:
    """A tokenizer of letters."""

    def decode(self, tokens: Any, **_: Any) -> str:
        return "".join(chr(97 + int(token)) for token in tokens)


def fragment(
    episode: int, *, tokens: list[int], reward: float = 0.0, correct: bool | None = None, end: str = ""
) -> Fragment:
    count = len(tokens)
    return Fragment(
        episode_id=episode,
        prompt_index=episode,
        env_runner=1,
        window_index=1,
        prompt_length=2,
        context=np.array([7, 8, 9], np.int32),
        context_sampled=np.array([0, 0, 1], np.uint8),
        context_rewards=np.zeros(3, np.float32),
        tokens=np.array(tokens, np.int32),
        sampled=np.ones(count, np.uint8),
        behavior_log_probs=np.log(np.linspace(0.05, 0.95, count)).astype(np.float32),
        versions=np.full(count, 3, np.int32),
        rewards=np.array([*[0.0] * (count - 1), reward], np.float32),
        terminated=end == "terminated",
        truncated=end == "truncated",
        correct=correct,
    )


FRAGMENTS = [
    fragment(1, tokens=[0, 1]),
    fragment(2, tokens=[2, 3, 4], reward=1.0, correct=True, end="terminated"),
    fragment(3, tokens=[5, 6, 7, 8], reward=0.25, correct=False, end="truncated"),
]
KEPT = [Kept(iteration, one) for iteration, one in zip((4, 5, 6), FRAGMENTS, strict=True)]


def episodes(**options: Any) -> list[int]:
    return [kept.fragment.episode_id for kept in chosen(iter(KEPT), Words().decode, **options)]


def test_what_is_chosen_and_in_which_order() -> None:
    assert episodes() == [3, 2, 1]
    assert episodes(sort="reward") == [2, 3, 1]
    assert episodes(sort="length", descending=False) == [1, 2, 3]
    # Versions are all 3: the later an iteration, the staler.
    assert episodes(sort="staleness") == [3, 2, 1]
    assert episodes(finished=True) == [3, 2]
    assert episodes(finished=False) == [1]
    assert episodes(correct=True) == [2]
    assert episodes(correct=False) == [3]
    # A text that ends in the context and goes on in the window.
    assert episodes(search="JCDE") == [2]
    assert (KEPT[1].length, KEPT[1].reward, KEPT[1].staleness) == (4, 1.0, 1.0)


def test_tokens_are_colored_by_their_probability() -> None:
    text = whole(KEPT[2], Words())
    assert text.plain == "iteration 6, episode 3, window 1: wrong, cut\nhijfghi\n"
    assert [str(span.style) for span in text.spans][-5:-1] == ["cyan", "red", "yellow", "default"]
    assert str(text.spans[-1].style) == "green"


def test_what_all_prompts_share_is_left_out() -> None:
    asked = ["system: be brief. user: 1+1? assistant:", "system: be brief. user: 1+12? assistant:"]
    assert without_what_all_share(asked) == ["1+1?", "1+12?"]
    assert without_what_all_share(["say a", "say b", "say a"]) == ["a", "b", "a"]
    assert without_what_all_share(["all the same", "all the same"]) == ["all the same", "all the same"]
    assert without_what_all_share([]) == []


def write_run(folder: Path) -> None:
    (folder / "rollouts").mkdir(parents=True)
    for kept in KEPT:
        table = table_from_fragments([kept.fragment])
        pq.write_table(table, folder / "rollouts" / f"iteration_{kept.iteration:06d}.parquet")


def test_the_command_shows_a_table_and_whole_windows(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(main, ["rollouts", str(tmp_path / "run"), "--model", MODEL, "--from", "5"])
    assert result.exit_code == 0, result.output
    assert "right" in result.output
    assert "wrong, cut" in result.output
    assert "open" not in result.output
    shown = runner.invoke(main, ["rollouts", str(tmp_path / "run"), "--model", MODEL, "--show", "--limit", "1"])
    assert "iteration 6, episode 3, window 1: wrong, cut" in shown.output
    assert "1 of 3 fragments; --limit N shows more" in shown.output
    assert "shows more" not in result.output


@pytest.mark.parametrize(("arguments", "message"), [([], "--model: "), (["--model", MODEL], "has no rollouts")])
def test_a_folder_without_a_run_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["rollouts", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert resolve_model(MODEL)
