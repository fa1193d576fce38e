"""`TPPOLearner` in RLlib's LearnerGroup: in this process, and as two actors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import host_config
import numpy as np
import pytest
import ray
import torch
from host_config import learner_config
from learner_helpers import estimate_targets, load_models, make_fragments, parameters_of, split
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.core.update_report import UpdateSettings
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments
from tppo_rl.learner.connectors import ESTIMATES, FragmentsToBatch, connectors
from tppo_rl.learner.learner import FRAGMENT_REPORT, MODULE_STATE, STALENESS_HISTOGRAM
from tppo_rl.learner.targets import default_stages
from tppo_rl.learner.update import UpdateStep
from tppo_rl.learner.values import CriticValues

pytestmark = pytest.mark.integration

NO_CLIPPING = {"grad_clip": None, "critic_grad_clip": None, "lr": 1e-4, "critic_lr": 1e-4}


def local_group(folder: str, **options: Any) -> Any:
    return learner_config(folder, **options).build_learner_group()


def train(group: Any, fragments: list[Fragment], **options: Any) -> dict[str, Any]:
    (result,) = group.update(training_data=TrainingData(batch=table_from_fragments(fragments)), **options)
    return result


def aggregate(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Does with the results what an Algorithm does: takes the extras out, merges the metrics."""
    for result in results:
        del result[FRAGMENT_REPORT], result[STALENESS_HISTOGRAM]
    logger = MetricsLogger(root=True)
    logger.aggregate(results)
    return logger.reduce(compile=True)


def weights_of(group: Any) -> np.ndarray:
    state = group.get_weights()[DEFAULT_MODULE_ID]
    return np.concatenate([weight.ravel() for part in state.values() for weight in part.values()])


def test_equals_the_plain_update_step(model_folder: str) -> None:
    fragments = make_fragments(0)
    group = local_group(model_folder, minibatch_size=20, seed=3, lambda_=0.8)
    result = train(group, fragments)
    policy, critic = load_models(model_folder, value_head=False)
    options = Options.of(lr=1e-3, critic_lr=1e-3, minibatch_size=20, seed=3, lambda_=0.8)
    batch = batch_from_fragments(fragments)
    plain = UpdateStep(policy, critic, options).run(batch, estimate_targets(critic, batch, options), 0)
    module = group._learner.module[DEFAULT_MODULE_ID]
    assert torch.equal(parameters_of(module.policy, module.critic), parameters_of(policy, critic))
    assert result[FRAGMENT_REPORT].equals(plain.fragment_report)
    assert result[STALENESS_HISTOGRAM].tolist() == plain.staleness_histogram.tolist()
    metrics = aggregate([result])[DEFAULT_MODULE_ID]
    for name, value in plain.metrics.items():
        assert metrics[name] == pytest.approx(value) or name.endswith("seconds"), name
    assert metrics[WEIGHTS_SEQ_NO] == 1


def test_a_factor_that_the_driver_gives_is_that_of_the_option(model_folder: str) -> None:
    # A new critic gives all states one value, and unfinished windows no advantage: so the second update shows it.
    batches = [make_fragments(0), make_fragments(1, version=1)]
    weights = {}
    for scale in (0.0, 0.25):
        fixed = local_group(model_folder, unfinished_advantage_scale=scale)
        told = local_group(model_folder, unfinished_advantage_scale="auto")
        if scale:
            told._learner.take_settings(UpdateSettings(unfinished_scale=scale))
        for fragments in batches:
            train(fixed, fragments)
            metrics = aggregate([train(told, fragments)])[DEFAULT_MODULE_ID]
            assert metrics["unfinished_scale"] == scale
        np.testing.assert_array_equal(weights_of(told), weights_of(fixed))
        weights[scale] = weights_of(fixed)
    assert not np.array_equal(weights[0.0], weights[0.25])


def test_versions_rise_and_state_comes_back_on_request(model_folder: str) -> None:
    group = local_group(model_folder)
    first = train(group, make_fragments(0))
    assert MODULE_STATE not in first
    result = train(group, make_fragments(1, version=1), return_state=True)
    state = result.pop(MODULE_STATE)
    assert state[WEIGHTS_SEQ_NO] == 2
    policy = group._learner.module[DEFAULT_MODULE_ID].policy
    weights = state["rl_module"][DEFAULT_MODULE_ID]
    own = policy.model.state_dict()
    # The output layer is tied to the embedding, and goes with it.
    assert weights.keys() == own.keys() - {"lm_head.weight"}
    assert all(np.array_equal(weight, own[name].numpy()) for name, weight in weights.items())
    trained = sum(len(fragment) for seed in (0, 1) for fragment in make_fragments(seed))
    assert aggregate([first, result])[DEFAULT_MODULE_ID]["num_module_steps_trained_lifetime"] == trained


def threads_after_build(model_folder: str, num_cpus: int | str) -> int:
    config = learner_config(model_folder)
    config.num_cpus_per_learner = num_cpus
    config.build_learner_group()
    return torch.get_num_threads()


@pytest.mark.parametrize(("num_cpus", "threads"), [pytest.param(2, 2, marks=pytest.mark.slow), ("auto", 1)])
def test_threads_follow_the_config(model_folder: str, num_cpus: int | str, threads: int) -> None:
    # In a process of its own: where vLLM has run, it takes the number of threads out of torch's hands.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert executor.submit(threads_after_build, model_folder, num_cpus).result(timeout=120) == threads


@pytest.mark.parametrize("through", ["state", "path"])
def test_checkpoints_go_on_bit_for_bit(model_folder: str, tmp_path: Path, through: str) -> None:
    options = {"minibatch_size": 20, "lr_warmup_updates": 5, "critic_warmup_updates": 1, "weight_decay": 0.1}
    group = local_group(model_folder, **options)
    for version in range(3):
        train(group, make_fragments(version, version=version))
    state, path = group.get_state(), group.save_to_path(tmp_path / "checkpoint")
    expected = [train(group, make_fragments(version, version=version)) for version in (3, 4)][-1]

    # One that is new, and one that has gone on and is taken back.
    for other in (local_group(model_folder, **options), group):
        if through == "state":
            other.set_state(state)
        else:
            other.restore_from_path(path)
        again = [train(other, make_fragments(version, version=version)) for version in (3, 4)][-1]
        assert other._learner._weights_seq_no == 5
        assert again[FRAGMENT_REPORT].equals(expected[FRAGMENT_REPORT])
        for name in ("policy_loss", "learning_rate", "policy_grad_norm", "critic_grad_norm"):
            assert again[DEFAULT_MODULE_ID][name].peek() == expected[DEFAULT_MODULE_ID][name].peek(), name
        if other is not group:
            np.testing.assert_array_equal(weights_of(other), weights_of(group))


def constant_advantages(batch: TrainBatch, values: CriticValues | None, options: Options, *, of: float) -> torch.Tensor:
    """Says the same for every token."""
    return of * batch.window.mask.float()


def test_advantages_are_exchanged_in_the_config(model_folder: str) -> None:
    group = local_group(model_folder, advantage_estimator={"type": f"{__name__}:constant_advantages", "of": 2.0})
    metrics = train(group, make_fragments(0))[DEFAULT_MODULE_ID]
    assert (metrics["advantage_mean"].peek(), metrics["advantage_std"].peek()) == (2.0, 0.0)
    assert metrics["critic_steps"].peek() == 1


class Halved(ConnectorV2):
    """A piece that stands behind a stage."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        batch[DEFAULT_MODULE_ID][ESTIMATES].advantages *= 0.5
        return batch


def test_a_piece_of_the_config_stands_among_the_stages(model_folder: str) -> None:
    options = Options.of()
    pieces = connectors(default_stages(options))
    names = [getattr(piece, "stage_name", "batch") for piece in pieces]
    assert names == ["batch", "critic_start", "values", "advantages", "value_batch"]
    pieces.insert(4, Halved())
    halved, whole = (
        local_group(
            model_folder,
            _learner_connector=lambda observations, actions, given=given: given,
            add_default_connectors_to_learner_pipeline=False,
        )
        for given in (pieces, connectors(default_stages(options)))
    )
    # With a value head at 0 only finished windows have advantages.
    means = [train(group, make_fragments(0))[DEFAULT_MODULE_ID]["advantage_mean"].peek() for group in (halved, whole)]
    assert means[1] != 0
    assert means[0] == pytest.approx(means[1] / 2)


def test_fragments_of_this_process_need_no_table(model_folder: str) -> None:
    fragments = make_fragments(0)
    through_table, direct = local_group(model_folder), local_group(model_folder)
    train(through_table, fragments)
    direct.update(training_data=TrainingData(episodes=fragments))
    np.testing.assert_array_equal(weights_of(direct), weights_of(through_table))


def test_without_a_critic(model_folder: str) -> None:
    group = local_group(
        model_folder,
        critic=None,
        advantage_estimator={"type": f"{__name__}:constant_advantages", "of": 1.0},
    )
    result = train(group, make_fragments(0))
    assert result[FRAGMENT_REPORT]["boundary_value"].null_count == 8
    group.set_state(group.get_state())
    assert list(group.get_state()["learner"]["optimizer"]) == [f"{DEFAULT_MODULE_ID}_policy"]


def test_mistakes_are_refused(model_folder: str) -> None:
    with pytest.raises(ValueError, match="pipeline is empty"):
        local_group(model_folder, add_default_connectors_to_learner_pipeline=False)
    with pytest.raises(ValueError, match="clip_low"):
        local_group(model_folder, clip_low=2.0)
    group = local_group(
        model_folder,
        _learner_connector=lambda observations, actions: FragmentsToBatch(),
        add_default_connectors_to_learner_pipeline=False,
    )
    with pytest.raises(ValueError, match="advantages"):
        train(group, make_fragments(0))
    with pytest.raises(ValueError, match="trains on fragments, got list"):
        group.update(training_data=TrainingData(batch=[1, 2, 3]))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    # The actors cannot import from the tests' folder.
    ray.cloudpickle.register_pickle_by_value(host_config)
    ray.init("local", num_cpus=2, include_dashboard=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_learners(ray_cluster: None, model_folder: str) -> Iterator[Any]:
    group = learner_config(model_folder, num_learners=2, **NO_CLIPPING).build_learner_group()
    yield group
    group.shutdown()


SHARES = {
    "even": split(make_fragments(0), 4),
    "one without a finished episode": split(sorted(make_fragments(1), key=lambda fragment: not fragment.finished), 4),
    "one empty": split(make_fragments(2), 8),
    "both empty": [[], []],
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shares", SHARES)
def test_two_actors_equal_one_learner(two_learners: Any, model_folder: str, shares: str) -> None:
    alone = local_group(model_folder, **NO_CLIPPING)
    two_learners.set_state(alone.get_state())
    first, second = SHARES[shares]
    tables = [table_from_fragments(first), table_from_fragments(second)]
    results = two_learners.update(training_data=TrainingData(batches=tables))
    expected = train(alone, first + second)
    assert [result[FRAGMENT_REPORT].num_rows for result in results] == [len(first), len(second)]
    assert results[0][STALENESS_HISTOGRAM].tolist() == expected[STALENESS_HISTOGRAM].tolist()
    states = [result.get() for result in two_learners.foreach_learner(lambda learner: learner.get_state("rl_module"))]
    weights = [
        np.concatenate([w.ravel() for part in state["rl_module"][DEFAULT_MODULE_ID].values() for w in part.values()])
        for state in states
    ]
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_allclose(weights[0], weights_of(alone), atol=1e-5)
    together, single = aggregate(results)[DEFAULT_MODULE_ID], aggregate([expected])[DEFAULT_MODULE_ID]
    for name in ("trained_tokens", "policy_loss", "value_loss", "policy_grad_norm", "num_module_steps_trained"):
        assert (name in together) == (name in single)
        if name in single:
            assert together[name] == pytest.approx(single[name], rel=1e-4, abs=1e-6), name


@pytest.mark.timeout(240)
def test_tables_may_come_by_reference(two_learners: Any) -> None:
    refs = [ray.put(table_from_fragments(share)) for share in SHARES["even"]]
    version = two_learners.get_state()["learner"][WEIGHTS_SEQ_NO]
    results = two_learners.update(training_data=TrainingData(batch_refs=refs), return_state=True)
    assert [result[FRAGMENT_REPORT].num_rows for result in results] == [4, 4]
    assert [result[MODULE_STATE][WEIGHTS_SEQ_NO] for result in results if MODULE_STATE in result] == [version + 1]
