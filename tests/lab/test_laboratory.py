"""`tppo-rl critic lab`: what it refuses, samples that are read again, critics of checkpoints, and a whole run on vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from model_checkpoints import write_moved_model

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.base_models import resolve_model
from tppo_rl.cli import main
from tppo_rl.core.errors import OptionError
from tppo_rl.lab.critics import load_critic, values_along
from tppo_rl.lab.samples import Continuation, Place, Response, Samples

MODEL, ENV = "tppo_rl/arithmetic-chain", "tppo_rl/ArithmeticChain-v0"


def save_checkpoint(folder: Path, form: dict[str, Any] | None = None, **options: Any) -> Path:
    """A checkpoint as a run writes it, of models whose weights have moved."""
    config = TPPOConfig().environment(ENV, env_config={"max_operands": 3})
    config = config.language_model(MODEL).update_from_dict(options)
    model_config = {
        "policy_model": resolve_model(MODEL),
        "critic": options.get("critic", "separate"),
        "value_form": form,
    }
    checkpoint = folder / "checkpoints" / "iteration_000007"
    write_moved_model(checkpoint, config, model_config)
    return checkpoint


def made_up(number: int = 40) -> Samples:
    """Samples without a model: random tokens, random returns."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, number)
    responses = [
        Response(
            index, index, rng.integers(4, 60, 5, dtype=np.int32), rng.integers(4, 60, length, dtype=np.int32),
            float(index % 2), bool(index % 2), False,
        )
        for index, length in enumerate(lengths)
    ]  # fmt: skip
    places = [Place(index, position, 1.0) for index in range(number) for position in (0, 1)]
    continuations = [
        Continuation(state, half, np.array([5], np.int32), float(rng.random() < 0.5))
        for state in range(len(places))
        for half in (0, 1)
    ]
    return Samples(responses, places, continuations)


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["critic", "lab", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_values_are_those_of_each_response_alone(tmp_path: Path) -> None:
    critic = load_critic(save_checkpoint(tmp_path / "run").parent.parent)
    responses = made_up().responses
    for response, values in zip(responses, values_along(critic, responses), strict=True):
        whole = torch.tensor(np.concatenate([response.prompt, response.tokens]).astype(np.int64))[None]
        with torch.no_grad():
            expected = critic(whole)[0, len(response.prompt) - 1 : -1]
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
        assert len(values) == len(response)


@pytest.mark.parametrize("form", [None, {"loss": "hl_gauss", "low": 0.0, "high": 1.0, "bins": 21}])
def test_a_written_critic_has_the_values_of_its_checkpoint(tmp_path: Path, form: dict[str, Any] | None) -> None:
    options = {} if form is None else {"critic_loss": "hl_gauss", "value_bins": 21}
    checkpoint = save_checkpoint(tmp_path / "run", form, **options)
    export = ["export", str(checkpoint), str(tmp_path / "model"), "--critic", str(tmp_path / "critic")]
    assert CliRunner().invoke(main, export).exit_code == 0
    responses = made_up().responses
    pairs = (values_along(load_critic(source), responses) for source in (checkpoint, tmp_path / "critic"))
    for expected, values in zip(*pairs, strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_critics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "run")
    responses = made_up(3).responses
    responses[1].tokens[0] = 10**6
    with pytest.raises(OptionError, match="token 1000000"):
        values_along(load_critic(checkpoint), responses)
    without = save_checkpoint(tmp_path / "group", critic=None)
    with pytest.raises(OptionError, match="the run had no critic"):
        load_critic(without)
    with pytest.raises(OptionError, match="is no checkpoint"):
        load_critic(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MODEL], "--env: a model alone does not say"),
        ([MODEL, "--env", ENV, "--continuations", "5"], "--continuations=5: must be even"),
        ([MODEL, "--env", "tppo_rl/Calculator-v0"], "env='tppo_rl/Calculator-v0': answers the model and lets it go on"),
        ([MODEL, "--env", "tppo_rl/GuessNumber-v0"], "env='tppo_rl/GuessNumber-v0'"),
        ([MODEL, "--env", ENV, "--critic", "nowhere"], "checkpoint='nowhere'"),
        ([MODEL, "--env", ENV, "--set", "lrr=1"], "lrr"),
        (["no/model", "--env", ENV], "policy_model='no/model'"),
    ],
)
def test_bad_input_is_refused_before_an_engine_starts(arguments: list[str], message: str, tmp_path: Path) -> None:
    output = run(*arguments, "--out", tmp_path / "out", code=2)
    assert message in output
    assert not (tmp_path / "out").exists()


def test_samples_are_read_again_for_another_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def draw(options: Any, plan: Any, earlier: Any, keep: Any) -> Samples:
        drawn.append(plan)
        return made_up()

    monkeypatch.setattr("tppo_rl.lab.laboratory.draw", draw)
    out = tmp_path / "out"
    output = run(MODEL, "--env", ENV, "--out", out)
    assert "| weighed by: tokens | 80 |" in output
    one, two = save_checkpoint(tmp_path / "one"), save_checkpoint(tmp_path / "two")
    output = run(MODEL, "--env", ENV, "--out", out, "--critic", tmp_path / "one", "--critic", two)
    assert "## Gradient of unfinished windows" in (out / "critic_lab.md").read_text(encoding="utf-8")
    assert "| one: returns | one: true values | two, iteration_000007: returns |" in output
    assert len(drawn) == 1
    results = json.loads((out / "critic_lab.json").read_text(encoding="utf-8"))
    critics = results["critics"]
    assert critics["one"] == critics["two, iteration_000007"]
    values = values_along(load_critic(one), made_up().responses)
    rows = critics["one"]["calibration"]
    expected = np.mean([values[place.response][place.position] for place in made_up().places])
    assert sum(row["share"] * row["value"] for row in rows) == pytest.approx(expected, abs=1e-5)
    assert "holds samples of other settings (seed)" in run(MODEL, "--env", ENV, "--out", out, "--seed", 3, code=2)
    assert "is in use by something else" in run(MODEL, "--env", ENV, "--out", tmp_path / "one", code=2)


def test_the_critic_of_a_checkpoint_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def draw(options: Any, plan: Any, earlier: Any, keep: Any) -> Samples:
        seen.append(options.models.policy_model)
        return made_up()

    monkeypatch.setattr("tppo_rl.lab.laboratory.draw", draw)
    save_checkpoint(tmp_path / "run")
    out = tmp_path / "out"
    run(tmp_path / "run", "--out", out)
    # The policy is that of the checkpoint, written for the engine.
    assert seen == [str(out / "model")]
    assert (out / "model" / "model.safetensors").is_file()
    results = json.loads((out / "critic_lab.json").read_text(encoding="utf-8"))
    assert list(results["critics"]) == ["run, iteration_000007"]
    assert results["settings"]["env_config"] == {"max_operands": 3}


def test_a_draw_that_was_stopped_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def draw(options: Any, plan: Any, earlier: Any, keep: Any) -> Samples:
        seen.append(earlier)
        keep(made_up(30))
        if len(seen) == 1:
            raise KeyboardInterrupt
        return made_up()

    monkeypatch.setattr("tppo_rl.lab.laboratory.draw", draw)
    monkeypatch.setattr("tppo_rl.lab.laboratory._SAVE_EVERY_S", 0.0)
    out = tmp_path / "out"
    assert CliRunner().invoke(main, ["critic", "lab", MODEL, "--env", ENV, "--out", str(out)]).exit_code != 0
    assert not (out / "critic_lab.md").exists()
    run(MODEL, "--env", ENV, "--out", out)
    run(MODEL, "--env", ENV, "--out", out)
    assert [None if earlier is None else len(earlier.responses) for earlier in seen] == [None, 30]


@pytest.mark.slow
def test_a_policy_is_sampled_and_measured(tmp_path: Path) -> None:
    """The shipped model by vLLM: continuations agree with responses, and the folder is complete."""
    out = tmp_path / "out"
    command = ["critic", "lab", MODEL, "--env", ENV, "--env-config", "{max_operands: 4}", "--out", out]
    command += ["--responses", 40, "--prefixes", 4, "--continuations", 4, "--critic", save_checkpoint(tmp_path / "run")]
    command += [
        "--set",
        "max_response_length=48",
        "--set",
        "num_envs_per_env_runner=16",
        "--set",
        "max_prompt_length=32",
    ]
    # vLLM keeps the streams of the process that it starts in.
    result = subprocess.run(
        [sys.executable, "-m", "tppo_rl", *map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| weighed by: tokens |" in result.stdout
    samples = Samples.load(out)
    assert samples is not None
    assert len(samples.responses) == 40
    assert len(samples.continuations) == 4 * len(samples.places)
    assert pq.read_table(out / "states.parquet").num_rows == len(samples.places)
    states = samples.states(1.0)
    # Responses and continuations are draws of one policy.
    difference = np.average(states.returns - states.true_values, weights=states.weights)
    assert abs(difference) < 0.25
    cap = max(samples.places[one.state].position + len(one.tokens) for one in samples.continuations)
    assert cap <= 48
