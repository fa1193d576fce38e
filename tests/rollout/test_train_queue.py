import random

import pytest
from helpers import make_fragment
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.rollout.train_queue import TrainQueue, may_update, oldest_allowed_to_stay


def test_oldest_fragments_leave_first_and_equal_ones_in_order_of_arrival() -> None:
    queue = TrainQueue()
    queue.push(make_fragment(versions=[version] * 3, episode_id=index) for index, version in enumerate([4, 2, 4, 2]))
    taken = queue.pop(12, oldest_allowed_to_stay=0)
    assert [fragment.episode_id for fragment in taken] == [1, 3, 0, 2]
    assert queue.num_tokens == len(queue) == 0


def test_a_batch_takes_at_least_its_tokens_and_leaves_the_rest() -> None:
    queue = TrainQueue()
    queue.push(make_fragment(versions=[0] * 3) for _ in range(4))
    assert len(queue.pop(4, oldest_allowed_to_stay=0)) == 2
    assert queue.num_tokens == 6
    assert len(queue.fragments()) == 2


def test_what_may_not_stay_is_taken_beyond_the_batch() -> None:
    queue = TrainQueue()
    queue.push(make_fragment(versions=[version] * 3) for version in [1, 1, 1, 2])
    assert len(queue.pop(3, oldest_allowed_to_stay=2)) == 3


@pytest.mark.parametrize(
    ("version", "max_staleness", "oldest", "allowed"),
    [
        (7, 2, [6], True),
        (7, 2, [5], False),
        (7, 2, [6, 7, 5], False),
        (0, 1, [0], True),
        (1, 1, [0], False),
        (3, 2, [], True),
    ],
)
def test_an_update_waits_for_open_windows_that_would_be_too_old(
    version: int, max_staleness: int, oldest: list[int], allowed: bool
) -> None:
    assert may_update(version, max_staleness, oldest) is allowed


@given(
    max_staleness=st.integers(1, 4),
    window=st.integers(1, 12),
    slots=st.integers(1, 6),
    batch=st.integers(1, 40),
    weight_delay=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_no_token_is_ever_trained_beyond_the_bound(
    max_staleness: int, window: int, slots: int, batch: int, weight_delay: int, seed: int
) -> None:
    """Plays sampler and trainer against each other at random speeds; weights arrive up to `weight_delay` turns late."""
    generator = random.Random(seed)
    queue = TrainQueue()
    version = sampler_version = trained = sampled = 0
    open_windows: list[list[int]] = [[] for _ in range(slots)]
    arrivals: list[tuple[int, int]] = []
    for turn in range(400):
        arrivals, due = [a for a in arrivals if a[0] > turn], [a for a in arrivals if a[0] <= turn]
        sampler_version = max([sampler_version, *(version for _, version in due)])
        oldest = min([sampler_version, *(window[0] for window in open_windows if window)])
        blocked = not may_update(version, max_staleness, [oldest])
        if queue.num_tokens < max_staleness * batch or blocked:
            for slot in range(slots):
                open_windows[slot].append(sampler_version)
                sampled += 1
                if len(open_windows[slot]) == window or generator.random() < 0.1:
                    queue.push([make_fragment(tokens=[1] * len(open_windows[slot]), versions=open_windows[slot])])
                    open_windows[slot] = []
            oldest = min([sampler_version, *(window[0] for window in open_windows if window)])
        if queue.num_tokens >= batch and may_update(version, max_staleness, [oldest]) and generator.random() < 0.5:
            for fragment in queue.pop(batch, oldest_allowed_to_stay=oldest_allowed_to_stay(version, max_staleness)):
                assert version - fragment.oldest_version <= max_staleness
                trained += len(fragment)
            version += 1
            arrivals.append((turn + generator.randint(1, 1 + weight_delay), version))
    assert trained > 0
    assert sampled == trained + queue.num_tokens + sum(map(len, open_windows))
