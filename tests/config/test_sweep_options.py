"""`tune_config`: schedulers and searchers by name, and what of them does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.config.sweep_options import (
    HELDOUT_ACCURACY,
    LEAST_PBT_CHECKPOINTS,
    MEAN_RETURN,
    asha_horizon,
    compared_metric,
)
from tppo_rl.core.errors import OptionError

PBT = {"type": "pbt", "hyperparam_mutations": {"lr": {"loguniform": [1e-5, 1e-3]}}}


def make_sweep(tune_config: Any = None, config: dict[str, Any] | None = None, **body: Any) -> Experiment:
    whole = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 9},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", **(config or {})},
    }
    return make_experiment("a", whole | ({} if tune_config is None else {"tune_config": tune_config}) | body)


@pytest.mark.parametrize(
    ("tune_config", "message"),
    [
        (
            {"scheduler": "ashaa"},
            r"a\.tune_config\.scheduler='ashaa': unknown name, did you mean asha\?; known are asha, fifo",
        ),
        ({"scheduler": {"grace_period": 3}}, r"a\.tune_config\.scheduler=.*has no type; give one of fifo, asha, pbt"),
        ({"scheduler": {"type": "asha", "grace_perod": 3}}, r"scheduler\.grace_perod=3: .*did you mean .*grace_period"),
        ({"scheduler": {"type": "asha", "graze": 3}}, "asha takes brackets, grace_period, max_t"),
        ({"scheduler": {"type": "asha", "metric": "x"}}, r"scheduler\.metric='x': is tune_config\.metric of the sweep"),
        ({"scheduler": {"type": "fifo", "max_t": 3}}, r"scheduler\.max_t=3: fifo takes no arguments"),
        (
            {"scheduler": {"type": "asha", "time_attr": "time_total_s"}},
            r"scheduler\.max_t=None: .*'time_total_s'; give max_t",
        ),
        ({"scheduler": {"type": "pbt"}}, r"scheduler\.hyperparam_mutations=None: what may be perturbed is not given"),
        (
            {"scheduler": {"type": "pbt", "hyperparam_mutations": {"window_length": [8, 16]}}, "num_samples": 2},
            r"hyperparam_mutations\.window_length=\[8, 16\]: cannot change .*these can: .*lr",
        ),
        (
            {"scheduler": {"type": "pbt", "hyperparam_mutations": {"lr": 3.0}}, "num_samples": 2},
            r"hyperparam_mutations\.lr=3\.0: must be a list",
        ),
        (
            {"scheduler": {"type": "pbt", "hyperparam_mutations": {"clip_low": [0.1, 1.5]}}, "num_samples": 2},
            "clip_low=1.5: input should be less than or equal to 1",
        ),
        ({"scheduler": PBT}, "a population of 1 has no better half"),
        ({"search_alg": "optunna"}, r"search_alg='optunna': unknown name, did you mean optuna\?"),
        (
            {"search_alg": {"type": "random", "seed": 1}},
            r"search_alg\.seed=1: unknown option.*random takes .*random_state",
        ),
        (
            {"metric": "rollout/acuracy"},
            r"metric='rollout/acuracy': results have no such key; did you mean rollout/accuracy",
        ),
        ({"metric": "nonsense"}, r"metric='nonsense': results have no such key; take one of"),
        ({"metric": HELDOUT_ACCURACY}, "with evaluation_interval=None nothing is evaluated; set evaluation_interval"),
        ({"num_sample": 3}, r"a\.tune_config\.num_sample=3: unknown option, did you mean a\.tune_config\.num_samples"),
        ({"scheduler": {"type": "asha", "max_t": "far"}}, r"scheduler\.max_t='far': must be a number above 0"),
        ({"time_budget_s": float("inf")}, r"a\.tune_config\.time_budget_s=inf: input should be"),
        (
            {"num_samples": 2},
            r"a\.num_samples=2: no option has a range to draw from, so all 2 trials would be the same",
        ),
        ({"mode": "most"}, r"a\.tune_config\.mode='most'"),
    ],
)
def test_a_bad_tune_config_names_key_value_and_remedy(tune_config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_sweep(tune_config)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(OptionError, match=r"num_samples=3 and tune_config\.num_samples=2 differ"):
        make_sweep({"num_samples": 2}, num_samples=3)
    with pytest.raises(
        OptionError, match=r"the experiment has 20,000 trials \(grid points x seeds x num_samples\); at most 10,000"
    ):
        make_sweep({"num_samples": 10_000}, {"lr": {"uniform": [0, 1]}}, seeds=2)
    with pytest.raises(OptionError, match=r"num_samples=3: no option has a range"):
        make_sweep(config={"lr": {"grid_search": [1e-4, 1e-5]}}, num_samples=3)
    with pytest.raises(OptionError, match=r"seeds=2 and config\.seed=1 both give the seed"):
        make_sweep(config={"seed": 1}, seeds=2)
    with pytest.raises(OptionError, match=r"seeds=\[1, 1\]: must be different"):
        make_sweep(seeds=[1, 1])
    with pytest.raises(OptionError, match=r"checkpoint_config\.num_to_keep=1: with pbt"):
        make_sweep({"scheduler": PBT, "num_samples": 2}, checkpoint_config={"num_to_keep": 1})


def test_a_schedule_is_not_perturbed() -> None:
    sweep = {"scheduler": PBT, "num_samples": 2}
    with pytest.raises(
        OptionError, match=r"hyperparam_mutations\.lr=.*: multiplies a number, and lr=\[\[0.* is a schedule"
    ):
        make_sweep(sweep, {"lr": [[0, 1e-4], [1000, 1e-5]]})
    make_sweep(sweep, {"critic_lr": [[0, 1e-4], [1000, 1e-5]]})


def test_what_is_left_out_follows_from_the_rest() -> None:
    asha = make_sweep({"scheduler": "asha"})
    assert asha.is_sweep
    assert asha_horizon(asha.tune_config, asha.stop) == 9
    assert compared_metric(asha.tune_config, asha.options()) == MEAN_RETURN
    evaluated = make_sweep({"scheduler": "asha"}, {"evaluation_interval": 2})
    assert compared_metric(evaluated.tune_config, evaluated.options()) == HELDOUT_ACCURACY
    assert asha.checkpoints_to_keep == 2
    assert make_sweep({"scheduler": PBT, "num_samples": 2}).checkpoints_to_keep == LEAST_PBT_CHECKPOINTS
    drawn = {"lr": {"loguniform": [1e-5, 1e-3]}}
    assert make_sweep({"num_samples": 3}, drawn).num_trials == make_sweep(config=drawn, num_samples=3).num_trials == 3
    assert not make_sweep().is_sweep
