"""A critic that is trained on kept responses: what it is trained on, and what it is held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_fragment

from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment
from tppo_rl.lab.pretrain import explained_variance, finished_responses, pretrain, returns_along, split_by_problem
from tppo_rl.observability.batch_log import BatchLog


def keep(folder: Path, *batches: list[Fragment], left_out: tuple[int, ...] = (), **options: Any) -> None:
    log = BatchLog(folder, {"algorithm": "TPPO", "options": {"critic": "separate"} | options, "rllib": {}})
    for number, batch in enumerate(batches, 1):
        log.record(number, batch, left_out if number == len(batches) else (), 0)


def finished(episode: int, prompt: int = 0) -> Fragment:
    return make_fragment(episode_id=episode, prompt_index=prompt, tokens=[3, 4], versions=[5, 6], terminated=True)


def test_responses_that_have_ended_and_are_trained_are_taken(tmp_path: Path) -> None:
    keep(tmp_path, [finished(1), make_fragment(episode_id=2, tokens=[5])], [finished(3), finished(4)], left_out=(4,))
    found = finished_responses(tmp_path)
    assert [one.episode_id for one in found] == [1, 3]
    assert all(one.versions.max() <= 0 for one in found), "new learners are of version 0"


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"num_learners": 2},
        {"lr_warmup_updates": 3},
        {"critic_warmup_updates": 3},
        {"clip_low": 0.1},
        {"lambda_": 0.5},
    ],
    ids=str,
)
def test_an_option_that_pretraining_does_not_read_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    keep(tmp_path / "run", [finished(1)])
    with pytest.raises(
        OptionError, match=rf"^{next(iter(change))}=.*does not read it; what it follows are .*critic_lr"
    ):
        next(pretrain(tmp_path / "run", tmp_path / "out", changes=change, epochs=1, heldout=0.5))


def test_responses_to_one_problem_stay_together() -> None:
    responses = [finished(number, number // 3) for number in range(30)]
    trained, held = split_by_problem(responses, 0.2, seed=1)
    assert {one.prompt_index for one in trained}.isdisjoint({one.prompt_index for one in held})
    assert (len(trained), len(held)) == (24, 6)
    with pytest.raises(OptionError, match=r"--heldout=0\.2: there are 1 problems, of which 0"):
        split_by_problem(responses[:3], 0.2, seed=1)


def test_returns_leave_environment_text_out() -> None:
    response = make_fragment(
        context=[9, 1, 7], prompt_length=1, context_sampled=np.array([0, 1, 0], np.uint8),
        context_rewards=np.array([0, 0.5, 0], np.float32), tokens=[2, 3], rewards=[0.0, 1.0], terminated=True,
    )  # fmt: skip
    assert returns_along(response, 0.5).tolist() == [0.5 + 0.25, 0.5, 1.0]


def test_explained_variance_weighs_tokens_or_responses() -> None:
    returns = [np.array([1.0] * 9), np.array([0.0])]
    assert explained_variance(returns, returns) == (1.0, 1.0)
    # Wrong on the short response alone: one token of ten, one response of two.
    by_tokens, by_responses = explained_variance(returns, [np.ones(9), np.ones(1)])
    assert by_tokens == pytest.approx(0.0)
    assert by_responses == pytest.approx(0.0)
    half = [np.array([1.0] * 9), np.array([0.5])]
    assert explained_variance(returns, half)[0] == pytest.approx(0.75)
    assert explained_variance([np.ones(3)], [np.zeros(3)]) == (0.0, 0.0)


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"changes": {}, "epochs": 1, "heldout": 0.2}
    with pytest.raises(OptionError, match=r"has no batches; .*record_batches=True"):
        next(pretrain(tmp_path, tmp_path / "out", **arguments))
    keep(tmp_path, [make_fragment(tokens=[5])])
    with pytest.raises(OptionError, match="no response has ended in its batches"):
        next(pretrain(tmp_path, tmp_path / "out", **arguments))
    with pytest.raises(OptionError, match=r"--out=.*is in use"):
        next(pretrain(tmp_path, tmp_path, **arguments))
    keep(tmp_path, [finished(1, 1), finished(2, 2)])
    facts = json.loads((tmp_path / "batches" / "run.json").read_text(encoding="utf-8"))
    facts["options"]["critic"] = None
    (tmp_path / "batches" / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(OptionError, match="its algorithm has no critic"):
        next(pretrain(tmp_path, tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()
