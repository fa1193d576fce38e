"""The pipeline on real vLLM and real Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from data_sets import write_lines
from ray.tune.registry import get_trainable_cls
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tppo_rl.algorithms import TPPO, TPPOConfig
from tppo_rl.algorithms.checkpoint_contents import check_restorable
from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.begun_episodes import begun_from_table
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.fragments import FRAGMENT_SCHEMA, Fragment
from tppo_rl.core.metric_table import METRICS
from tppo_rl.core.prompts import Ticket
from tppo_rl.experiment.rollout_view import read_rollouts
from tppo_rl.observability.boundary_errors import read_boundary_errors
from tppo_rl.rollout.ledger import Ledger

pytestmark = pytest.mark.integration

KNOWN_METRICS = {metric.name for metric in METRICS}
OF_OPTIONS = {
    "critic/warmup_responses",
    "critic/difference_slope",
    "hindsight/advantage_mean",
    "policy/positive_lm_loss",
    "policy/reference_kl",
    "policy/cap_fraction",
    "policy/sequence_ratio",
    "policy/unfinished_scale",
    "rollout/complete_groups",
    "rollout/epoch",
    "rollout/sampling_rounds",
    "rollout/zero_variance_fraction",
}
"""Metrics of parts that are off by default, of environments with an end to their problems, and of a critic whose values differ."""


def assert_accounts_add_up(algorithm: TPPO, result: dict[str, Any]) -> None:
    tokens = result["tokens"]
    dropped = sum(tokens["dropped_by_reason"].values())
    assert tokens["sampled"] == tokens["trained"] + tokens["queued"] + tokens["in_flight"] + dropped
    assert algorithm.loop.rollouts.record_trained(0, 0).unaccounted == 0


def test_async_run_survives_a_lost_env_runner_and_a_restore(small_config: TPPOConfig, tmp_path: Path) -> None:
    recreated: list[list[int]] = []
    small_config.callbacks(
        on_env_runners_recreated=lambda env_runner_indices, **_: recreated.append(env_runner_indices)
    )
    algorithm = small_config.reporting(rollout_log_fragments=10_000).build_algo()
    for iteration in range(4):
        result = algorithm.train()
        assert_accounts_add_up(algorithm, result)
        assert result["staleness"]["max"] <= small_config.max_staleness
        if iteration == 0:
            # The new critic says of all states what the first evaluation found.
            expected = min(max(result["heldout_before"]["sampled"]["return_mean"], 0.01), 0.99)
            assert result["critic"]["value_mean"] == pytest.approx(expected, abs=1e-3)
    assert result["run"]["slot_occupancy_lifetime"] >= 0.95
    assert result["heldout_before"]["sampled"]["n"] == 40
    assert result["tokens"]["dropped"] == 0
    assert result["num_env_steps_sampled_lifetime"] == result["tokens"]["sampled"] >= 4 * 400
    assert result["run"]["largest_fresh_log_prob_diff"] < 1e-4
    _check_files(Path(small_config.results_folder))
    assert_boundary_errors_are_those_of_the_result(Path(small_config.results_folder), result)

    open_before = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: [episode.all_tokens() for episode in runner._sampler._open.values()], local_env_runner=False
    )
    algorithm.evaluate()
    open_after = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: [episode.all_tokens() for episode in runner._sampler._open.values()], local_env_runner=False
    )
    assert len(open_before[0]) > 8
    assert open_after == open_before

    incarnation = algorithm.loop.rollouts._requests[1].incarnation
    told = {episode.episode_id for episode in algorithm.loop.rollouts._told.all()}
    assert len(told) > 8
    _kill_env_runner(algorithm)
    result = _train_until_restarted(algorithm, incarnation)
    assert recreated == [[1]]
    _assert_episodes_went_on(Path(small_config.results_folder), told)
    assert_accounts_add_up(algorithm, result)
    assert result["staleness"]["max"] <= small_config.max_staleness
    assert result["tokens"]["dropped"] == 0, "its episodes go on"
    assert result["mismatch"]["probe_log_prob_diff"] < 1e-4

    checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    saved = algorithm.get_state()
    algorithm.stop()
    _restore_and_go_on(small_config, checkpoint, saved, result)


def assert_boundary_errors_are_those_of_the_result(folder: Path, result: dict[str, Any]) -> None:
    width, by_iteration = read_boundary_errors(folder)
    cells = by_iteration[result["training_iteration"]]
    count = sum(cell.count for cell in cells)
    assert sum(cell.held for cell in cells) / count == pytest.approx(result["critic"]["boundary_error_held"])
    assert sum(cell.bootstrap for cell in cells) / count == pytest.approx(result["critic"]["boundary_error_bootstrap"])
    # Windows of 12 tokens: the end of the first stands at position 12.
    assert {cell.position_bin for cell in cells} == {12 * (cell.window_index + 1) // width for cell in cells}


def _check_files(folder: Path) -> None:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    # The parts of the reward have no rows: their names are the user's.
    assert {tag for tag in tags if not tag.startswith("rewards/")} <= KNOWN_METRICS
    assert tags >= KNOWN_METRICS - OF_OPTIONS, "every metric of the table must be found in what a run logs"
    assert any(tag.startswith("rollouts") for tag in events.Tags()["tensors"])
    parquet = sorted((folder / "rollouts").glob("*.parquet"))
    assert 1 <= len(parquet) <= 4, "an iteration whose fragments all waited in the queue has none of its own"
    assert pq.read_schema(parquet[0]).equals(FRAGMENT_SCHEMA)


def _assert_episodes_went_on(folder: Path, told: set[int]) -> None:
    """Windows that were trained after the loss follow upon those that were trained before it."""
    fragments = [kept.fragment for kept in read_rollouts(folder, 1, None)]
    windows: dict[int, dict[int, Fragment]] = {}
    for fragment in fragments:
        assert fragment.window_index not in windows.setdefault(fragment.episode_id, {}), "a window was sampled twice"
        windows[fragment.episode_id][fragment.window_index] = fragment
    pairs = 0
    for number in told & windows.keys():
        for index, window in windows[number].items():
            if (before := windows[number].get(index - 1)) is not None:
                np.testing.assert_array_equal(window.context, np.concatenate([before.context, before.tokens]))
                pairs += 1
    assert pairs > 0


def _kill_env_runner(algorithm: TPPO) -> None:
    manager = algorithm.env_runner_group._worker_manager
    ray.kill(manager.actors()[1], no_restart=False)


def _was_proven(result: dict[str, Any]) -> bool:
    return result["mismatch"].get("probe_log_prob_diff") is not None


def _train_until_restarted(algorithm: TPPO, before: str | None) -> dict[str, Any]:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        result = algorithm.train()
        algorithm.loop.rollouts.ledger.check(queue_tokens=algorithm.loop.rollouts.queue.num_tokens)
        if algorithm.loop.rollouts._requests[1].incarnation not in (None, before) and _was_proven(result):
            return result
    raise AssertionError("no restarted env-runner was given weights and proven to hold them")


def _episodes_sent(algorithm: TPPO) -> list[int]:
    """Ids of the episodes that go out to env-runners from now on."""
    sent: list[int] = []
    ledger = algorithm.loop.rollouts.ledger
    lease = ledger.lease

    def noted(env_runner: int, count: int) -> list[Ticket]:
        tickets = lease(env_runner, count)
        sent.extend(ticket.episode_id for ticket in tickets)
        return tickets

    ledger.lease = noted  # type: ignore[method-assign]
    return sent


def _restore_and_go_on(config: TPPOConfig, checkpoint: str, saved: dict[str, Any], last_result: dict[str, Any]) -> None:
    restored = config.copy(copy_frozen=False).build_algo()
    restored.restore_from_path(checkpoint)
    state = restored.get_state()
    for part in ("policy", "critic"):
        before = saved["learner_group"]["learner"]["rl_module"]["default_policy"][part]
        after = state["learner_group"]["learner"]["rl_module"]["default_policy"][part]
        for name, weight in before.items():
            np.testing.assert_array_equal(weight, after[name])
    ledger = saved["tppo"]["ledger"]
    counts = restored.loop.rollouts.ledger.counts()
    assert counts.sampled == ledger["sampled"]
    assert counts.trained == ledger["trained"]
    assert restored.loop.rollouts.queue.num_tokens == ledger["queued"]
    sent = _episodes_sent(restored)
    result = restored.train()
    assert_accounts_add_up(restored, result)
    assert result["training_iteration"] == last_result["training_iteration"] + 1
    assert result["heldout_before"] == last_result["heldout_before"]
    assert result["tokens"]["sampled"] > ledger["sampled"]
    assert result["staleness"]["max"] <= config.max_staleness
    # No prompt is skipped: those that were open or unused at the checkpoint go out before any new one, open ones first.
    returned, next_episode = [*ledger["leased"]["1"], *ledger["returned"]], ledger["next_episode"]
    begun = begun_from_table(ledger["begun"])
    assert [episode.episode_id for episode in begun] == returned[: len(begun)]
    assert sum(map(len, (episode.window for episode in begun))) == counts.in_flight > 0
    assert result["tokens"]["dropped"] == 0
    assert min(len(returned), len(sent)) > 0
    assert sent == [*returned, *range(next_episode, next_episode + len(sent))][: len(sent)]
    restored.stop()


def test_sync_trains_fragments_of_one_version_with_ratios_of_one(small_config: TPPOConfig) -> None:
    config = small_config.pipeline(mode="sync").env_runners(num_env_runners=0)
    config = config.evaluation(evaluation_interval=250, evaluation_interval_unit="tokens")
    algorithm = config.build_algo()
    for iteration in range(3):
        result = algorithm.train()
        # 192, 384 and 576 tokens
        assert ("evaluation" in result) == (iteration in (1, 2))
        assert_accounts_add_up(algorithm, result)
        assert result["staleness"]["max"] == 0
        assert result["mismatch"]["ratio_deviation_max"] <= 1e-4
        assert result["tokens"]["queued"] == result["tokens"]["in_flight"] == 0
        assert result["tokens"]["trained"] == (iteration + 1) * 16 * 12
        assert result["rollout"]["slot_occupancy"] == 1.0
    engine = algorithm.env_runner._engine
    state = algorithm.learner_group.get_state(components="learner/rl_module", inference_only=True)
    weights = state["learner"]["rl_module"]["default_policy"]
    engine.load_weights({name: weight * 1.01 for name, weight in weights.items()}, engine.version)
    with pytest.raises(RunError, match="weight sync failed"):
        algorithm.loop.weights.verify()
    algorithm.stop()


def test_engine_and_trainer_agree_while_adapters_train(small_config: TPPOConfig) -> None:
    config = small_config.language_model(lora={"rank": 4}).training(lr=1e-2, critic_warmup_updates=0)
    algorithm = config.pipeline(mode="sync").env_runners(num_env_runners=0).build_algo()
    before = _engine_weights(algorithm)
    for _ in range(4):
        result = algorithm.train()
        assert_accounts_add_up(algorithm, result)
        assert result["mismatch"]["fresh_log_prob_diff_mean"] <= 1e-5
        assert result["mismatch"]["ratio_deviation_max"] <= 1e-4
    moved = [float(np.abs(weight - before[name]).max()) for name, weight in _engine_weights(algorithm).items()]
    assert max(moved) > 1e-2
    print(
        f"adapters: mean gap {result['mismatch']['fresh_log_prob_diff_mean']:.1e} nats, largest move {max(moved):.3f}"
    )
    algorithm.stop()


def _engine_weights(algorithm: TPPO) -> dict[str, np.ndarray]:
    state = algorithm.learner_group.get_state(components="learner/rl_module", inference_only=True)
    return dict(state["learner"]["rl_module"]["default_policy"])


@pytest.mark.slow
def test_two_learners_and_own_evaluation_env_runners(small_config: TPPOConfig) -> None:
    config = (
        small_config.pipeline(mode="sync")
        .learners(num_learners=2, num_cpus_per_learner=0.5)
        .evaluation(evaluation_num_env_runners=1)
        .env_runners(engine={"max_num_seqs": 24})
    )
    algorithm = config.build_algo()
    runs = []
    for _ in range(2):
        result = algorithm.train()
        assert_accounts_add_up(algorithm, result)
        assert result["mismatch"]["ratio_deviation_max"] <= 1e-4
        runs.append(result["run"])
    idle = runs[1]["seconds"]["env_runner_idle"] - runs[0]["seconds"]["env_runner_idle"]
    first_update = runs[0]["seconds"]["update"]
    assert 0.9 * first_update <= idle <= first_update + runs[1]["wall_s"] - runs[0]["wall_s"], "it waits for the update"
    evaluation = algorithm.evaluate()
    assert evaluation["greedy"]["n"] == 40
    slots = algorithm.eval_env_runner_group.foreach_env_runner(
        lambda runner: {sampler.num_slots for sampler in runner._evaluation_samplers.values()}, local_env_runner=False
    )
    assert slots == [{24}], "evaluations fill the engine"
    again = algorithm.evaluate()
    assert evaluation["greedy"] == again["greedy"], "greedy answers to fixed prompts depend on the weights alone"
    weights = [
        result.get() for result in algorithm.learner_group.foreach_learner(lambda learner: learner.module.get_state())
    ]
    for name, weight in weights[0]["default_policy"]["policy"].items():
        np.testing.assert_array_equal(weight, weights[1]["default_policy"]["policy"][name])
    algorithm.stop()


def test_tune_knows_the_algorithm_by_name() -> None:
    assert get_trainable_cls("TPPO") is TPPO


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "windw_length", 3), "windw_length=3: unknown option, did you mean window_length"),
        (lambda c: c.update_from_dict({"lamda_": 1.0}), "lamda_=1.0: unknown option, did you mean lambda_"),
        (lambda c: c.env_runners(window_length=97).validate(), "window_length=97: longer than max_response_length=96"),
        (lambda c: c.pipeline(max_staleness=0).validate(), "max_staleness=0"),
        (lambda c: c.training(off_policy_correction="none").validate(), "off_policy_correction='none'"),
        (lambda c: c.evaluation(evaluation_parallel_to_training=True).validate(), "evaluation_parallel_to_training"),
        (lambda c: c.environment("tppo_rl/Nothing-v0").validate(), "env='tppo_rl/Nothing-v0': unknown name"),
    ],
)
def test_the_builder_refuses_what_would_go_wrong(small_config: TPPOConfig, change: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        change(small_config)


def test_a_checkpoint_of_another_group_size_is_refused() -> None:
    """Tickets go on in the old groups: larger ones would never be complete, and the step would never end."""
    ledger = Ledger(seed=0, group_size=4).state()
    with pytest.raises(OptionError, match=r"^group_size=8: .*group_size=4"):
        check_restorable(Options.of(group_size=8), ledger, whole_responses_wait=True)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    """Its place in the data would mean other questions, and epochs would no longer have every question once."""
    source = write_lines(tmp_path / "rows.jsonl", ({"prompt": f"Double {k}.", "answer": 2 * k} for k in range(40)))
    options = Options.of(env="tppo_rl/Dataset-v0", env_config={"source": source, "answer": "answer"})
    problems = num_problems(options.environment, "train")
    check_restorable(options, Ledger(seed=0, num_problems=problems).state(), whole_responses_wait=True)
    with pytest.raises(OptionError, match=rf"num_problems={problems} for training, .*num_problems=39"):
        check_restorable(options, Ledger(seed=0, num_problems=39).state(), whole_responses_wait=True)


def test_a_checkpoint_with_windows_is_not_for_whole_responses() -> None:
    ledger = Ledger(seed=0).state()
    whole = Options.of(mode="sync", window_length=None)
    check_restorable(whole, ledger, whole_responses_wait=True)
    with pytest.raises(OptionError, match=r"^window_length=None: windows of unfinished responses wait"):
        check_restorable(whole, ledger, whole_responses_wait=False)
