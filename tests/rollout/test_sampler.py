from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import CountingEnv, IntegerChat
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.config.options import Options
from tppo_rl.core.begun_episodes import BegunEpisode
from tppo_rl.core.fragments import NO_VERSION, Fragment
from tppo_rl.core.prompts import Ticket, prompt_seed
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler, evaluate_prompts
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost, draw_lognormal_length


def sampler_on(
    engine: SimulatedEngine,
    *,
    slots: int = 4,
    window: int | None = 8,
    cap: int = 64,
    turns: int = 1,
    max_prompt_length: int = 8,
    temperature: float = 1.0,
    name: str = "train",
) -> Sampler:
    return Sampler(
        engine,
        lambda: CountingEnv(turns),
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=slots,
        limits=EpisodeLimits(max_prompt_length, cap, window),
        sampling=Sampling(temperature),
        name=name,
    )


def make_sampler(*, mean: float = 15.0, seed: int = 0, **options: Any) -> tuple[Sampler, SimulatedEngine]:
    engine = SimulatedEngine(draw_lognormal_length(mean, 1.0), seed=seed)
    return sampler_on(engine, **options), engine


class SilentEnv(CountingEnv):
    """An environment that does not say whether an answer was right."""

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return (*super().step(text)[:4], {})


@pytest.mark.parametrize("name", ["environment", "zero_one", "plus_minus_one"])
def test_rewards_by_correctness_need_an_environment_that_says_so(name: str) -> None:
    sampler = Sampler(
        SimulatedEngine(draw_lognormal_length(5.0, 0.1), seed=0),
        SilentEnv,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=1,
        limits=EpisodeLimits(8, 64, None),
        sampling=Sampling(1.0),
        rewards=Rewards.of(Options.of(rewards=name)),
    )
    sampler.tickets.extend(tickets(1))
    if name == "environment":
        assert len(sampler.run_until_empty()) == 1
    else:
        with pytest.raises(ValueError, match=rf"^rewards='{name}'.*info\['correct'\]"):
            sampler.run_until_empty()


def test_what_an_environment_does_not_say_is_not_known() -> None:
    sampler = Sampler(
        SimulatedEngine(draw_lognormal_length(5.0, 0.1), seed=0),
        SilentEnv,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=1,
        limits=EpisodeLimits(8, 64, None),
        sampling=Sampling(1.0),
    )
    sampler.tickets.extend(tickets(2))
    assert [episode.correct for episode in sampler.run_until_empty()] == [None, None]


def test_a_response_that_was_cut_is_not_right() -> None:
    sampler = Sampler(
        SimulatedEngine(draw_lognormal_length(50.0, 0.1), seed=0),
        SilentEnv,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=1,
        limits=EpisodeLimits(8, 4, None),
        sampling=Sampling(1.0),
    )
    sampler.tickets.extend(tickets(1))
    (episode,) = sampler.run_until_empty()
    assert (episode.truncated, episode.correct) == (True, False)


class RowsEnv(CountingEnv):
    """A data set of ten rows; keeps the numbers of the problems that it was asked for."""

    num_problems = 10
    asked: list[int] = []  # noqa: RUF012 (shared by all slots on purpose)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        assert seed is not None
        self.asked.append(seed)
        return super().reset(seed=seed % self.num_problems)


def test_slots_go_through_a_data_set_epoch_by_epoch_and_on_after_a_restart() -> None:
    RowsEnv.asked.clear()
    ledger = Ledger(seed=7, num_problems=10)
    ended: list[int] = []
    for round_number in range(4):
        samplers = {
            runner: Sampler(
                SimulatedEngine(draw_lognormal_length(9.0, 1.0), seed=runner + 10 * round_number),
                RowsEnv,
                IntegerChat(),  # type: ignore[arg-type]
                num_slots=3,
                limits=EpisodeLimits(8, 64, None),
                sampling=Sampling(1.0),
            )
            for runner in (1, 2)
        }
        for runner, sampler in samplers.items():
            sampler.tickets.extend(ledger.lease(runner, 9))
            fragments = sampler.run(20)
            ledger.report(runner, fragments, num_tokens_sampled=sampler.num_tokens_sampled, num_open_tokens=0)
            ended += [fragment.prompt_index for fragment in fragments if fragment.finished]
        assert ledger.epochs == len(ended) / 10
        ledger = Ledger.from_state(ledger.state())
    assert len(ended) == len(set(ended)) > 10
    first = prompt_seed(7, 0, 10)
    begun = {seed - first for seed in RowsEnv.asked}
    assert begun == set(range(len(begun)))
    assert {first % 10, (first + 10) % 10} == {0}


def tickets(count: int, first: int = 0) -> list[Ticket]:
    return [Ticket(index, index, index) for index in range(first, first + count)]


def by_episode(fragments: list[Fragment]) -> dict[int, list[Fragment]]:
    episodes: dict[int, list[Fragment]] = defaultdict(list)
    for fragment in fragments:
        episodes[fragment.episode_id].append(fragment)
    return episodes


def assert_glued(windows: list[Fragment], window_length: int | None) -> None:
    """Context and windows of an episode fit together token by token, and only the last one is finished."""
    assert [fragment.window_index for fragment in windows] == list(range(len(windows)))
    for before, after in pairwise(windows):
        np.testing.assert_array_equal(after.context, np.concatenate([before.context, before.tokens]))
        np.testing.assert_array_equal(after.context_sampled, np.concatenate([before.context_sampled, before.sampled]))
        np.testing.assert_array_equal(after.context_rewards, np.concatenate([before.context_rewards, before.rewards]))
        assert not before.finished
        assert before.correct is None
        assert window_length is None or len(before) == window_length
        assert after.oldest_version >= before.oldest_version
    assert windows[-1].finished
    assert windows[-1].correct is not None


@given(
    slots=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(1, 20)),
    cap=st.integers(20, 80),
    turns=st.integers(1, 3),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_every_token_lands_in_exactly_one_fragment(
    slots: int, window: int | None, cap: int, turns: int, chunk: int, seed: int
) -> None:
    sampler, engine = make_sampler(slots=slots, window=window, cap=cap, turns=turns, seed=seed)
    sampler.tickets.extend(tickets(30))
    fragments: list[Fragment] = []
    while (
        sampler.num_waiting_tickets
        or sampler.num_open_tokens
        or len(by_episode([f for f in fragments if f.finished])) < 30
    ):
        fragments += sampler.run(chunk)
        engine.load_weights({}, engine.version + 1)
        assert sum(map(len, fragments)) + sampler.num_open_tokens == sampler.num_tokens_sampled
    episodes = by_episode(fragments)
    assert sorted(episodes) == list(range(30))
    for windows in episodes.values():
        assert_glued(windows, window)
        last = windows[-1]
        response = np.concatenate([last.context, last.tokens])[last.prompt_length :]
        assert len(response) <= cap
        if last.terminated:
            assert last.tokens[-1] == 0


def test_simulated_tokens_prove_whose_they_are() -> None:
    sampler, _ = make_sampler(slots=5, window=7)
    sampler.tickets.extend(tickets(40))
    for windows in by_episode(sampler.run_until_empty()).values():
        last = windows[-1]
        tokens = np.concatenate([last.context, last.tokens])
        assert tokens[1] == last.prompt_index % 50 + 1
        positions = np.arange(len(tokens))[last.prompt_length : len(tokens) - last.terminated]
        np.testing.assert_array_equal(tokens[positions], 1 + (positions + 1) % 63)


def test_a_finished_slot_is_refilled_at_the_next_engine_step() -> None:
    sampler, engine = make_sampler(slots=6)
    sampler.tickets.extend(tickets(1000))
    sampler.run(200)
    assert sampler.num_productive_slot_steps == sampler.num_slot_steps == 6 * engine.num_steps
    assert sampler.num_refills > 30


def test_slots_without_tickets_count_as_idle() -> None:
    sampler, _ = make_sampler(slots=4)
    sampler.tickets.extend(tickets(1))
    sampler.run_until_empty()
    assert sampler.num_productive_slot_steps * 4 == sampler.num_slot_steps


def test_the_cap_truncates_and_the_verifier_still_scores() -> None:
    sampler, _ = make_sampler(slots=2, window=8, cap=12, mean=500.0)
    sampler.tickets.extend(tickets(4))
    finished = [fragment for fragment in sampler.run_until_empty() if fragment.finished]
    assert len(finished) == 4
    for fragment in finished:
        assert fragment.truncated
        assert not fragment.terminated
        assert fragment.correct is True
        assert fragment.rewards.tolist() == [0.0] * (len(fragment.tokens) - 1) + [1.0]
        assert len(fragment.context) + len(fragment.tokens) - fragment.prompt_length == 12


def test_an_episode_that_ends_with_its_window_is_one_finished_fragment() -> None:
    engine = SimulatedEngine(lambda _: 8)
    sampler = sampler_on(engine, slots=1)
    sampler.tickets.extend(tickets(1))
    (fragment,) = sampler.run_until_empty()
    assert fragment.terminated
    assert len(fragment) == 8


def test_environment_text_between_turns_is_never_sampled() -> None:
    sampler, _ = make_sampler(slots=2, window=6, turns=3, cap=500)
    sampler.tickets.extend(tickets(10))
    for windows in by_episode(sampler.run_until_empty()).values():
        assert_glued(windows, 6)
        last = windows[-1]
        tokens = np.concatenate([last.context, last.tokens])
        sampled = np.concatenate([last.context_sampled, last.sampled]).astype(bool)
        assert tokens[~sampled].tolist() == [*tokens[:3], 62, 63, 62, 63]
        for fragment in windows:
            np.testing.assert_array_equal(fragment.versions == NO_VERSION, fragment.sampled == 0)


def test_a_stop_text_ends_a_turn_like_a_token() -> None:
    class StoppingChat(IntegerChat):
        has_stops = True

        def is_stopped(self, earlier: Sequence[int], tokens: Sequence[int]) -> bool:
            assert 7 not in earlier
            return 7 in tokens

    engine = SimulatedEngine(draw_lognormal_length(15.0, 1.0), vocabulary_size=16, seed=4)
    sampler = Sampler(
        engine,
        lambda: CountingEnv(turns=2),
        StoppingChat(),
        num_slots=4,
        limits=EpisodeLimits(8, 400, 8),
        sampling=Sampling(),
    )
    sampler.tickets.extend(Ticket(index, index, index) for index in range(40))
    fragments = sampler.run_until_empty()
    assert sum(map(len, fragments)) == sampler.num_tokens_sampled
    stopped = 0
    for fragment in fragments:
        if not fragment.finished:
            continue
        assert fragment.terminated
        tokens = np.concatenate([fragment.context[fragment.prompt_length :], fragment.tokens])
        (break_,) = np.flatnonzero((tokens[:-1] == 62) & (tokens[1:] == 63))
        turns = tokens[:break_], tokens[break_ + 2 :]
        # A turn that its text ended is closed by a token that the model did not sample.
        closed = 7 in turns[0]
        assert turns[0][-1] == 0
        stopped += closed
        for turn in (turns[0][: -1 if closed else None], turns[1]):
            assert turn[-1] in (0, 7)
            assert 7 not in turn[:-1]
            assert 0 not in turn[:-1]
    assert 0 < stopped < 40


def test_cut_windows_closes_what_is_open_and_episodes_go_on() -> None:
    sampler, _ = make_sampler(slots=3, window=50, mean=40.0)
    sampler.tickets.extend(tickets(6))
    fragments = sampler.run(10) + sampler.cut_windows()
    assert sampler.num_open_tokens == 0
    assert sum(map(len, fragments)) == 30
    fragments += sampler.run_until_empty()
    for windows in by_episode(fragments).values():
        assert_glued(windows, None)


def test_evaluation_leaves_open_episodes_untouched() -> None:
    sampler, _ = make_sampler(slots=3, window=9)
    undisturbed, _ = make_sampler(slots=3, window=9)
    for each in (sampler, undisturbed):
        each.tickets.extend(tickets(12))
    fragments = sampler.run(5)
    before = undisturbed.run(5)
    sampler.suspend()
    lengths = SimulatedEngine(draw_lognormal_length(15.0, 1.0), seed=9)
    evaluation = sampler_on(lengths, slots=3, window=None, temperature=0.0, name="evaluation")
    counts: list[int] = []
    episodes = evaluate_prompts(evaluation, tickets(7), counts.append)
    assert [episode.prompt_index for episode in episodes] == list(range(7))
    assert counts == list(range(1, 8))
    assert all(episode.finished and episode.window_index == 0 for episode in episodes)
    sampler.resume()
    fragments += sampler.run_until_empty()
    before += undisturbed.run_until_empty()
    assert [f.tokens.tolist() for f in fragments] == [f.tokens.tolist() for f in before]


def test_after_abandoning_slots_are_free_again() -> None:
    sampler, _ = make_sampler(slots=2)
    sampler.tickets.extend(tickets(5))
    fragments = sampler.run(3)
    finished = {fragment.episode_id for fragment in fragments if fragment.finished}
    assert set(sampler.episode_ids) | finished == set(range(5))
    sampler.abandon()
    assert sampler.episode_ids == []
    sampler.tickets.extend(tickets(3, first=10))
    assert {fragment.episode_id for fragment in sampler.run_until_empty()} == {10, 11, 12}


def test_prompts_are_made_for_all_slots_at_a_time_and_every_environment_is_closed() -> None:
    made: list[CountingEnv] = []

    def make_env() -> CountingEnv:
        made.append(CountingEnv())
        return made[-1]

    sampler = Sampler(
        SimulatedEngine(draw_lognormal_length(15.0, 1.0), seed=0),
        make_env,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=4,
        limits=EpisodeLimits(8, 64, 8),
        sampling=Sampling(1.0),
    )
    sampler.tickets.extend(tickets(40))
    sampler.run(1)
    assert (sampler.num_waiting_tickets, len(sampler.tickets), len(made)) == (36, 36, 4)
    finished: set[int] = set()
    while not finished:
        finished |= {fragment.episode_id for fragment in sampler.run(1) if fragment.finished}
    finished |= {fragment.episode_id for fragment in sampler.run(1) if fragment.finished}
    assert (sampler.num_waiting_tickets, len(sampler.tickets)) == (35, 32)
    assert sorted(sampler.episode_ids) == sorted(set(range(40)) - finished)
    sampler.abandon()
    assert sampler.num_waiting_tickets == 0
    sampler.tickets.extend(tickets(40, first=100))
    assert {fragment.episode_id for fragment in sampler.run(60)} <= set(range(100, 140))
    assert 4 < len(made) < 8
    sampler.close()
    assert [env.num_closed for env in made] == [1] * len(made)


def test_a_prompt_beyond_the_limit_is_an_error_that_names_the_key() -> None:
    sampler = sampler_on(SimulatedEngine(lambda _: 3), slots=1, max_prompt_length=2)
    sampler.tickets.extend(tickets(1))
    with pytest.raises(ValueError, match="max_prompt_length=2: the prompt with index 0 has 3 tokens"):
        sampler.run(1)
    assert sampler.episode_ids == [0]


def test_after_an_error_no_environment_stays_open() -> None:
    made: list[CountingEnv] = []

    def make_env() -> CountingEnv:
        made.append(CountingEnv())
        return made[-1]

    sampler = Sampler(
        SimulatedEngine(lambda _: 3),
        make_env,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=2,
        limits=EpisodeLimits(2, 64, 8),
        sampling=Sampling(1.0),
    )
    sampler.tickets.extend(tickets(3))
    with pytest.raises(ValueError, match="max_prompt_length=2"):
        sampler.run(1)
    assert sampler.num_waiting_tickets == 3
    sampler.close()
    assert [env.num_closed for env in made] == [1] * len(made)


def test_the_simulated_engine_charges_time() -> None:
    engine = SimulatedEngine(lambda _: 4, cost=StepCost(base=1.0, per_sequence=0.5, weight_update=10.0))
    sampler = sampler_on(engine, slots=2)
    sampler.tickets.extend(tickets(2))
    sampler.run(4)
    engine.load_weights({}, 1)
    assert engine.seconds == pytest.approx(4 * (1.0 + 2 * 0.5) + 10.0)


class OtherEnv(CountingEnv):
    """Gives other prompts, or other answers, than the environment of the same seed before."""

    def __init__(self, what: str, turns: int) -> None:
        super().__init__(turns)
        self._what = what

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=seed + (self._what == "prompt"))

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        said, *rest = super().step(text)
        return ("something else" if self._what == "answer" else said), *rest


@pytest.mark.parametrize(("what", "turns"), [("prompt", 1), ("prompt", 3), ("answer", 3)])
def test_an_episode_whose_environment_comes_out_another_one_is_dropped_by_name(what: str, turns: int) -> None:
    first, _ = make_sampler(slots=6, window=7, turns=turns, mean=40.0 if turns == 1 else 5.0)
    first.add_tickets(tickets(6))
    first.run(10)
    begun = first.begun()
    assert any(episode.turns for episode in begun) == (turns > 1)
    second, _ = make_sampler(slots=6, window=7, turns=turns)
    second._make_env = lambda: OtherEnv(what, turns)  # type: ignore[assignment, return-value]
    second._unused_envs = []
    second.add_tickets(replace(ticket, begun=one) for ticket, one in with_tickets(begun))
    assert second.num_open_tokens == sum(one.open_tokens for one in begun) > 0
    fragments = second.run(1)
    scores = second.pop_scores()
    refused = {one.episode_id for one in begun if what == "prompt" or one.turns}
    assert scores.left_out.keys() | scores.failed_prompts.keys() == refused
    assert {failure.kind for failure in scores.failures} == {"not_rebuilt"}
    assert {one.episode_id for one in fragments if one.truncated} == scores.left_out.keys()
    assert sum(map(len, fragments)) + second.num_open_tokens - second.num_tokens_sampled == first.num_open_tokens


def with_tickets(begun: list[BegunEpisode]) -> list[tuple[Ticket, BegunEpisode]]:
    return [(Ticket(one.episode_id, one.episode_id, one.episode_id), one) for one in begun]


def test_episodes_that_go_on_come_before_those_that_wait() -> None:
    first, _ = make_sampler(slots=3, window=7, mean=40.0)
    first.add_tickets(tickets(3, first=100))
    first.run(4)
    going_on = [replace(ticket, begun=one) for ticket, one in with_tickets(first.begun())]
    second, _ = make_sampler(slots=3, window=7, mean=40.0)
    second.add_tickets(tickets(20))
    second.add_tickets(going_on)
    second.run(1)
    assert [one.episode_id for one in second.begun()] == [100, 101, 102]


def test_no_two_things_are_done_without_a_sign_of_life() -> None:
    """Each may take long: an engine step, a construction, reset and step of an environment."""
    done, most, total = [0], [0], Counter[str]()

    def do(what: str) -> None:
        done[0] += 1
        total[what] += 1

    def alive() -> None:
        most[0] = max(most[0], done[0])
        done[0] = 0

    class Working(CountingEnv):
        def __init__(self, turns: int) -> None:
            do("env")
            super().__init__(turns)

        def reset(self, **arguments: Any) -> tuple[str, dict[str, Any]]:
            do("reset")
            return super().reset(**arguments)

        def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            do("step")
            return super().step(text)

    class WorkingEngine(SimulatedEngine):
        def step(self) -> Any:
            do("engine")
            return super().step()

    def make() -> Sampler:
        return Sampler(
            WorkingEngine(draw_lognormal_length(6.0, 0.5), seed=0),
            lambda: Working(3),
            IntegerChat(),  # type: ignore[arg-type]
            num_slots=4,
            limits=EpisodeLimits(8, 64, 8),
            sampling=Sampling(1.0),
            alive=alive,
        )

    sampler = make()
    sampler.tickets.extend(tickets(12))
    sampler.run(16)
    begun = [one for one in sampler.begun() if one.turns]
    assert begun
    steps = total["step"]
    sampler = make()
    sampler.add_tickets(Ticket(one.episode_id, one.episode_id, one.episode_id, one) for one in begun)
    sampler.run(1)
    assert total["step"] >= steps + sum(len(one.turns) for one in begun)
    sampler.run_until_empty()
    alive()
    assert set(total) == {"env", "reset", "step", "engine"}
    assert most[0] == 1


class AnsweredEnv(CountingEnv):
    """Its problems have known answers, but for those of odd seeds."""

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        text, info = super().reset(seed=seed)
        return text, info | ({} if seed % 2 else {"answer": str(seed)})


class DigitChat(IntegerChat):
    def plain(self, text: str) -> list[int]:
        return [int(digit) for digit in text]


@pytest.mark.parametrize("tells", [True, False])
def test_windows_hold_the_known_answer_for_a_critic_that_sees_it_also_where_they_go_on(tells: bool) -> None:
    def sampler() -> Sampler:
        engine = SimulatedEngine(draw_lognormal_length(30.0, 0.1), seed=0)
        limits, sampling = EpisodeLimits(8, 64, 8), Sampling(1.0)
        arguments: dict[str, Any] = {"num_slots": 4, "limits": limits, "sampling": sampling, "tells_answers": tells}
        return Sampler(engine, AnsweredEnv, DigitChat(), **arguments)  # type: ignore[arg-type]

    first, second = sampler(), sampler()
    tickets = [Ticket(number, number, 100 + number) for number in range(4)]
    first.add_tickets(tickets)
    fragments = first.run(12)
    second.add_tickets([replace(ticket, begun=one) for ticket, one in zip(tickets, first.begun(), strict=True)])
    fragments += second.run_until_empty()
    assert len(fragments) > 8
    for fragment in fragments:
        seed = 100 + fragment.episode_id
        expected = [int(digit) for digit in str(seed)] if tells and seed % 2 == 0 else []
        assert fragment.answer.tolist() == expected
