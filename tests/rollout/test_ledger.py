import pytest
from helpers import make_fragment
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.core.prompts import heldout_tickets, prompt_seed
from tppo_rl.rollout.ledger import Ledger, LedgerError


def test_tokens_are_counted_where_they_are() -> None:
    ledger = Ledger(seed=0)
    ledger.lease(1, 4)
    fragments = [make_fragment(tokens=[1] * 5), make_fragment(tokens=[1] * 3, episode_id=1, terminated=True)]
    ledger.report(1, fragments, num_tokens_sampled=10, num_open_tokens=2)
    counts = ledger.check(queue_tokens=8)
    assert (counts.sampled, counts.queued, counts.in_flight, counts.trained) == (10, 8, 2, 0)
    ledger.record_trained(5)
    ledger.record_dropped("test", 1)
    counts = ledger.check(queue_tokens=2)
    assert (counts.trained, counts.queued, counts.dropped) == (5, 2, {"test": 1})


def test_a_lost_token_breaks_the_identity() -> None:
    ledger = Ledger(seed=0)
    ledger.report(1, [make_fragment(tokens=[1] * 5)], num_tokens_sampled=6, num_open_tokens=0)
    with pytest.raises(LedgerError, match="does not add up"):
        ledger.check(queue_tokens=5)


def test_a_queue_that_holds_other_tokens_than_booked_is_noticed() -> None:
    ledger = Ledger(seed=0)
    ledger.report(1, [make_fragment(tokens=[1] * 5)], num_tokens_sampled=5, num_open_tokens=0)
    with pytest.raises(LedgerError, match="does not add up"):
        ledger.check(queue_tokens=4)


def test_prompts_of_a_lost_env_runner_go_out_again_first() -> None:
    ledger = Ledger(seed=3)
    first = ledger.lease(1, 3)
    ledger.lease(2, 2)
    finished = make_fragment(tokens=[1], episode_id=first[1].episode_id, terminated=True)
    ledger.report(1, [finished], num_tokens_sampled=4, num_open_tokens=3)
    ledger.lose_env_runner(1)
    assert ledger.counts().dropped == {"env_runner_lost": 3}
    assert ledger.counts().unaccounted == 0
    again = ledger.lease(2, 3)
    assert [ticket.episode_id for ticket in again] == [0, 2, 5]
    assert again[0] == first[0]


def test_state_restarts_open_prompts_and_drops_only_open_tokens() -> None:
    ledger = Ledger(seed=1)
    tickets = ledger.lease(1, 3)
    ledger.report(1, [make_fragment(tokens=[1] * 4, episode_id=0)], num_tokens_sampled=7, num_open_tokens=3)
    restored = Ledger.from_state(ledger.state())
    counts = restored.check(queue_tokens=4)
    assert counts.dropped == {"resume": 3}
    assert counts.sampled == 7
    assert restored.lease(1, 4)[:3] == tickets
    restored.report(1, [], num_tokens_sampled=2, num_open_tokens=2)
    assert restored.check(queue_tokens=4).sampled == 9


@given(st.integers(0, 2**31), st.integers(1, 5), st.lists(st.integers(1, 7), max_size=8))
def test_prompts_do_not_depend_on_how_they_are_shared_out(seed: int, group_size: int, leases: list[int]) -> None:
    ledger = Ledger(seed=seed, group_size=group_size)
    tickets = [ticket for runner, count in enumerate(leases) for ticket in ledger.lease(runner, count)]
    assert [ticket.episode_id for ticket in tickets] == list(range(sum(leases)))
    for ticket in tickets:
        assert ticket.prompt_index == ticket.episode_id // group_size
        assert ticket.seed == prompt_seed(seed, ticket.prompt_index)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 9), st.lists(st.integers(1, 7), max_size=8))
def test_prompts_go_through_a_data_set_epoch_by_epoch(
    seed: int, group_size: int, num_problems: int, leases: list[int]
) -> None:
    ledger = Ledger(seed=seed, group_size=group_size, num_problems=num_problems)
    first = prompt_seed(seed, 0, num_problems)
    assert first % num_problems == 0
    for runner, count in enumerate(leases):
        for ticket in ledger.lease(runner, count):
            assert ticket.seed == first + ticket.prompt_index
        ledger = Ledger.from_state(ledger.state())
        ledger.lease(runner, len(ledger.state()["returned"]))


def test_epochs_count_ended_episodes_and_survive_a_restart() -> None:
    assert Ledger(seed=0).epochs is None
    ledger = Ledger(seed=0, group_size=2, num_problems=4)
    ledger.lease(1, 6)
    assert ledger.epochs == 0.0
    ended = [make_fragment(tokens=[1], episode_id=number, terminated=True) for number in (0, 3, 4)]
    ledger.report(1, ended, num_tokens_sampled=3, num_open_tokens=0)
    assert ledger.epochs == 3 / 8
    restored = Ledger.from_state(ledger.state())
    assert restored.epochs == 3 / 8
    assert [ticket.episode_id for ticket in restored.lease(1, 4)] == [1, 2, 5, 6]
    restored.lose_env_runner(1)
    assert restored.epochs == 3 / 8


def test_runs_with_different_seeds_see_different_prompts() -> None:
    assert [prompt_seed(0, index) for index in range(20)] != [prompt_seed(1, index) for index in range(20)]
    assert prompt_seed(0, 0, 10) != prompt_seed(1, 0, 10)
    assert list(heldout_tickets(3)) == list(heldout_tickets(5))[:3]


def test_what_an_env_runner_was_not_given_again_is_in_the_next_checkpoint() -> None:
    ledger = Ledger(seed=0)
    ledger.lease(1, 5)
    ledger.lease(2, 3)
    restored = Ledger.from_state(ledger.state(), [1, 2])
    assert [ticket.episode_id for ticket in restored.lease(1, 2)] == [0, 1]
    again = Ledger.from_state(restored.state(), [1, 2])
    assert [ticket.episode_id for ticket in again.lease(1, 5)] == [0, 1, 2, 3, 4]
    assert [ticket.episode_id for ticket in again.lease(2, 4)] == [5, 6, 7, 8]


def test_what_is_reserved_for_an_env_runner_that_is_lost_goes_to_others() -> None:
    ledger = Ledger(seed=0)
    ledger.lease(1, 2)
    ledger.lease(2, 2)
    restored = Ledger.from_state(ledger.state(), [1, 2])
    restored.free_reserved([1])
    assert [ticket.episode_id for ticket in restored.lease(1, 5)] == [0, 1, 2, 3, 4]
