"""RLlib's options: what is read is taken, and what is not is refused, whichever way it comes."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.algorithms.tppo import TPPOConfig
from tppo_rl.config.foreign_sources import rllib_keys
from tppo_rl.config.rllib_options import CALLBACKS, RLLIB_KEYS_READ
from tppo_rl.config.run_files import make_experiment
from tppo_rl.core.errors import OptionError

NOT_READ = {
    "grad_clip_by": "value",
    "rollout_fragment_length": 64,
    "batch_mode": "complete_episodes",
    "shuffle_batch_per_epoch": True,
    "torch_compile_learner": True,
    "clip_rewards": True,
    "explore": False,
    "observation_filter": "MeanStdFilter",
    "min_time_s_per_iteration": 10,
    "num_gpus": 1,
    "train_batch_size": 4000,
    "offline_sampling": True,
    "callbacks_on_episode_step": print,
}


def small_config() -> TPPOConfig:
    return TPPOConfig().environment("tppo_rl/ArithmeticChain-v0").language_model("tppo_rl/arithmetic-chain")


def body(config: dict[str, Any]) -> dict[str, Any]:
    required = {"policy_model": "tppo_rl/arithmetic-chain"}
    return {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": required | config,
    }


@pytest.mark.parametrize("key", NOT_READ)
def test_what_nothing_reads_is_refused_in_a_run_file(key: str) -> None:
    with pytest.raises(OptionError, match=rf"^{key}=.*is an option of RLlib's that language models do not have; "):
        make_experiment("run", body({key: NOT_READ[key]}))


@pytest.mark.parametrize("key", NOT_READ)
def test_what_nothing_reads_is_refused_by_the_builder(key: str) -> None:
    config = small_config()
    setattr(config, key, NOT_READ[key])
    with pytest.raises(OptionError, match=rf"^{key}=.*is an option of RLlib's that language models do not have; "):
        config.validate()


def test_a_window_is_not_called_as_rllib_calls_it() -> None:
    # The value is RLlib's default: whoever writes it means it all the same.
    with pytest.raises(OptionError, match=r"^rollout_fragment_length=200: .*set window_length"):
        make_experiment("run", body({"rollout_fragment_length": 200}))


def test_what_is_read_is_taken() -> None:
    given = {
        "num_cpus_for_main_process": 0,
        "max_num_env_runner_restarts": 3,
        "custom_resources_per_learner": {"big": 1},
        "metrics_num_episodes_for_smoothing": 10,
        "log_level": "ERROR",
    }
    make_experiment("run", body(given))
    config = small_config().update_from_dict(given)
    config.validate()
    assert config.max_num_env_runner_restarts == 3


def test_a_whole_config_comes_through_a_mapping_as_tune_sends_it() -> None:
    config = TPPOConfig().update_from_dict(small_config().to_dict())
    config.validate()


def test_what_is_read_exists_in_rllib() -> None:
    # Names of keys and of attributes, of which YAML files may use either.
    renamed = {"algo_class", "callbacks", "framework", "learner_class", "learner_connector", "logger_creator"}
    assert RLLIB_KEYS_READ - renamed <= rllib_keys()


def test_a_callback_that_is_never_called_is_refused() -> None:
    from ray.rllib.callbacks.callbacks import RLlibCallback

    class Steps(RLlibCallback):
        def on_episode_step(self, **kwargs: Any) -> None:
            raise AssertionError

    with pytest.raises(OptionError, match=r"^callbacks_class=.*Steps: .*on_episode_step.*never called"):
        small_config().callbacks(Steps).validate()
    assert all(hasattr(RLlibCallback, name) for name in CALLBACKS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"callbacks_class": "x"}, r"callbacks_class='x': cannot be called; give module:object"),
        ({"callbacks_on_train_result": 3}, r"callbacks_on_train_result=3: cannot be called"),
        ({"callbacks_on_train_result": ["x"]}, r"callbacks_on_train_result='x': cannot be called"),
        (
            {"max_num_env_runner_restarts": "many"},
            r"max_num_env_runner_restarts='many': must be a finite number, at least 0",
        ),
        ({"max_num_env_runner_restarts": -1}, r"max_num_env_runner_restarts=-1: must be a finite number, at least 0"),
        ({"max_num_env_runner_restarts": 1.5}, r"max_num_env_runner_restarts=1\.5: must be a whole number"),
        (
            {"delay_between_env_runner_restarts_s": float("nan")},
            r"delay_between_env_runner_restarts_s=nan: must be a finite",
        ),
        (
            {"restart_failed_env_runners": "yes"},
            r"restart_failed_env_runners='yes': must be true or false, by default True",
        ),
        (
            {"env_runner_cls": 3},
            r"env_runner_cls=3: takes an object of Python, which a run file cannot hold; leave it out",
        ),
        ({"log_level": 3}, r"log_level=3: must be a text, by default 'WARN'"),
        ({"custom_resources_per_learner": 3}, r"custom_resources_per_learner=3: must be a mapping"),
    ],
)
def test_a_value_of_another_kind_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=rf"^{message}"):
        make_experiment("run", body(config))


def test_callbacks_of_a_run_file_are_found_before_anything_starts() -> None:
    with pytest.raises(OptionError, match=r"^callbacks_class='nowhere:Callback': nowhere cannot be imported"):
        make_experiment("run", body({"callbacks_class": "nowhere:Callback"}))
