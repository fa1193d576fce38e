"""The run recorder without Ray: what an iteration turns into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import make_fragment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tppo_rl.config.options import Options
from tppo_rl.core.boundaries import Boundary, ClosedBoundary
from tppo_rl.core.metric_table import METRICS
from tppo_rl.core.update_report import UpdateReport
from tppo_rl.learner.update import FRAGMENT_REPORT_SCHEMA
from tppo_rl.observability.boundary_errors import read_boundary_errors
from tppo_rl.observability.recorder import RunRecorder
from tppo_rl.rollout.evaluation import Evaluation, accuracy_statistics
from tppo_rl.rollout.ledger import TokenCounts
from tppo_rl.rollout.responses import REWARD_FAILED, Failure, Scores
from tppo_rl.rollout.statistics import RolloutStatistics
from tppo_rl.rollout.weight_sync import LogProbDiff

COUNTS = TokenCounts(sampled=30, trained=3, queued=20, in_flight=5, dropped={"resume": 2})


def recorder(folder: Path, **options: Any) -> RunRecorder:
    return RunRecorder(Options.of(options), folder, str)


def update(**metrics: float) -> UpdateReport:
    values = {"trained_tokens": 3.0, "staleness_max": 0.0, **metrics}
    return UpdateReport(values, FRAGMENT_REPORT_SCHEMA.empty_table(), np.array([3]))


def record(to: RunRecorder, report: UpdateReport | None = None, **given: Any) -> dict[str, float]:
    to.begin_iteration()
    arguments = {"closed": [], "counts": COUNTS, "rollouts": RolloutStatistics(), "probe_diff": None} | given
    return dict(to.record(report or update(), **arguments).metrics)


def test_tokens_are_those_of_the_ledger_and_rates_those_of_the_iteration(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    first = record(run)
    second = record(run, counts=TokenCounts(40, 6, 20, 12, {"resume": 2}))
    assert [first[f"tokens/{name}"] for name in ("sampled", "trained", "queued", "in_flight", "dropped")] == [
        30,
        3,
        20,
        5,
        2,
    ]
    assert first["tokens/sampled_per_second"] == pytest.approx(30 / first["time/iteration"])
    assert second["tokens/sampled_per_second"] == pytest.approx(10 / second["time/iteration"])
    assert second["tokens/trained_per_second"] == pytest.approx(3 / second["time/iteration"])


def test_what_there_was_not_is_in_no_metric(tmp_path: Path) -> None:
    metrics = record(recorder(tmp_path))
    assert "rollout/slot_occupancy" not in metrics
    assert "mismatch/alarm" not in metrics
    assert "rollout/complete_groups" not in metrics
    assert metrics["rollout/finished_episodes"] == 0
    assert set(metrics) <= {metric.name for metric in METRICS}


def test_an_update_whose_first_minibatch_is_of_hindsight_alone_is_recorded(tmp_path: Path) -> None:
    """Ratios before the first step are of windows that are trained for the first time: here there are none."""
    run = recorder(tmp_path)
    record(run, update(first_ratio_max_deviation=0.5, staleness_max=2.0))
    assert record(run)["tokens/trained"] == 3
    assert (run.totals.largest_ratio_deviation, run.totals.largest_staleness) == (0.5, 2)


def test_clocks_are_of_one_iteration_and_of_the_whole_run(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    run.add_seconds("evaluation", 2.0)
    run.add_seconds("update", 1.0)
    assert record(run)["time/evaluation"] == 2.0
    run.add_seconds("update", 3.0)
    later = record(run)
    assert later["time/update"] == 3.0
    assert "time/evaluation" not in later
    assert run.totals.seconds["update"] == 4.0


def test_an_evaluation_belongs_to_the_next_iteration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = recorder(tmp_path, log_prob_diff_alarm=0.1)
    statistics = {"accuracy": 0.5, "response_length_mean": 9.0}
    run.record_evaluation(Evaluation(statistics, statistics, LogProbDiff(0.2, 0.7)), 30)
    assert "differ by 2.00e-01 nats" in caplog.text
    metrics = record(run)
    assert (metrics["mismatch/heldout_log_prob_diff_mean"], metrics["mismatch/alarm"]) == (0.2, 1.0)
    assert run.totals.largest_fresh_log_prob_diff == 0.7
    assert "mismatch/alarm" not in record(run)
    fresh = record(run, update(fresh_log_prob_diff_mean=0.05, fresh_log_prob_diff_max=0.3))
    assert fresh["mismatch/alarm"] == 0.0


def test_files_hold_what_was_recorded(tmp_path: Path) -> None:
    run = recorder(tmp_path, rollout_log_fragments=2)
    rollouts = RolloutStatistics(slot_steps=8, productive_slot_steps=6, fragments=[make_fragment(terminated=True)])
    boundary = ClosedBoundary(0, Boundary(0.2, 0.3, 0.1), 1.0, 4, episode_id=0)
    metrics = record(run, closed=[boundary], rollouts=rollouts, probe_diff=1e-6)
    run.close()
    assert metrics["rollout/slot_occupancy"] == 0.75
    assert metrics["mismatch/probe_log_prob_diff"] == 1e-6
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(metrics)
    assert events.Scalars("critic/boundary_error_held")[0].step == 30
    (cells,) = read_boundary_errors(tmp_path)[1].values()
    assert [cell.count for cell in cells] == [1]
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["iteration_000001.parquet"]


def test_episodes_are_recorded_under_the_number_of_their_iteration_and_on_after_a_restart(tmp_path: Path) -> None:
    first, second = make_fragment(), make_fragment(context=[1, 2, 5, 6, 7], prompt_length=2, window_index=1)
    rows = [{"episode_id": 0, "window_index": index, "trained_tokens": 3, "advantages": [0.5] * 3} for index in (0, 1)]
    reports = [pa.Table.from_pylist([row], schema=FRAGMENT_REPORT_SCHEMA) for row in rows]
    run = recorder(tmp_path)
    run.record_episodes([first], reports[0])
    record(run)
    again = recorder(tmp_path)
    again.restore(run.state(), sampled_tokens=COUNTS.sampled)
    again.record_episodes([second], reports[1])
    assert sorted(path.name for path in (tmp_path / "episodes").iterdir()) == [
        "iteration_000001.parquet",
        "iteration_000002.parquet",
    ]
    left_out = RolloutStatistics(scores=Scores(left_out={0: REWARD_FAILED}))
    record(again, rollouts=left_out)
    assert run.state()["recorded_episodes"] == [0]
    assert again.state()["recorded_episodes"] == []


def test_what_a_resume_takes_back_is_in_no_file(tmp_path: Path) -> None:
    """Nothing need be sampled when the iteration is made again, and then nothing would write over its file."""
    run = recorder(tmp_path)
    states = []
    for _ in range(2):
        states.append(run.state())
        record(run, rollouts=RolloutStatistics(fragments=[make_fragment()]))
    assert len(list((tmp_path / "rollouts").iterdir())) == 2
    recorder(tmp_path).restore(states[1], sampled_tokens=COUNTS.sampled)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["iteration_000001.parquet"]


def test_totals_and_count_go_on_after_a_restart(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    record(run, rollouts=RolloutStatistics(slot_steps=4, productive_slot_steps=3))
    again = recorder(tmp_path / "again")
    again.restore(run.state(), sampled_tokens=COUNTS.sampled)
    assert again.totals.slot_occupancy == 0.75
    assert again.run_totals()["wall_s"] >= run.state()["totals"]["wall_s"] - 1
    again.begin_iteration()
    assert again.record(update(), [], COUNTS, RolloutStatistics(), None).iteration.number == 2


def test_the_first_speed_after_a_resume_is_of_one_iteration(tmp_path: Path) -> None:
    run = recorder(tmp_path / "before")
    record(run)
    resumed = recorder(tmp_path / "after")
    resumed.restore(run.state(), sampled_tokens=COUNTS.sampled)
    metrics = record(resumed, counts=TokenCounts(40, 6, 20, 12, {"resume": 2}))
    assert metrics["tokens/sampled_per_second"] == pytest.approx(10 / metrics["time/iteration"])


def test_without_a_word_on_what_is_right_there_is_no_accuracy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = recorder(tmp_path)
    silent = RolloutStatistics(fragments=[make_fragment(terminated=True, correct=None)])
    metrics = record(run, rollouts=silent)
    record(run, rollouts=silent)
    assert metrics["rollout/finished_episodes"] == 1
    assert "rollout/accuracy" not in metrics
    assert [r.message.partition(":")[0] for r in caplog.records] == [
        "the environment ends episodes without info['correct']"
    ]
    assert accuracy_statistics(silent.fragments).keys() >= {"return_mean", "n"}
    assert "accuracy" not in accuracy_statistics(silent.fragments)
    right = RolloutStatistics(fragments=[make_fragment(terminated=True, correct=True)])
    assert record(run, rollouts=right)["rollout/accuracy"] == 1


def test_scorers_that_fail_are_a_metric_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = [Failure("environment", "scorer_error", "ValueError('1/')"), Failure("judge", "timeout", "KeyError()")]
    scores = Scores(failures=failures, failed_responses=2, left_out={7: REWARD_FAILED})
    scored, failed = (make_fragment(episode_id=number, terminated=True, correct=None) for number in (6, 7))
    metrics = record(recorder(tmp_path), rollouts=RolloutStatistics(scores=scores, fragments=[scored, failed]))
    assert metrics["reward_failures/all"] == 2
    kinds = {name: value for name, value in metrics.items() if name.startswith("reward_failures/") and "." in name}
    assert kinds == {"reward_failures/judge.timeout": 1}, "only what costs a worker has its kind"
    assert metrics["reward_failures/environment"] == metrics["reward_failures/judge"] == 1
    assert metrics["rollout/left_out_episodes"] == 1
    assert metrics["rollout/finished_episodes"] == 1, "what was not scored has no return"
    assert "2 responses of this iteration could not be scored" in caplog.text
    assert "the first time by environment (scorer_error): ValueError('1/')" in caplog.text


def test_parts_of_the_reward_are_logged_by_name(tmp_path: Path) -> None:
    rollouts = RolloutStatistics()
    for values in ([1.0, 0.0], [1.0, 1.0, 1.0]):
        scores = Scores()
        scores.add_values("accuracy", values)
        rollouts.scores.add(scores)
    assert record(recorder(tmp_path), rollouts=rollouts)["rewards/accuracy"] == pytest.approx(0.8)
