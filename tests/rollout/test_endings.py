"""What becomes of episodes that are over: scored, failed, cut off; every sampled token stays accounted for."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import reward_examples
from helpers import CountingEnv, IntegerChat
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.responses import Scores
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler, evaluate_prompts
from tppo_rl.rollout.simulated_engine import SimulatedEngine

LENGTHS = [3, 5, 12, 4, 20, 2, 7, 9]
"""Tokens of the turns, in the order in which they begin, cycling; a cap of 10 cuts some of them off."""


class FaultyEnv(CountingEnv):
    """Fails on every third problem, at the first `times` attempts; a wrong answer is worth -0.5."""

    wrong_reward = -0.5

    def __init__(self, fault: Any = None, times: int = 99, turns: int = 1) -> None:
        super().__init__(turns)
        self._fault = fault
        self._times = times
        self._problem = 0
        self._attempts = 0

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        self._problem, self._attempts = seed, 0
        return super().reset(seed=seed)

    def step(self, text: str) -> Any:
        self._attempts += 1
        if self._fault is not None and self._problem % 3 == 0 and self._attempts <= self._times:
            if isinstance(self._fault, BaseException):
                raise self._fault
            return self._fault
        return super().step(text)


def run(
    make_env: Any = FaultyEnv,
    *,
    episodes: int = 12,
    cap: int = 64,
    window: int | None = 4,
    evaluation: bool = False,
    **options: Any,
) -> tuple[list[Fragment], Scores, Sampler, list[Any]]:
    made: list[Any] = []
    lengths = itertools.cycle(LENGTHS)

    def make() -> Any:
        made.append(make_env())
        return made[-1]

    sampler = Sampler(
        SimulatedEngine(lambda _: next(lengths)),
        make,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=3,
        limits=EpisodeLimits(8, cap, window),
        sampling=Sampling(1.0),
        rewards=Rewards.of_evaluation() if evaluation else Rewards.of(Options.of(max_response_length=cap, **options)),
    )
    tickets = [Ticket(index, index, index) for index in range(episodes)]
    if evaluation:
        fragments = evaluate_prompts(sampler, tickets)
    else:
        sampler.tickets.extend(tickets)
        fragments = sampler.run_until_empty()
    return fragments, sampler.pop_scores(), sampler, made


FAULTS = {
    "raises": ValueError("no"),
    "exits": SystemExit(3),
    "four values": ("text", 0.0, True, False),
    "no info": ("text", 0.0, True, False, None),
    "a reward of NaN": ("text", float("nan"), True, False, {}),
    "an array": ("text", [1.0, 2.0], True, False, {}),
    "no text": (None, 0.0, False, False, {}),
    "a note": ("text", 1.0, True, False, {"correct": True, "scorer_error": "KeyError()"}),
    "late": TimeoutError("deadline"),
}
KINDS = {"a reward of NaN": "not_finite", "no text": "no_text", "a note": "scorer_error", "late": "timeout"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_environment_costs_one_episode(fault: str) -> None:
    fragments, scores, sampler, made = run(lambda: FaultyEnv(FAULTS[fault]))
    finished = {fragment.episode_id: fragment for fragment in fragments if fragment.finished}
    assert sorted(finished) == list(range(12)), "every prompt comes to its end"
    assert scores.left_out == {0: "reward_failed", 3: "reward_failed", 6: "reward_failed", 9: "reward_failed"}
    assert {(failure.name, failure.kind) for failure in scores.failures} == {
        ("environment", KINDS.get(fault, "exception"))
    }
    assert (len(scores.failures), scores.failed_responses) == (4, 4)
    assert all(finished[index].correct is None and not finished[index].rewards.any() for index in scores.left_out)
    assert sum(map(len, fragments)) == sampler.num_tokens_sampled
    assert sampler.num_open_tokens == 0
    sampler.close()
    assert [env.num_closed for env in made] == [1] * len(made), "broken environments are closed once, and replaced"
    if fault == "a note":
        assert len(made) <= 6, "an environment whose scorer failed serves on"
    assert sampler.pop_scores() == Scores()


def test_a_fault_between_turns_leaves_what_was_emitted() -> None:
    fragments, scores, *_ = run(lambda: FaultyEnv(ValueError("no"), turns=3), window=2)
    assert len(scores.left_out) == 4
    earlier = [f for f in fragments if f.episode_id in scores.left_out and not f.finished]
    assert earlier, "windows that were full before stay"
    assert Counter(f.episode_id for f in fragments if f.finished) == Counter(range(12))


def test_a_retry_asks_the_environment_once_more() -> None:
    _, scores, *_ = run(lambda: FaultyEnv(ValueError("no"), times=1), on_reward_failure="retry")
    assert not scores.failures
    _, scores, *_ = run(lambda: FaultyEnv(ValueError("no"), times=2), on_reward_failure="retry")
    assert len(scores.left_out) == scores.failed_responses == 4


def test_wrong_gives_the_reward_of_a_wrong_response() -> None:
    fragments, scores, *_ = run(lambda: FaultyEnv(ValueError("no")), on_reward_failure="wrong")
    assert (scores.left_out, scores.failed_responses) == ({}, 4)
    for fragment in fragments:
        if fragment.finished and fragment.episode_id % 3 == 0:
            assert fragment.correct is False
            assert float(fragment.rewards.sum()) == -0.5
            assert fragment.terminated


def test_what_an_evaluation_cannot_score_counts_as_wrong() -> None:
    episodes, scores, *_ = run(lambda: FaultyEnv(ValueError("no")), window=None, evaluation=True)
    assert [episode.prompt_index for episode in episodes] == list(range(12))
    assert [episode.correct for episode in episodes if episode.episode_id % 3 == 0] == [False] * 4
    assert scores.failed_responses == 4


def fails_on_fives(completions: list[str], **columns: Any) -> list[Any]:
    reward_examples.calls.append(len(completions))
    return [float("nan") if len(text) % 5 == 0 else 1.0 for text in completions]


FIVES = f"{__name__}:fails_on_fives"


@pytest.mark.parametrize(("policy", "left_out"), [("drop", True), ("retry", True), ("wrong", False)])
def test_a_reward_that_fails_follows_the_option(policy: str, left_out: bool) -> None:
    fragments, scores, sampler, _ = run(
        rewards=[FIVES, {"type": "environment", "weight": 2.0}], on_reward_failure=policy, wrong_reward=-3.0
    )
    finished = {f.episode_id: f for f in fragments if f.finished}
    lengths = {index: len(f.context) + len(f.tokens) - f.prompt_length for index, f in finished.items()}
    failed = {index for index, length in lengths.items() if length % 5 == 0}
    assert failed
    assert len(scores.failures) == scores.failed_responses == len(failed)
    assert {failure.name for failure in scores.failures} == {"fails_on_fives"}
    assert set(scores.left_out) == (failed if left_out else set())
    for index, fragment in finished.items():
        right = 2.0 * (lengths[index] % 2 == 0)
        expected = (0.0 if left_out else -3.0) if index in failed else 1.0 + right
        assert float(fragment.context_rewards.sum() + fragment.rewards.sum()) == expected
    assert scores.sums["fails_on_fives"] == (12.0 - len(failed), 12 - len(failed))
    assert scores.sums["environment"][1] == 12
    assert sum(map(len, fragments)) == sampler.num_tokens_sampled


def test_functions_are_called_once_for_all_that_ended_in_a_run() -> None:
    reward_examples.calls.clear()
    run(rewards=FIVES)
    assert sum(reward_examples.calls) == 12
    assert len(reward_examples.calls) == 1, "one call of `run`, one call of the function"


@pytest.mark.parametrize("mode", ["score", "mask", "wrong"])
def test_responses_that_the_cap_cuts_off(mode: str) -> None:
    reward_examples.calls.clear()
    fragments, scores, sampler, _ = run(
        cap=10, window=4, rewards=["zero_one", "reward_examples:counting"], truncated_responses=mode
    )
    finished = {f.episode_id: f for f in fragments if f.finished}
    cut = {index for index, f in finished.items() if f.truncated}
    assert cut
    assert sum(map(len, fragments)) == sampler.num_tokens_sampled
    assert scores.left_out == (dict.fromkeys(cut, "truncated") if mode == "mask" else {})
    assert sum(reward_examples.calls) == (12 - len(cut) if mode == "wrong" else 12)
    if mode == "wrong":
        assert all(f.correct is False and not f.rewards.any() for index, f in finished.items() if index in cut)
    earlier = [f for f in fragments if f.episode_id in cut and not f.finished]
    assert len(earlier) == 2 * len(cut), "only the last window is affected"


def test_a_masked_response_whose_reward_fails_is_left_out_all_the_same() -> None:
    # Responses of 10 tokens fail here, and are those that the cap cuts off.
    fragments, scores, *_ = run(cap=10, window=4, rewards=FIVES, truncated_responses="mask", on_reward_failure="wrong")
    cut = {f.episode_id for f in fragments if f.truncated}
    assert cut
    assert scores.left_out == dict.fromkeys(cut, "reward_failed")


def test_a_response_that_the_cap_cuts_off_never_meets_its_scorer_with_wrong() -> None:
    steps: list[str] = []

    class Watching(CountingEnv):
        def step(self, text: str) -> Any:
            steps.append(text)
            return super().step(text)

    fragments, *_ = run(Watching, cap=10, truncated_responses="wrong", overlong_fraction=0.5)
    finished = [f for f in fragments if f.finished]
    assert len(steps) == sum(f.terminated for f in finished) < len(finished)
    assert all(float(f.rewards.sum()) == -1.0 for f in finished if f.truncated), "the penalty for length stays"


@given(
    policy=st.sampled_from(["drop", "retry", "wrong"]),
    truncated=st.sampled_from(["score", "mask", "wrong"]),
    window=st.one_of(st.none(), st.integers(1, 9)),
    turns=st.integers(1, 3),
    cap=st.integers(6, 30),
    functions=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_ledger_stays_exact(
    policy: str, truncated: str, window: int | None, turns: int, cap: int, functions: bool
) -> None:
    fragments, scores, sampler, _ = run(
        lambda: FaultyEnv(ValueError("no"), turns=turns), window=window, cap=cap, on_reward_failure=policy,
        truncated_responses=truncated, rewards=["environment", FIVES] if functions else "environment",
    )  # fmt: skip
    ledger = Ledger(seed=0)
    ledger.lease(1, 12)
    ledger.report(1, fragments, num_tokens_sampled=sampler.num_tokens_sampled, num_open_tokens=sampler.num_open_tokens)
    kept = 0
    for fragment in fragments:
        if fragment.finished and fragment.episode_id in scores.left_out:
            ledger.record_dropped(scores.left_out[fragment.episode_id], len(fragment))
        else:
            kept += len(fragment)
    counts = ledger.check(queue_tokens=kept)
    assert set(counts.dropped) <= {"reward_failed", "truncated"}
    assert ledger.state()["returned"] == [], "no prompt waits for ever"
    assert sorted(f.episode_id for f in fragments if f.finished) == list(range(12))
