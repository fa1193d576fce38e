from __future__ import annotations

import logging
import threading

import pytest
import ray

from tppo_rl.algorithms import TPPOConfig, resources
from tppo_rl.algorithms.resources import check_resources
from tppo_rl.core.errors import OptionError, RunError

pytestmark = pytest.mark.integration


def test_more_cpus_than_there_are_is_an_error_before_an_engine_starts(small_config: TPPOConfig) -> None:
    # Ray has 8 CPUs in this folder's tests.
    config = small_config.env_runners(num_env_runners=7).learners(num_learners=2)
    with pytest.raises(OptionError) as error:
        config.build_algo()
    assert str(error.value) == (
        "num_env_runners=7 x num_cpus_per_env_runner=1 + num_learners=2 x num_cpus_per_learner=1 is 9 CPU in all, and Ray has "
        "8; lower one of these options, or start Ray with more"
    )


def test_what_other_actors_hold_is_waited_for_and_then_is_one_message(small_config: TPPOConfig) -> None:
    check_resources(small_config)

    @ray.remote(num_cpus=8)
    class Holder:
        def there(self) -> None: ...

    holder = Holder.remote()
    ray.get(holder.there.remote())
    config = small_config.pipeline(env_runner_timeout_s=1.0)
    with pytest.raises(
        RunError, match=r"needs 1 CPU, and Ray has 0 of 8 free after 1 s \(env_runner_timeout_s\); other actors"
    ):
        check_resources(config)
    threading.Timer(1.0, ray.kill, (holder,)).start()
    check_resources(config.copy().pipeline(env_runner_timeout_s=100.0))


def test_gpus_that_there_are_not(small_config: TPPOConfig) -> None:
    config = small_config.learners(num_learners=1, num_gpus_per_learner=1)
    with pytest.raises(OptionError, match=r"num_gpus_per_learner=1 is 1 GPU in all, and Ray has 0; "):
        check_resources(config)


@pytest.mark.parametrize("num_learners", [0, 1])
def test_what_fits_exactly_is_taken(small_config: TPPOConfig, num_learners: int) -> None:
    # A learner in the driver's own process is no actor.
    check_resources(small_config.env_runners(num_env_runners=8 - num_learners).learners(num_learners=num_learners))


def test_on_a_cluster_that_may_grow_it_is_a_warning(
    small_config: TPPOConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resources, "ray_started_here", lambda: False)
    with caplog.at_level(logging.WARNING, logger=resources.__name__):
        check_resources(small_config.env_runners(num_env_runners=9))
    assert "waits for nodes with them, at most start_timeout_s" in caplog.text


def test_a_gpu_of_the_main_process_beside_those_of_env_runners_is_refused(small_config: TPPOConfig) -> None:
    config = small_config.learners(num_gpus_per_learner=1).env_runners(num_gpus_per_env_runner=1)
    with pytest.raises(OptionError, match=r"num_gpus_per_learner=1: with num_learners=0 .* set num_learners to 1"):
        config.build_algo()


@pytest.mark.parametrize(
    ("number", "share"), [("num_env_runners", "num_cpus_per_env_runner"), ("num_learners", "num_cpus_per_learner")]
)
def test_more_threads_than_cpus_in_the_main_process_are_refused(
    small_config: TPPOConfig, number: str, share: str
) -> None:
    small_config.update_from_dict({"mode": "sync", number: 0, share: 4096})
    with pytest.raises(OptionError, match=rf"^{share}=4096: with {number}=0 .* CPUs; set it to \d+ or less"):
        small_config.build_algo()
