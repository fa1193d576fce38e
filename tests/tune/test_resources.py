"""What a trial needs is known before anything starts, and a sweep that can never fit is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from tppo_rl.algorithms import TPPO
from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.tune.resources import check_fit, machine, needs_of
from tppo_rl.tune.trials import run_trials

pytestmark = pytest.mark.integration


def make_sweep(**config: Any) -> Experiment:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "seeds": 3,
        "config": {"policy_model": "tppo_rl/arithmetic-chain", **config},
    }
    return make_experiment("sweep", body)


def needs(**config: Any) -> dict[str, float]:
    experiment = make_sweep(**config)
    return needs_of(TPPO, next(experiment.points())).total


def test_needs_are_those_of_the_placement_group() -> None:
    assert needs() == {"CPU": 2.0}
    assert needs(num_env_runners=3, num_learners=2) == {"CPU": 5.0}
    assert needs(num_gpus_per_env_runner=1, num_gpus_per_learner=1) == {"CPU": 1.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"num_env_runners": 5000},
            r"^num_env_runners=5000: a trial needs 5001 CPU, there are \d+, so it would wait for ever",
        ),
        ({"num_env_runners": {"grid_search": [1, 4000]}}, "^num_env_runners=4000: a trial needs 4001 CPU"),
        ({"num_cpus_per_env_runner": 3000}, "^num_cpus_per_env_runner=3000: a trial needs 3001 CPU"),
        ({"num_learners": 3000}, "^num_learners=3000: a trial needs 3001 CPU"),
        ({"num_gpus_per_learner": 99}, "^num_gpus_per_learner=99: a trial needs 99 GPU"),
    ],
)
def test_more_than_there_is_names_the_option_and_starts_nothing(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert not ray.is_initialized()
    with pytest.raises(OptionError, match=message):
        run_trials(make_sweep(**config), tmp_path)
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_what_a_trial_needs_and_how_many_run_at_a_time() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(check_fit(make_sweep(), TPPO))
    words = " ".join(text.getvalue().split())
    assert "trials │ 3 │" in words
    assert "a trial needs │ 2 CPU │" in words
    cpus = int(machine()[0]["CPU"])
    assert f"at a time │ {max(1, min(3, cpus // 2))} │" in words
