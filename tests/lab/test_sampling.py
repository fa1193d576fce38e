"""States and continuations of walks, whose true values are known; the budget; Parquet; environments of several turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from walks import DOWN, END, GOAL, FailingEnv, place_of, true_value, walk_sampler

from tppo_rl.core.errors import OptionError
from tppo_rl.core.prompts import Ticket
from tppo_rl.core.reward_parts import RewardParts
from tppo_rl.lab.samples import STATES, Samples
from tppo_rl.lab.sampling import Draw, Plan, spread_over
from tppo_rl.maths.value_quality import agreement, ceiling, explained_of_true_values, mean_error
from tppo_rl.rollout.rewards import Rewards


def plan(**changes: int) -> Plan:
    values = {"tokens": 10**6, "responses": 60, "prefixes": 5, "continuations": 8, "seed": 3}
    return Plan(**(values | changes), split="heldout")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Draw(walk_sampler(), plan(responses=200), None).samples()


@pytest.mark.parametrize(("length", "number"), [(1, 1), (1, 5), (2, 5), (7, 7), (7, 3), (100, 8), (9, 1)])
def test_positions_stand_for_all_tokens(length: int, number: int) -> None:
    rng = np.random.default_rng(0)
    found = spread_over(length, number, rng)
    positions = [position for position, _ in found]
    assert positions[0] == 0
    assert positions == sorted(set(positions))
    assert len(positions) == min(length, number)
    assert positions[-1] < length
    assert sum(weight for _, weight in found) == length


def test_positions_are_without_bias_for_sums_over_tokens() -> None:
    """The weighted sum of any function of the position is the sum over the response, on average."""
    rng = np.random.default_rng(1)
    sums = [sum(weight * position**2 for position, weight in spread_over(23, 5, rng)) for _ in range(20_000)]
    assert np.mean(sums) == pytest.approx(sum(position**2 for position in range(23)), rel=4 * 0.25 / np.sqrt(20_000))


def test_continuations_go_on_from_their_state(samples: Samples) -> None:
    assert len(samples.responses) == 200
    for one in samples.continuations:
        place = samples.places[one.state]
        whole = [*samples.responses[place.response].tokens[: place.position], *one.tokens]
        assert whole[-1] == END
        assert abs(place_of(whole)) == GOAL
        assert one.reward == float(place_of(whole) == GOAL)
    assert {one.half for one in samples.continuations} == {0, 1}
    assert len(samples.continuations) == 8 * len(samples.places)
    assert len(samples.known()) == len(samples.places)


def test_means_of_continuations_are_the_true_values(samples: Samples) -> None:
    states = samples.states(1.0)
    truth = np.array(
        [true_value(samples.responses[place.response].tokens[: place.position]) for place in samples.places]
    )
    chances = truth * (1 - truth)
    for half in (states.first, states.second):
        deviations = (half - truth) / np.sqrt(np.maximum(chances, 1e-9) / 4)
        assert abs(deviations[chances > 0.01].mean()) < 4 / np.sqrt(len(truth))
        assert deviations[chances > 0.05].std() == pytest.approx(1.0, abs=0.1)
    found = explained_of_true_values(states, truth)
    assert abs(found.value - 1) < 3 * found.error
    assert abs(agreement(states, truth).slope.value - 1) < 3 * agreement(states, truth).slope.error
    assert abs(mean_error(states, truth).value) < 3 * mean_error(states, truth).error
    assert 0.1 < ceiling(states).value < 0.9


def test_returns_are_discounted_from_the_state_on(samples: Samples) -> None:
    states = samples.states(0.9)
    for index in (0, 1, 7):
        place = samples.places[index]
        response = samples.responses[place.response]
        assert states.returns[index] == pytest.approx(response.reward * 0.9 ** (len(response) - place.position - 1))
        own = [one for one in samples.continuations if one.state == index and one.half == 0]
        expected = np.mean([one.reward * 0.9 ** (len(one.tokens) - 1) for one in own])
        assert states.first[index] == pytest.approx(expected)


def test_the_budget_is_kept_and_leaves_no_half_pairs() -> None:
    sampler = walk_sampler(slots=2)
    found = Draw(sampler, plan(tokens=12_000, responses=10_000, continuations=100), None).samples()
    assert found.num_tokens == sampler.num_tokens_sampled
    # It is told by the mean of what came before, so it may be missed by the spread of one part.
    assert 0.9 * 12_000 < found.num_tokens < 1.03 * 12_000
    assert sum(map(len, found.responses)) < 0.3 * 12_000
    counts = np.bincount([2 * one.state + one.half for one in found.continuations], minlength=2 * len(found.places))
    assert (counts.reshape(-1, 2)[:, 0] == counts.reshape(-1, 2)[:, 1]).all()
    assert counts.max() - counts.min() <= 1


def test_a_draw_that_was_stopped_goes_on_where_it_was() -> None:
    class Stop(Exception):
        pass

    kept: list[Samples] = []

    def keep(samples: Samples) -> None:
        kept.append(Samples(samples.responses, samples.places, list(samples.continuations)))
        if len(kept) == 3:
            raise Stop

    small = plan(responses=50, continuations=4)
    with pytest.raises(Stop):
        Draw(walk_sampler(1, slots=8), small, None).samples(keep=keep)
    earlier = kept[-1]
    assert 0 < len(earlier.continuations) < 4 * len(earlier.places)
    before = [id(one) for one in earlier.continuations]
    found = Draw(walk_sampler(2, slots=8), small, None).samples(earlier)
    assert [id(one) for one in found.continuations[: len(before)]] == before
    counts = np.bincount([2 * one.state + one.half for one in found.continuations], minlength=2 * len(found.places))
    assert set(counts.tolist()) == {2}
    # What was spent before counts.
    spent = found.num_tokens
    sampler = walk_sampler(3, slots=2)
    again = Draw(sampler, plan(responses=50, continuations=40, tokens=spent + 2000), None).samples(found)
    assert spent + 1000 < again.num_tokens < spent + 2600
    assert sampler.num_tokens_sampled == again.num_tokens - spent


def test_problems_of_a_small_split_come_again() -> None:
    found = Draw(walk_sampler(), plan(responses=10), 4).samples()
    assert [response.problem for response in found.responses] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len(np.unique(found.states(1.0).clusters)) == 4
    prompts = {response.problem: response.prompt.tolist() for response in found.responses}
    assert prompts == {problem: [60, 61 + problem] for problem in range(4)}


def test_a_response_that_the_cap_ends_is_scored_as_truncated() -> None:
    found = Draw(walk_sampler(cap=6), plan(), None).samples()
    cut = [response for response in found.responses if response.truncated]
    assert cut
    assert all(len(response) == 6 for response in cut)
    # Prefix and continuation share the cap.
    ends = [found.places[one.state].position + len(one.tokens) for one in found.continuations]
    assert max(ends) == 6


def test_responses_that_are_not_trained_are_left_out() -> None:
    """A critic has never seen their returns."""
    masked = Draw(walk_sampler(cap=12, rewards=Rewards(truncated="mask")), plan(), None).samples()
    assert 10 < len(masked.responses) < 60
    assert not any(response.truncated for response in masked.responses)
    assert all(one.tokens[-1] == END for one in masked.continuations)
    failed = Draw(walk_sampler(env=FailingEnv), plan(), None).samples()
    assert 10 < len(failed.responses) < 60
    for one in failed.continuations:
        place = failed.places[one.state]
        walked = [*failed.responses[place.response].tokens[: place.position], *one.tokens]
        assert walked.count(DOWN) % 2 == 0
    # States that lost all continuations of a half have no true value.
    assert len(failed.states(1.0)) == len(failed.known()) <= len(failed.places)


def test_rewards_are_those_of_the_run() -> None:
    parts = RewardParts.parse([{"type": "plus_minus_one", "weight": 2.0}])
    found = Draw(walk_sampler(rewards=Rewards(parts)), plan(), None).samples()
    assert {response.reward for response in found.responses} == {-2.0, 2.0}
    assert all(response.reward == (2.0 if response.correct else -2.0) for response in found.responses)


def test_what_was_saved_is_read_again(samples: Samples, tmp_path: Path) -> None:
    assert Samples.load(tmp_path) is None
    samples.save(tmp_path, 0.9)
    again = Samples.load(tmp_path)
    assert again is not None
    assert again.num_tokens == samples.num_tokens
    for name in ("returns", "first", "second", "weights", "clusters", "positions", "lengths", "responses"):
        np.testing.assert_array_equal(getattr(again.states(0.9), name), getattr(samples.states(0.9), name))
    assert again.responses[3].prompt.tolist() == samples.responses[3].prompt.tolist()
    assert again.responses[3].correct is samples.responses[3].correct
    table = pq.read_table(tmp_path / STATES)
    row = table.slice(5, 1).to_pylist()[0]
    own = np.array([one.reward * 0.9 ** (len(one.tokens) - 1) for one in samples.continuations if one.state == 5])
    halves = np.array([one.half for one in samples.continuations if one.state == 5])
    assert (row["first_count"], row["second_count"]) == (4, 4)
    assert row["second_sum"] == pytest.approx(own[halves == 1].sum())
    assert row["first_squares"] == pytest.approx((own[halves == 0] ** 2).sum())


def test_an_environment_with_a_second_turn_is_named() -> None:
    with pytest.raises(OptionError, match=r"env='walks-v0': .*within one turn"):
        Draw(walk_sampler(turns=2), plan(), None).samples()


def test_bad_plans_are_refused() -> None:
    with pytest.raises(OptionError, match="--continuations=3: must be even"):
        plan(continuations=3)
    with pytest.raises(OptionError, match=r"--tokens=10: .* leave nothing for continuations"):
        Draw(walk_sampler(), plan(tokens=10), None).samples()


def test_without_prefixes_it_is_the_plain_sampler() -> None:
    sampler = walk_sampler()
    tickets = [Ticket(number, number, number) for number in range(5)]
    episodes = sampler.go_on(tickets, {2: [2, 2, 1]})
    assert [episode.episode_id for episode in episodes] == list(range(5))
    assert episodes[2].tokens[:3].tolist() == [2, 2, 1]
    assert sampler.num_tokens_sampled == sum(len(episode.tokens) for episode in episodes) - 3
