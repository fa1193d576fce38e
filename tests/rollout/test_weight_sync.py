"""The proof of weights, where env-runners do not answer or answer with an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.weight_proof import LONGEST_PROBE, SHORTEST_PROBE, WeightProof, probe_tokens
from tppo_rl.rollout.weight_sync import WeightSync

PROBE = list(range(32))
TRUE = np.linspace(-3.0, -0.1, 31, dtype=np.float32)


class Answering:
    """An env-runner group whose members answer the probe with what they are told to; None is one that was lost meanwhile."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.local_env_runner = None

    def healthy_env_runner_ids(self) -> list[int]:
        return list(range(1, len(self.answers) + 1))

    def foreach_env_runner(self, name: str, **arguments: Any) -> list[Any]:
        return [answer for answer in self.answers if answer is not None]

    def fetch_ready_async_reqs(self, **arguments: Any) -> list[Any]:
        return []


def sync_with(*answers: Any) -> WeightSync:
    trainer = SimpleNamespace(ask=lambda score: [[TRUE]])
    return WeightSync(trainer, Answering(*answers), proof=WeightProof(exact=True), probe=PROBE)


def test_the_largest_difference_counts() -> None:
    sync = sync_with(TRUE, TRUE + 5e-5)
    assert sync.verify() == pytest.approx(5e-5, rel=0.01)
    with pytest.raises(RuntimeError, match=r"differ by 2\.00e-04 nats.*over 31 tokens"):
        sync_with(TRUE, TRUE - 2e-4).verify()
    with pytest.raises(RuntimeError, match="differ by nan"):
        sync_with(TRUE * np.nan).verify()


def test_the_error_of_an_engine_is_raised() -> None:
    with pytest.raises(ValueError, match="no room for keys and values"):
        sync_with(TRUE, ValueError("no room for keys and values")).verify()


def test_the_proof_goes_on_until_weights_have_moved_log_probs_far() -> None:
    sync, told = sync_with(TRUE), TRUE

    def push() -> None:
        sync.version += 1

    sync.push = push  # type: ignore[method-assign]
    sync._learner_group.ask = lambda score: [[told]]
    proved = []
    for update in range(1, 20):
        if update == 8:
            told = TRUE + 0.1
            sync._group.answers = (told,)
        if sync.push_and_verify() is not None:
            proved.append(update)
    assert proved == [1, 2, 4, 8]


def test_nobody_who_answers_is_no_proof() -> None:
    with pytest.raises(RuntimeError, match=r"none of the env-runners \[1, 2\] answered"):
        sync_with(None, None).verify()


def test_a_proof_that_nobody_answers_is_made_up_for_after_the_next_push() -> None:
    sync = sync_with(None)
    sync.push = lambda: None  # type: ignore[method-assign]
    assert sync.push_and_verify() is None
    assert sync._proof_is_due
    sync._group.answers = (TRUE,)
    assert sync.push_and_verify() == 0.0
    assert not sync._proof_is_due


def test_one_that_was_lost_has_to_prove_its_weights_later() -> None:
    lost = sync_with(TRUE, None)
    assert lost.verify() == 0.0
    assert lost._proof_is_due
    whole = sync_with(TRUE, TRUE)
    whole.verify()
    assert not whole._proof_is_due


def test_the_probe_fits_the_engine_and_the_vocabulary() -> None:
    chat = Chat.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    for longest in (512, 40):
        probe = probe_tokens(chat, longest)
        assert SHORTEST_PROBE <= len(probe) <= min(LONGEST_PROBE, longest)
        assert max(probe) < chat.vocabulary_size
        assert probe_tokens(chat, longest) == probe
    assert len(probe_tokens(chat, 4)) == 2 * SHORTEST_PROBE
