from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import make_fragment
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.groups import GroupBuffer, has_variance, sample_groups


def response(prompt: int, reward: float, number: int = 0) -> Fragment:
    return make_fragment(episode_id=number, prompt_index=prompt, rewards=[0.0, 0.0, reward], terminated=True)


class Prompts:
    """Answers prompts in order, `group_size` times each; rewards of prompt p are `rewards[p]`, cycling."""

    def __init__(self, rewards: list[list[float]]) -> None:
        self._stream = self._answers(rewards)
        self.asked: list[int] = []

    def _answers(self, rewards: list[list[float]]) -> Iterator[Fragment]:
        prompt = 0
        while True:
            for reward in rewards[prompt % len(rewards)]:
                yield response(prompt, reward)
            prompt += 1

    def __call__(self, count: int) -> list[Fragment]:
        self.asked.append(count)
        return [next(self._stream) for _ in range(count)]


def test_without_replacement_all_groups_are_trained() -> None:
    prompts = Prompts([[0, 1], [1, 1]])
    sample = sample_groups(prompts, GroupBuffer(2), num_groups=4, group_size=2, replace=False, max_rounds=9)
    assert (len(sample.groups), sample.dropped, sample.rounds) == (4, [], 1)
    assert (sample.num_complete, sample.num_without_variance) == (4, 2)


def test_groups_without_variance_are_replaced_and_handed_back() -> None:
    prompts = Prompts([[0, 1], [1, 1], [0, 0]])
    sample = sample_groups(prompts, GroupBuffer(2), num_groups=4, group_size=2, replace=True, max_rounds=99)
    assert len(sample.groups) == 4
    assert all(map(has_variance, sample.groups))
    assert not any(map(has_variance, sample.dropped))
    assert sample.num_complete == len(sample.groups) + len(sample.dropped)
    assert sample.num_without_variance == len(sample.dropped)
    assert prompts.asked[0] == 8
    assert prompts.asked[1] == 4, "only what is missing is sampled"


def test_rounds_are_limited() -> None:
    sample = sample_groups(Prompts([[1, 1]]), GroupBuffer(2), num_groups=3, group_size=2, replace=True, max_rounds=2)
    assert (sample.rounds, len(sample.groups), len(sample.dropped)) == (2, 3, 3)
    half = sample_groups(
        Prompts([[0, 1], [1, 1], [1, 1]]), GroupBuffer(2), num_groups=3, group_size=2, replace=True, max_rounds=1
    )
    assert (len(half.groups), len(half.dropped)) == (1, 2)


def test_what_is_incomplete_waits_for_the_next_step() -> None:
    buffer = GroupBuffer(2)
    assert buffer.add([response(0, 1.0)]) == []
    assert buffer.num_tokens == 3
    lost_one = iter([[response(5, 0.0), response(5, 1.0), response(6, 0.0)]])
    sample = sample_groups(lambda _: next(lost_one), buffer, num_groups=2, group_size=2, replace=False, max_rounds=1)
    assert [fragment.prompt_index for fragment in sample.fragments] == [5, 5]
    assert sorted(fragment.prompt_index for fragment in buffer.fragments()) == [0, 6]
    assert [len(group) for group in buffer.add([response(6, 0.0)])] == [2]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_no_episode_is_lost(rewards: list[list[float]], num_groups: int, max_rounds: int, replace: bool) -> None:
    prompts, buffer = Prompts(rewards), GroupBuffer(3)
    sample = sample_groups(prompts, buffer, num_groups=num_groups, group_size=3, replace=replace, max_rounds=max_rounds)
    kept = [fragment for group in [*sample.groups, *sample.dropped] for fragment in group]
    assert len(kept) + len(buffer.fragments()) == sum(prompts.asked)
    assert 1 <= len(sample.groups) <= num_groups
    assert sample.rounds <= max_rounds


def test_variance_counts_rewards_of_earlier_windows() -> None:
    assert not has_variance([response(0, 1.0), response(0, 1.0)])
    assert has_variance([response(0, 1.0), response(0, -1.0)])


def test_a_penalty_for_length_makes_no_variance_of_verdicts() -> None:
    def answers(count: int) -> list[Fragment]:
        # All right, one of them too long; then one right and one wrong.
        first = [(0, 1.0, True), (0, 0.9, True)]
        return [
            make_fragment(prompt_index=prompt, rewards=[0.0, 0.0, reward], terminated=True, correct=correct)
            for prompt, reward, correct in (first if count == 4 else []) + [(1, 1.0, True), (1, -1.0, False)]
        ]

    groups = {"num_groups": 2, "group_size": 2, "replace": True, "max_rounds": 2}
    by_return = sample_groups(answers, GroupBuffer(2), **groups)
    assert [fragment.prompt_index for fragment in by_return.fragments] == [0, 0, 1, 1]
    by_correctness = sample_groups(answers, GroupBuffer(2), by_correctness=True, **groups)
    assert [fragment.prompt_index for fragment in by_correctness.fragments] == [1, 1, 1, 1]
    assert [fragment.prompt_index for group in by_correctness.dropped for fragment in group] == [0, 0]
    assert by_correctness.num_without_variance == 1


@pytest.mark.parametrize("count", [1, 2])
def test_groups_of_one_are_complete_at_once(count: int) -> None:
    assert len(GroupBuffer(1).add([response(index, 1.0) for index in range(count)])) == count


def test_a_group_is_complete_without_what_was_left_out() -> None:
    buffer = GroupBuffer(3)
    buffer.leave_out(0)
    assert buffer.add([response(0, 1.0)]) == []
    assert buffer.left_out == {0: 1}
    (group,) = buffer.add([response(0, 0.0)])
    assert len(group) == 2
    assert (buffer.left_out, buffer.fragments()) == ({}, [])


def test_a_group_whose_last_response_is_left_out_waits_no_longer() -> None:
    buffer = GroupBuffer(3)
    assert buffer.add([response(0, 1.0), response(0, 0.0), response(1, 1.0)]) == []
    buffer.leave_out(0)
    assert [len(group) for group in buffer.add([response(2, 1.0)])] == [2]
    assert sorted(fragment.prompt_index for fragment in buffer.fragments()) == [1, 2]


def test_a_group_without_any_response_leaves_nothing_behind() -> None:
    buffer = GroupBuffer(2)
    buffer.leave_out(0)
    buffer.leave_out(0)
    assert buffer.add([]) == []
    assert (buffer.left_out, buffer.num_tokens) == ({}, 0)
