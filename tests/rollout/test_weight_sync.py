"""The proof of weights, where env-runners do not answer or answer with an error."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.weight_broadcast import Offer, sender_of
from tppo_rl.rollout.weight_proof import LONGEST_PROBE, SHORTEST_PROBE, WeightProof, probe_tokens
from tppo_rl.rollout.weight_sync import WEIGHTS_TAG, WeightSync

PROBE = list(range(32))
TRUE = np.linspace(-3.0, -0.1, 31, dtype=np.float32)


class Answering:
    """An env-runner group whose members answer the probe with what they are told to; None is one that was lost meanwhile."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.local_env_runner = None

    def healthy_env_runner_ids(self) -> list[int]:
        return list(range(1, len(self.answers) + 1))

    def num_remote_env_runners(self) -> int:
        return len(self.answers)

    def call_env_runner(self, env_runner: int, function: Any) -> int:
        return env_runner

    def take_answers(self, calls: dict[int, int]) -> dict[int, Any]:
        answers = {call: self.answers[call - 1] for call in calls}
        calls.clear()
        return {env_runner: answer for env_runner, answer in answers.items() if answer is not None}

    def fetch_ready_async_reqs(self, **arguments: Any) -> list[Any]:
        return []


def sync_with(*answers: Any) -> WeightSync:
    trainer = SimpleNamespace(ask=lambda score: [[TRUE]])
    return WeightSync(trainer, Answering(*answers), proof=WeightProof(exact=True), probe=PROBE)


def test_while_the_policy_is_frozen_the_proof_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    sync, proven = sync_with(TRUE), []

    def push(self: WeightSync) -> None:
        self.version += 1

    monkeypatch.setattr(WeightSync, "push", push)
    monkeypatch.setattr(WeightSync, "verify", lambda self: proven.append(self.version))
    sync._proof_is_due = False
    for update in range(8):
        if update < 5:
            sync.expect_no_change()
        sync.push_and_verify()
    # The first weights that differ, and again after 8 updates, since nothing has moved yet.
    assert proven == [6, 8]


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


class Learner:
    """A learner, and a group of it alone."""

    def __init__(self) -> None:
        self.version = 0
        self.module = {DEFAULT_MODULE_ID: SimpleNamespace(kept_in_float32=())}

    def get_state(self, **arguments: Any) -> dict[str, Any]:
        self.version += 1
        arrays = {"a": np.full(3, self.version, np.float32)}
        return {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: arrays}, WEIGHTS_SEQ_NO: self.version}

    def ask_first(self, function: Any) -> Any:
        return function(self)


class Busy:
    """Env-runners that take weights when they are told to."""

    def __init__(self, *env_runners: int) -> None:
        self.open: dict[int, list[Offer]] = {env_runner: [] for env_runner in env_runners}
        self.taken: list[int] = []
        self.lost: set[int] = set()
        self.full: set[int] = set()
        """Those that RLlib takes no request for."""
        self.local_env_runner = SimpleNamespace(set_state=lambda state: None)

    def healthy_env_runner_ids(self) -> list[int]:
        return [env_runner for env_runner in self.open if env_runner not in self.lost]

    def num_remote_env_runners(self) -> int:
        return len(self.open)

    def fetch_ready_async_reqs(self, **arguments: Any) -> list[Any]:
        return []

    def requests_in_flight(self, tag: str) -> Counter[int]:
        assert tag == WEIGHTS_TAG
        return Counter({env_runner: len(offers) for env_runner, offers in self.open.items()})

    def foreach_env_runner_async(self, name: str, *, kwargs: Any, remote_worker_ids: list[int], tag: str) -> int:
        (env_runner,) = remote_worker_ids
        if env_runner in self.full:
            return 0
        self.open[env_runner].append(kwargs["state"][COMPONENT_RL_MODULE])
        self.taken.append(kwargs["state"][WEIGHTS_SEQ_NO])
        return 1


def test_a_learner_keeps_what_env_runners_may_still_ask_for() -> None:
    learner, group = Learner(), Busy(1, 2)
    sync = WeightSync(learner, group, proof=WeightProof(exact=True), probe=PROBE, transport="broadcast")
    kept = []
    for push in range(1, 8):
        sync.push()
        sender = sender_of(learner, "", 0.0)
        kept.append(sorted(sender._copies))
        assert all(offers[-1].number == push for offers in group.open.values())
        group.open[1].clear()
        if push == 4:
            # The other one takes the first two, and is then lost with the rest.
            del group.open[2][:2]
        if push == 5:
            group.open[2].clear()
    assert kept == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [3, 4, 5], [6], [6, 7]]


@pytest.mark.parametrize("restarted", [True, False])
def test_an_env_runner_that_comes_back_gets_the_weights_of_the_updates_that_it_missed(restarted: bool) -> None:
    """All are lost for two updates, while the one in this process, which has no engine, stays. One that was only slow has its old weights."""
    group = Busy(1)
    sync = WeightSync(Learner(), group, proof=WeightProof(exact=True), probe=PROBE, transport="broadcast")
    sync.push()
    group.lost = {1}
    sync.push()
    sync.push()
    sync._proof_is_due = False
    group.lost = set()
    sync.deliver(1 if restarted else None)
    assert group.taken == [1, 3]
    assert sync._proof_is_due


def test_one_that_hangs_and_takes_no_weights_is_started_anew() -> None:
    group = Busy(1, 2)
    sync = WeightSync(
        Learner(), group, proof=WeightProof(exact=True), probe=PROBE, transport="broadcast", silence_s=0.1
    )
    group.full = {2}
    sync.push()
    group.replace = group.lost.add
    sync.wait_until_delivered()
    assert (group.taken, group.lost) == ([1], {2})
    sync._proof_is_due = False
    group.lost, group.full = set(), set()
    sync.deliver()
    assert group.taken == [1, 1]
    assert sync._proof_is_due


def test_one_that_gets_its_weights_with_the_push_after_its_return_has_to_prove_them() -> None:
    group = Busy(1)
    sync = WeightSync(Learner(), group, proof=WeightProof(exact=True), probe=PROBE, transport="broadcast")
    group.lost = {1}
    sync.push()
    sync._proof_is_due = False
    group.lost = set()
    sync.push()
    assert group.taken == [2]
    assert sync._proof_is_due
    sync._proof_is_due = False
    sync.push()
    assert not sync._proof_is_due
