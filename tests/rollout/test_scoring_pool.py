"""Scoring workers: real processes, a simulated engine. Nothing that a user's code does costs more than its own response."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import scoring_examples
from helpers import IntegerChat

from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment, fragments_from_table, table_from_fragments
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout import pooled_sampler
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.pooled_sampler import IDLE_S, PooledSampler
from tppo_rl.rollout.responses import Failure, Scores
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sampler import EpisodeLimits, evaluate_prompts
from tppo_rl.rollout.scoring_jobs import Problem, PromptText, ResetJob, StepJob
from tppo_rl.rollout.scoring_pool import ScoringPool
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost, draw_lognormal_length

DEADLINE_S = 1.5
MakePool = Callable[..., tuple[ScoringPool, Options]]


@pytest.fixture
def example(tmp_path: Path) -> str:
    """A file of the user's, outside of the repository."""
    return shutil.copy(Path(scoring_examples.__file__), tmp_path / "my_scoring.py")


@pytest.fixture
def make_pool(example: str) -> Iterator[MakePool]:
    pools: list[ScoringPool] = []

    def make(workers: int = 2, *, env_config: Any = None, reward: Any = "environment", **values: Any) -> Any:
        options = Options.of(
            {
                "env": f"{example}:Faulty-v0",
                "env_config": env_config or {},
                "rewards": reward if reward == "environment" else f"{example}:{reward}",
                "scoring_workers": workers,
                "scoring_deadline_s": DEADLINE_S,
                "scoring_memory_gib": 0.2,
                "max_response_length": 64,
            }
            | values
        )
        pools.append(ScoringPool(options, workers, ("train", "heldout")))
        pools[-1].wait_until_ready()
        return pools[-1], options

    yield make
    for pool in pools:
        pool.close()


def sampler_of(
    pool: ScoringPool, options: Options, engine: SimulatedEngine, *, slots: int = 8, window: int | None = 8, cap: int = 64,
    evaluation: bool = False, name: str = "train", chat: Any = None,
) -> PooledSampler:  # fmt: skip
    return PooledSampler(
        engine, pool, chat or IntegerChat(), split="heldout" if evaluation else "train", num_slots=slots,
        limits=EpisodeLimits(8, cap, None if evaluation else window), sampling=Sampling(1.0),
        rewards=Rewards.of_evaluation() if evaluation else Rewards.of(options, calls=False), name=name,
        answers_all=evaluation,
    )  # fmt: skip


def tickets(count: int, first: int = 0) -> list[Ticket]:
    return [Ticket(index, index, index) for index in range(first, first + count)]


def check_ledger(sampler: PooledSampler, fragments: list[Fragment], scores: Scores, episodes: int) -> Ledger:
    """Every sampled token ends in exactly one account, and no prompt waits for ever."""
    ledger = Ledger(seed=0)
    ledger.lease(1, episodes)
    ledger.report(1, fragments, num_tokens_sampled=sampler.num_tokens_sampled, num_open_tokens=sampler.num_open_tokens)
    ledger.drop_prompts(1, scores.failed_prompts)
    kept = 0
    for fragment in fragments:
        if fragment.finished and fragment.episode_id in scores.left_out:
            ledger.record_dropped(scores.left_out[fragment.episode_id], len(fragment))
        else:
            kept += len(fragment)
    ledger.check(queue_tokens=kept)
    assert ledger.state()["returned"] == []
    return ledger


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 3.0) -> bool:
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.parametrize("reward", ["environment", "by_problem"])
def test_a_fault_costs_one_response_and_is_counted_under_its_own_name(make_pool: MakePool, reward: str) -> None:
    faulty = "step" if reward == "environment" else ""
    pool, options = make_pool(2, env_config={"faulty": faulty}, reward=reward)
    sampler = sampler_of(pool, options, SimulatedEngine(draw_lognormal_length(15.0, 0.5)))
    sampler.tickets.extend(tickets(16))
    fragments = sampler.run_until_empty()
    scores = sampler.pop_scores()
    faults = dict(zip(("raise", "hang", "eat", "exit"), ("exception", "timeout", "memory", "died"), strict=True))
    name = reward
    assert Counter((failure.name, failure.kind) for failure in scores.failures) == {
        (name, kind): 2 for kind in faults.values()
    }
    bad = {seed for seed in range(16) if scoring_examples.FAULTS[seed % 8] != "fine"}
    assert scores.left_out == dict.fromkeys(bad, "reward_failed")
    assert sorted(f.episode_id for f in fragments if f.finished) == list(range(16))
    check_ledger(sampler, fragments, scores, 16)
    for fragment in fragments:
        if fragment.finished and fragment.episode_id not in bad:
            total = float(fragment.context_rewards.sum() + fragment.rewards.sum())
            length = len(fragment.context) + len(fragment.tokens) - fragment.prompt_length
            assert total == (float(length % 2 == 0) if reward == "environment" else length)
    assert pool.num_killed["timeout"] >= 2


def test_a_reset_that_fails_drops_its_prompt(make_pool: MakePool) -> None:
    pool, options = make_pool(2, env_config={"faulty": "reset"})
    sampler = sampler_of(pool, options, SimulatedEngine(draw_lognormal_length(15.0, 0.5)))
    sampler.tickets.extend(tickets(8))
    fragments = sampler.run_until_empty()
    scores = sampler.pop_scores()
    assert scores.failed_prompts == {seed: seed for seed in (1, 2, 3, 4)}
    assert Counter(failure.kind for failure in scores.failures) == dict.fromkeys(
        ("exception", "timeout", "memory", "died"), 1
    )
    assert sorted(f.episode_id for f in fragments if f.finished) == [0, 5, 6, 7]
    assert check_ledger(sampler, fragments, scores, 8).num_failed_prompts == 4


def test_an_evaluation_answers_every_ticket(make_pool: MakePool) -> None:
    pool, options = make_pool(2, env_config={"faulty": "reset"})
    sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 6), evaluation=True)
    episodes = evaluate_prompts(sampler, tickets(8))
    assert [episode.prompt_index for episode in episodes] == list(range(8))
    assert [episode.correct for episode in episodes] == [True, False, False, False, False, True, True, True]
    assert [len(e) for e in fragments_from_table(table_from_fragments(episodes))] == [6, 0, 0, 0, 0, 6, 6, 6]
    assert sampler.pop_scores().failed_responses == 4


@pytest.mark.parametrize("seconds", [0.05, 0.3])
@pytest.mark.slow
def test_slow_answers_cost_the_engine_nothing(make_pool: MakePool, seconds: float) -> None:
    workers = 4 if seconds < 0.1 else 16
    pool, options = make_pool(workers, env_config={"seconds": seconds})
    engine = SimulatedEngine(draw_lognormal_length(60.0, 0.5), cost=StepCost(base=0.02), sleep=True, seed=3)
    sampler = sampler_of(pool, options, engine, slots=32, cap=256, window=16)
    sampler.tickets.extend(tickets(1000))
    sampler.run(20)
    steps, productive = sampler.num_slot_steps, sampler.num_productive_slot_steps
    started, fragments = time.monotonic(), []
    for _ in range(8):
        fragments += sampler.run(25)
    elapsed = time.monotonic() - started
    occupancy = (sampler.num_productive_slot_steps - productive) / (sampler.num_slot_steps - steps)
    answered = sum(fragment.finished for fragment in fragments)
    print(f"{answered} answers of {seconds} s, occupancy {occupancy:.4f}, {elapsed / 200 * 1e3:.1f} ms a step of 20 ms")
    assert sampler.num_slot_steps - steps == 200 * 32
    assert occupancy >= 0.98
    assert answered >= 60
    # In one process these answers alone would take longer than all the steps.
    assert elapsed < 200 * 0.02 + answered * seconds / 2


def test_a_slow_reset_is_made_ahead_of_need(make_pool: MakePool) -> None:
    pool, options = make_pool(4, env_config={"reset_seconds": 0.05})
    engine = SimulatedEngine(draw_lognormal_length(40.0, 0.3), cost=StepCost(base=0.02), sleep=True)
    sampler = sampler_of(pool, options, engine, slots=8)
    sampler.tickets.extend(tickets(1000))
    sampler.run(60)
    steps, productive = sampler.num_slot_steps, sampler.num_productive_slot_steps
    sampler.run(60)
    assert (sampler.num_productive_slot_steps - productive) / (sampler.num_slot_steps - steps) >= 0.98


def test_what_workers_did_when_is_told_once(make_pool: MakePool) -> None:
    pool, options = make_pool(1, env_config={"reset_seconds": 0.05})
    began = time.time()
    sampler = sampler_of(pool, options, SimulatedEngine(lambda rng: 4), slots=1)
    sampler.tickets.extend(tickets(2))
    sampler.run_until_empty()
    spans = pool.pop_spans("env-runner 1")
    assert {span.track for span in spans} == {"env-runner 1, scoring worker 0"}
    assert {"reset", "step"} <= {span.name for span in spans}
    assert all(began <= span.start and span.start + span.seconds <= time.time() for span in spans)
    assert min(span.seconds for span in spans if span.name == "reset") >= 0.05
    assert pool.pop_spans("env-runner 1") == []


def test_who_waits_for_workers_shows_signs_of_life(make_pool: MakePool) -> None:
    """A deadline may be longer than the silence after which an env-runner counts as hung."""
    pool, options = make_pool(1, env_config={"seconds": 1.5})
    sampler = sampler_of(pool, options, SimulatedEngine(lambda rng: 4), slots=1)
    alive: list[float] = []
    sampler._alive = lambda: alive.append(time.monotonic())
    sampler.tickets.extend(tickets(1))
    sampler.run(5, patient=True)
    assert len(alive) > 4 + 1.5 / (2 * IDLE_S)
    assert not sampler.num_pending
    sampler.tickets.extend(tickets(1, first=1))
    while not sampler.num_pending:
        sampler.run(4)
    alive.clear()
    sampler.cut_windows()
    assert len(alive) > 1.5 / (4 * IDLE_S)


class EchoingChat(IntegerChat):
    """What the environment says becomes tokens, so that a test sees which turns it knew."""

    def user_turn(self, text: str, *, is_closed: bool = True) -> list[int]:
        assert is_closed
        return [100 + int(number) for number in text.split()]


@pytest.mark.parametrize("restarts", [(), (4, 9, 15)], ids=["", "restarted"])
@pytest.mark.parametrize("workers", [1, 3])
def test_episodes_of_several_turns_go_on_with_their_tokens_intact(
    make_pool: MakePool, workers: int, restarts: tuple[int, ...]
) -> None:
    """Also where env-runner, engine and workers are others from then on."""
    pool, options = make_pool(workers, env_config={"turns": 3, "seconds": 0.01})
    engine = SimulatedEngine(draw_lognormal_length(9.0, 0.5), seed=1)
    sampler = sampler_of(pool, options, engine, slots=4, cap=400, window=6, chat=EchoingChat())
    sampler.tickets.extend(tickets(24))
    fragments: list[Fragment] = []
    versions = 0
    while sampler._has_work:
        if versions in restarts:
            begun, sampled = {one.episode_id: one for one in sampler.begun()}, sampler.num_tokens_sampled
            assert sum(one.open_tokens for one in begun.values()) == sampler.num_open_tokens
            open_or_waiting = sampler.episode_ids
            sampler.abandon()
            pool, _ = make_pool(workers, env_config={"turns": 3, "seconds": 0.01})
            engine = SimulatedEngine(draw_lognormal_length(9.0, 0.5), seed=2 + versions)
            engine.load_weights({}, versions)
            sampler = sampler_of(pool, options, engine, slots=4, cap=400, window=6, chat=EchoingChat())
            sampler.num_tokens_sampled = sampled
            sampler.add_tickets(Ticket(number, number, number, begun.get(number)) for number in open_or_waiting)
        fragments += sampler.run(5)
        assert sum(map(len, fragments)) + sampler.num_open_tokens == sampler.num_tokens_sampled
        oldest = sampler.oldest_open_version
        assert oldest is None or oldest <= engine.version
        versions += 1
        engine.load_weights({}, versions)
    check_ledger(sampler, fragments, sampler.pop_scores(), 24)
    windows = Counter((fragment.episode_id, fragment.window_index) for fragment in fragments)
    assert set(windows.values()) == {1}
    last = {fragment.episode_id: fragment for fragment in fragments if fragment.finished}
    assert sorted(last) == list(range(24))
    for episode, fragment in last.items():
        tokens = np.concatenate([fragment.context, fragment.tokens])[fragment.prompt_length :]
        sampled = np.concatenate([fragment.context_sampled, fragment.sampled])[fragment.prompt_length :].astype(bool)
        said = tokens[~sampled].tolist()
        assert said[0] == said[2] == 100 + episode
        # The length that the environment counted is that of all turns before.
        (places,) = np.flatnonzero(~sampled)[None]
        first = int(places[0])
        second = int(places[2]) - 2
        assert said[1::2] == [100 + first, 100 + second]


def test_another_worker_replays_what_a_dead_one_knew(make_pool: MakePool) -> None:
    pool, _ = make_pool(1, env_config={"turns": 3})
    results: list[Any] = []

    def ask(job: Any) -> Any:
        results.clear()
        pool.submit(job, results.append)
        until = time.monotonic() + 20
        while not results and time.monotonic() < until:
            pool.wait(0.1)
        return results[0]

    problem = Problem(pool.new_episode(), "train", 5)
    prompt = ask(ResetJob(problem))
    assert isinstance(prompt, PromptText)
    assert (prompt.text, prompt.wrong_reward) == ("problem 5", -0.5)
    assert ask(StepJob(problem, prompt.text, (), "xx", 1)).text == "5 2"
    (pid,) = pool.pids
    os.kill(pid, 9)
    assert gone([pid])
    until = time.monotonic() + 20
    while pool.pids == [pid] and time.monotonic() < until:
        time.sleep(0.01)
    assert ask(StepJob(problem, prompt.text, ("xx",), "xxx", 1)).text == "5 5"
    assert ask(StepJob(problem, prompt.text, ("xx", "xxx"), "xxxx", 1)).correct is True
    assert ask(StepJob(problem, "another problem", (), "xx", 1)).kind == "not_repeatable"
    too_many = ask(StepJob(problem, prompt.text, ("x", "x", "x"), "x", 1))
    assert isinstance(too_many, Failure)
    assert too_many.kind == "not_repeatable"


def test_nothing_waits_longer_than_its_deadline(make_pool: MakePool) -> None:
    pool, _ = make_pool(2, env_config={"faulty": "reset"})
    ended: list[Any] = []
    for _ in range(2):
        pool.submit(ResetJob(Problem(pool.new_episode(), "train", 2)), ended.append)
    # The parent is busy elsewhere: the deadline holds all the same.
    pids = pool.pids
    begin = time.monotonic()
    while any(map(alive, pids)) and time.monotonic() - begin < 30:
        time.sleep(0.1)
    assert not any(map(alive, pids))
    while len(ended) < 2:
        pool.wait(0.1)
    assert pool.num_killed == {"timeout": 2}


def test_a_time_out_is_retried_once_and_wrong_gives_the_wrong_reward(make_pool: MakePool) -> None:
    for policy, killed in (("retry", 2), ("wrong", 1)):
        pool, options = make_pool(2, env_config={"faulty": "step"}, on_reward_failure=policy)
        sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 5), slots=2)
        sampler.tickets.extend([Ticket(2, 2, 2), Ticket(8, 8, 8)])
        finished = {f.episode_id: f for f in sampler.run_until_empty() if f.finished}
        assert pool.num_killed["timeout"] == killed
        scores = sampler.pop_scores()
        assert scores.failed_responses == 1
        if policy == "wrong":
            assert finished[2].correct is False
            assert float(finished[2].rewards.sum()) == -0.5
        else:
            assert scores.left_out == {2: "reward_failed"}


def test_cut_windows_waits_for_answers_and_rewards(make_pool: MakePool) -> None:
    pool, options = make_pool(2, env_config={"seconds": 0.1, "turns": 2}, reward="slow")
    sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 4), slots=6, window=16)
    sampler.tickets.extend(tickets(40))
    fragments: list[Fragment] = []
    for _ in range(3):
        fragments += sampler.run(16)
        fragments += sampler.cut_windows()
        assert sampler.num_open_tokens == 0
        assert sampler.oldest_open_version is None
        assert sum(map(len, fragments)) == sampler.num_tokens_sampled
    assert sampler.num_pending == 0
    fragments += sampler.run_until_empty()
    assert sorted(f.episode_id for f in fragments if f.finished) == list(range(40))
    assert all(float(f.rewards.sum()) == 1.0 for f in fragments if f.finished)


def test_pending_tokens_hold_up_the_update_that_would_make_them_stale(make_pool: MakePool) -> None:
    pool, options = make_pool(3, env_config={"seconds": 1.2})
    engine = SimulatedEngine(lambda _: 4)
    sampler = sampler_of(pool, options, engine, slots=2)
    sampler.tickets.extend(tickets(2))
    fragments: list[Fragment] = []
    while sampler.num_tokens_sampled < 8:
        fragments += sampler.run(1)
    engine.load_weights({}, 1)
    assert (sampler.num_open_tokens, sampler.oldest_open_version) == (8, 0)
    while sampler.oldest_open_version is not None:
        fragments += sampler.run(32)
    assert [len(fragment) for fragment in fragments] == [4, 4]


def test_a_run_with_nothing_to_generate_comes_back(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands in for the time that an answer takes: it moves only where the sampler waits."""
    pool, options = make_pool(1, env_config={"seconds": 3.0})
    sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 4), slots=2)
    sampler.tickets.extend(tickets(2))
    while sampler.num_tokens_sampled < 8:
        sampler.run(1)
    now, waits = 0.0, []

    def wait(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds / 2

    monkeypatch.setattr(pool, "wait", wait)
    monkeypatch.setattr(pooled_sampler.time, "monotonic", lambda: now)
    assert sampler.run(1000) == []
    assert 1 < len(waits) < 1000
    assert sum(waits) / 2 == now == pytest.approx(pooled_sampler.IDLE_S, rel=1e-3)


def test_suspending_evaluating_and_abandoning(make_pool: MakePool) -> None:
    pool, options = make_pool(2, env_config={"seconds": 0.02, "turns": 2})
    engine = SimulatedEngine(draw_lognormal_length(12.0, 0.5))
    sampler = sampler_of(pool, options, engine, slots=4, cap=300)
    sampler.tickets.extend(tickets(12))
    fragments = sampler.run(20)
    sampler.suspend()
    evaluation = sampler_of(pool, options, engine, slots=4, cap=300, evaluation=True, name="evaluation")
    for _ in range(2):
        episodes = evaluate_prompts(evaluation, tickets(5))
        assert [episode.prompt_index for episode in episodes] == list(range(5))
        assert all(episode.correct is not None for episode in episodes)
    sampler.resume()
    fragments += sampler.run_until_empty()
    check_ledger(sampler, fragments, sampler.pop_scores(), 12)
    sampler.tickets.extend(tickets(12, first=20))
    sampler.run(20)
    assert sampler.episode_ids
    sampler.abandon()
    assert (sampler.episode_ids, sampler.num_open_tokens, sampler.num_waiting_tickets) == ([], 0, 0)
    sampler.tickets.extend(tickets(3, first=40))
    assert {fragment.episode_id for fragment in sampler.run_until_empty()} == {40, 41, 42}


def test_functions_of_verls_contract_and_what_they_log(make_pool: MakePool) -> None:
    pool, options = make_pool(2, reward="compute_score")
    sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 5), slots=4)
    sampler.tickets.extend(tickets(10))
    fragments = sampler.run_until_empty()
    assert all(float(f.rewards.sum()) == 2.0 for f in fragments if f.finished)
    assert sampler.pop_scores().sums == {"compute_score": (20.0, 10), "compute_score.length": (50.0, 10)}


def test_a_text_that_no_tokenizer_takes_is_a_failure(make_pool: MakePool) -> None:
    pool, options = make_pool(1, env_config={"turns": 2, "surrogate": True})
    sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 5), slots=2)
    sampler.tickets.extend(tickets(2))
    sampler.run_until_empty()
    assert [failure.kind for failure in sampler.pop_scores().failures] == ["exception"] * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": "CannotBeMade"}, "no key for the judge's server"),
        ({"reward": "missing"}, r"has no 'missing'"),
        ({"env_config": {"colour": 3}}, "colour"),
        ({"scoring_memory_gib": 0.01}, r"scoring_memory_gib=0.01: a worker takes"),
    ],
)
def test_what_cannot_be_built_is_one_error_at_the_start(
    make_pool: MakePool, values: dict[str, Any], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises((OptionError, TypeError, ValueError, RuntimeError), match=message):
        make_pool(2, **values)
    assert time.monotonic() - started < 20


def test_processes_are_gone_after_close(make_pool: MakePool) -> None:
    pool, _ = make_pool(2, env_config={"faulty": "step"})
    pids = pool.pids
    problem = Problem(pool.new_episode(), "train", 2)
    pool.submit(StepJob(problem, "problem 2", (), "x", 1), lambda _: None)
    time.sleep(0.2)
    assert all(map(alive, pids))
    pool.close()
    assert gone(pids, 0.5)


def test_processes_are_gone_when_the_parent_is_killed(example: str) -> None:
    program = f"""
import time
from tppo_rl.config.options import Options
from tppo_rl.rollout.scoring_jobs import Problem, ResetJob
from tppo_rl.rollout.scoring_pool import ScoringPool
values = {{"env": "{example}:Faulty-v0", "env_config": {{"faulty": "reset"}}, "scoring_deadline_s": 60.0}}
pool = ScoringPool(Options.of(values), 2)
pool.wait_until_ready()
pool.submit(ResetJob(Problem(0, "train", 2)), print)
time.sleep(0.3)
print(*pool.pids, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    # One of them is in an endless loop, and reads nothing.
    assert gone(pids)


def test_a_step_of_sync_mode_waits_for_its_prompts(make_pool: MakePool) -> None:
    pool, options = make_pool(2, env_config={"reset_seconds": 0.5})
    engine = SimulatedEngine(lambda _: 100)
    sampler = sampler_of(pool, options, engine, slots=2)
    sampler.tickets.extend(tickets(2))
    assert sampler.run(8) == []
    assert engine.num_steps == 0
    sampler.run(8, patient=True)
    assert engine.num_steps == 8


def test_an_environment_that_the_parent_registered_is_found_by_its_class(make_pool: MakePool) -> None:
    gymnasium.register("Mine-v0", entry_point=scoring_examples.FaultyEnv)
    try:
        pool, options = make_pool(1, env="Mine-v0")
        sampler = sampler_of(pool, options, SimulatedEngine(lambda _: 4))
        sampler.tickets.extend(tickets(3))
        assert len(sampler.run_until_empty()) == 3
        gymnasium.register("Nowhere-v0", entry_point=partial(scoring_examples.FaultyEnv))
        with pytest.raises(OptionError, match=r"^env='Nowhere-v0': .*set scoring_workers to 0$"):
            make_pool(1, env="Nowhere-v0")
    finally:
        gymnasium.registry.pop("Mine-v0", None)
        gymnasium.registry.pop("Nowhere-v0", None)


def test_an_answered_episode_goes_before_new_prompts_and_waits_without_an_open_window(make_pool: MakePool) -> None:
    pool, options = make_pool(1, env_config={"turns": 2})
    lengths = iter([4, 12, 4, 4, 4, 4])
    engine = SimulatedEngine(lambda _: next(lengths))
    sampler = sampler_of(pool, options, engine, slots=1, window=16)
    sampler.tickets.extend(tickets(3))
    while sampler.num_tokens_sampled < 4:
        assert sampler.run(1) == []
        # The next prompt is made meanwhile.
        time.sleep(0.05)
    engine.load_weights({}, 1)
    fragments: list[Fragment] = []
    while sampler.num_tokens_sampled < 8:
        fragments += sampler.run(1)
        time.sleep(0.05)
    # Episode 0 has its answer, but the slot is taken.
    assert list(sampler._open) == ["train-1"]
    while not fragments:
        assert sampler.num_tokens_sampled < 15
        time.sleep(0.05)
        fragments += sampler.run(1)
    assert [(f.episode_id, len(f), f.finished) for f in fragments] == [(0, 4, False)]
    assert sampler.oldest_open_version == 1, "the bound on staleness no longer waits for episode 0"
    while "train-1" in sampler._open:
        fragments += sampler.run(1)
    assert list(sampler._open) == ["train-0"]
    assert sampler.num_waiting_tickets == 1
    fragments += sampler.run_until_empty()
    check_ledger(sampler, fragments, sampler.pop_scores(), 3)
    assert sorted(f.episode_id for f in fragments if f.finished) == [0, 1, 2]
