from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tppo_rl.bench import pipeline
from tppo_rl.bench.time_to_accuracy import read_progress
from tppo_rl.experiment.learning_curves import reached_after

YAML = """
ours:
  run: TPPO
  env: tppo_rl/ArithmeticChain-v0
  stop: {training_iteration: 2}
  config: &config {policy_model: tppo_rl/arithmetic-chain, num_env_runners: 1, max_response_length: 64, window_length: 16}
baseline:
  run: PPO
  env: tppo_rl/ArithmeticChain-v0
  stop: {training_iteration: 2}
  config: {policy_model: tppo_rl/arithmetic-chain, num_env_runners: 1, max_response_length: 64, window_length: null}
"""


@pytest.mark.parametrize(
    ("accuracy", "wanted"),
    [([0.2, 0.6, 1.0], 15.0), ([0.9, 0.1], 0.0), ([0.2, 0.8, 0.1], 10.0), ([0.2, 0.3, 0.79], math.nan)],
)
def test_the_target_is_reached_between_two_evaluations(accuracy: list[float], wanted: float) -> None:
    assert reached_after(accuracy, [0.0, 10.0, 20.0][: len(accuracy)], 0.8) == pytest.approx(wanted, nan_ok=True)


def write_run(folder: Path, accuracies: list[float], *, seconds: float, generation: float) -> None:
    """A run with an evaluation every second iteration, of 100 tokens each."""
    folder.mkdir(parents=True)
    results = []
    for iteration in range(1, 2 * len(accuracies) - 1):
        result = {
            "training_iteration": iteration,
            "tokens": {"sampled": 100 * iteration},
            "heldout_before": {"sampled": {"accuracy": accuracies[0]}},
            "run": {
                "wall_s": 5.0 + 2.5 * iteration + seconds * iteration,
                "seconds": {
                    "setup": 5.0,
                    "evaluation": 2.5 * iteration,
                    "env_runner_sampling": generation * iteration,
                    "waiting_for_fragments": 0.25 * seconds * iteration,
                    "update": 0.75 * seconds * iteration,
                    "env_runner_idle": 0.0,
                    "env_runner_weights": 0.01 * seconds * iteration,
                },
            },
            "learners": {"default_policy": {"processed_per_trained_token": 1.5}},
        }
        if iteration % 2 == 0:
            result["evaluation"] = {"sampled": {"accuracy": accuracies[iteration // 2]}}
        results.append(result)
    (folder / "result.json").write_text("\n".join(map(json.dumps, results)) + "\n", encoding="utf-8")
    summary = {"heldout_accuracy_after": accuracies[-1], "slot_occupancy": 0.5}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def test_progress_is_read_at_the_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [0.2, 0.5, 0.9], seconds=3.0, generation=2.0)
    progress = read_progress(tmp_path / "run")
    assert progress.seconds.tolist() == [0.0, 6.0, 12.0]
    assert progress.generation_seconds.tolist() == [0.0, 4.0, 8.0]
    assert progress.tokens.tolist() == [0.0, 200.0, 400.0]
    assert progress.accuracy.tolist() == [0.2, 0.5, 0.9]


def test_speedups_are_paired_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "runs.yaml"
    config.write_text(YAML, encoding="utf-8")
    results = tmp_path / "results"
    for seed, slower in [(0, 2.0), (1, 4.0)]:
        write_run(results / f"ours-seed{seed}", [0.2, 0.5, 0.9], seconds=1.0, generation=1.0)
        write_run(results / f"baseline-seed{seed}", [0.2, 0.5, 0.9], seconds=slower, generation=3.0)
    seeds = []

    def compare(
        experiments: list[pipeline.Experiment], folder: Path, *, seeds: list[int], seen: list[int] = seeds
    ) -> dict[str, list[Path]]:
        seen += seeds
        return {experiment.name: [] for experiment in experiments}

    monkeypatch.setattr(pipeline, "compare", compare)
    figures = pipeline.pipeline_figures(
        config=config, overrides=(), results=results, target=0.7, overlap_updates=0, repeats=2
    )
    assert seeds == [0, 1]
    by_name = {figure.figure: figure for figure in figures}
    assert (by_name["speedup_vs_sync_ppo"].low, by_name["speedup_vs_sync_ppo"].high) == (2.0, 4.0)
    assert by_name["generation_speedup_vs_sync_ppo"].median == 3.0
    assert by_name["seconds_to_0.7, ours"].median == 3.0
    assert by_name["updates_to_0.7, ours"].median == 3.0
    assert by_name["tokens_to_0.7, baseline"].median == 300.0
    assert by_name["final_accuracy, ours"].median == 0.9
    assert by_name["updating, ours"].median == 0.75
    assert by_name["sync_pause_fraction"].median == pytest.approx(0.01)
    assert by_name["tokens_per_second, baseline"].high == 50.0
    assert (results / "accuracy_over_time.png").stat().st_size > 10_000


def test_a_target_that_was_not_reached_gives_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path / "slow", [0.2, 0.5], seconds=1.0, generation=1.0)
    write_run(tmp_path / "fast", [0.2, 0.95], seconds=1.0, generation=1.0)
    for folders in (["slow"], ["slow", "fast"], ["fast"]):
        runs = [tmp_path / folder for folder in folders]
        names = [figure.figure for figure in pipeline._of_experiment("run", runs, 0.9)]
        assert ("seconds_to_0.9, run" in names) == (folders == ["fast"])
        assert "final_accuracy, run" in names


def test_bad_input_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "runs.yaml"
    config.write_text(YAML.replace("run: PPO", "run: TPPO"), encoding="utf-8")
    arguments = {"overrides": (), "results": tmp_path, "overlap_updates": 0, "repeats": 1}
    with pytest.raises(ValueError, match="run: PPO"):
        pipeline.pipeline_figures(config=config, target=0.9, **arguments)
    with pytest.raises(ValueError, match=r"target=90"):
        pipeline.pipeline_figures(config=None, target=90, **arguments)


def test_the_shipped_file_is_a_fair_comparison() -> None:
    experiments = {experiment.name: experiment for experiment in pipeline.load_run_file(pipeline.PIPELINE, ())}
    assert list(experiments) == ["tppo", "tppo_sync", "ppo"]
    baseline = experiments["ppo"]
    assert baseline.run == "PPO"
    # Whole responses leave no open episode whose context could be kept.
    of_the_mode = {
        "mode",
        "window_length",
        "unfinished_advantage_scale",
        "context_cache_tokens",
        "num_cpus_per_env_runner",
        "num_cpus_per_learner",
    }
    tuned = {"lr", "num_epochs", "critic_num_epochs", "num_envs_per_env_runner", "train_batch_size_per_learner"}
    tuned |= {"minibatch_size", "critic_minibatch_size", "policy_token_fraction"}
    for name, allowed in (("tppo", of_the_mode | tuned), ("tppo_sync", of_the_mode | {"policy_token_fraction"})):
        ours = experiments[name].config
        assert {key for key in ours | baseline.config if ours.get(key) != baseline.config.get(key)} <= allowed
        assert (experiments[name].env, experiments[name].stop) == (baseline.env, baseline.stop)
        assert ours["num_envs_per_env_runner"] <= baseline.config["num_envs_per_env_runner"], (
            "more slots are more memory"
        )
