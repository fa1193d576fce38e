"""Sharded learners in RLlib: two actors under `TPPOLearnerGroup` against one learner in this process."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from learner_helpers import make_fragments, split
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.config.checks import check_rules
from tppo_rl.core.checkpoint_files import LEARNERS, checkpoint_state, take_checkpoint, write_checkpoint
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.core.sliced_arrays import slice_file, write_slices
from tppo_rl.experiment.checkpoints import checkpoint_path, newest_checkpoint
from tppo_rl.experiment.saver import Saver
from tppo_rl.learner import slices
from tppo_rl.learner.collective import current_collective
from tppo_rl.learner.learner import FRAGMENT_REPORT, MODULE_STATE
from tppo_rl.learner.learner_group import LearnerDied
from tppo_rl.rollout.weight_proof import WeightProof
from tppo_rl.rollout.weight_sync import WeightSync

pytestmark = pytest.mark.integration

SHARES = {
    "even": split(make_fragments(0), 4),
    "one without a finished episode": split(sorted(make_fragments(1), key=lambda fragment: not fragment.finished), 4),
    "one empty": split(make_fragments(2), 8),
    "both empty": [[], []],
}
COMPARED = ("trained_tokens", "policy_loss", "value_loss", "policy_grad_norm", "critic_grad_norm", "entropy")


def build_group(folder: str, **learners: Any) -> Any:
    text = gym.spaces.Text(max_length=64)
    config = (
        TPPOConfig()
        .language_model(folder)
        .training(lr=1e-4, critic_lr=1e-3, micro_batch_tokens=40)
        .learners(**learners)
    )
    return config.build_learner_group(spaces={DEFAULT_MODULE_ID: (text, text)})


def warm_group(folder: str) -> Any:
    """One learner whose critic does not say 0: its first gradients would cancel, and AdamW's steps follow rounding."""
    group = build_group(folder)
    critic = group._learner.module[DEFAULT_MODULE_ID].critic
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        critic.value_head.weight.copy_(torch.randn(critic.value_head.weight.shape, generator=generator) * 0.1)
        critic.value_head.bias.fill_(0.1)
    return group


@pytest.fixture(scope="module")
def sharded(model_folder: str) -> Iterator[Any]:
    ray.init("local", num_cpus=2, include_dashboard=False, ignore_reinit_error=True)
    group = build_group(model_folder, num_learners=2, distributed="fsdp", gradient_checkpointing=True)
    yield group
    group.shutdown()
    ray.shutdown()


def train(group: Any, shares: list[list[Fragment]], **options: Any) -> list[dict[str, Any]]:
    if group.is_local:
        data = TrainingData(batch=table_from_fragments([fragment for share in shares for fragment in share]))
    else:
        data = TrainingData(batches=[table_from_fragments(share) for share in shares])
    return group.update(training_data=data, **options)


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    metrics = result[DEFAULT_MODULE_ID]
    return {name: metrics[name].peek() for name in COMPARED if name in metrics}


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Compares two checkpoint states: names, types, shapes, and numbers within rounding."""
    if isinstance(right, dict):
        assert left.keys() == right.keys(), path
        for name in right:
            assert_same(left[name], right[name], f"{path}/{name}")
    elif isinstance(right, list):
        assert len(left) == len(right), path
        for index, item in enumerate(right):
            assert_same(left[index], item, f"{path}/{index}")
    elif isinstance(right, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        np.testing.assert_allclose(left, right, atol=1e-5, err_msg=path)
    else:
        assert left == right, path


def learner_state(group: Any) -> dict[str, Any]:
    """The group's state but for RLlib's metrics, which hold wall-clock times."""
    return {name: part for name, part in group.get_state()["learner"].items() if name != "metrics_logger"}


def slice_files() -> list[str]:
    return sorted(slice_file(name, part, 2) for name in ("policy", "critic", "optimizers") for part in (0, 1))


def test_the_builder_passes_the_options_on(model_folder: str) -> None:
    config = (
        TPPOConfig()
        .language_model(model_folder, dtype="bfloat16", weights_dtype="bfloat16")
        .learners(num_learners=2, distributed="fsdp", gradient_checkpointing=True)
    )
    assert (config.options.learners.distributed, config.num_learners) == ("fsdp", 2)
    model_config = config.get_default_rl_module_spec().model_config
    assert (model_config["weights_dtype"], model_config["gradient_checkpointing"]) == ("bfloat16", True)
    with pytest.raises(OptionError, match="num_learners=1 leaves nothing to shard over"):
        check_rules(config.learners(num_learners=1).options, config.spec)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shares", SHARES)
def test_two_sharded_actors_equal_one_learner(sharded: Any, model_folder: str, shares: str) -> None:
    alone = warm_group(model_folder)
    sharded.set_state(alone.get_state())
    results, (expected,) = train(sharded, SHARES[shares]), train(alone, SHARES[shares])
    assert [result[FRAGMENT_REPORT].num_rows for result in results] == [len(share) for share in SHARES[shares]]
    for result in results:
        assert metrics_of(result) == pytest.approx(metrics_of(expected), rel=1e-4, abs=1e-6)
    assert_same(learner_state(sharded), learner_state(alone))
    assert_same(sharded.get_weights(), alone.get_weights())


def test_the_learners_are_sharded(sharded: Any) -> None:
    def numbers(learner: Any) -> list[int]:
        parameters = list(learner.module[DEFAULT_MODULE_ID].parameters())
        return [
            sum(parameter.to_local().numel() for parameter in parameters),
            sum(map(torch.Tensor.numel, parameters)),
        ]

    (first, whole), (second, same) = [call.get() for call in sharded.foreach_learner(numbers)]
    assert first + second == whole == same
    assert 0.45 * whole < first < 0.55 * whole


@pytest.mark.timeout(240)
@pytest.mark.parametrize("through", ["state", "path", "files"])
@pytest.mark.parametrize("saved_by", ["sharded learners", "one learner"])
def test_checkpoints_are_exchanged(
    sharded: Any, model_folder: str, tmp_path: Path, saved_by: str, through: str
) -> None:
    alone, expected = warm_group(model_folder), warm_group(model_folder)
    sharded.set_state(alone.get_state())
    source, target = (sharded, alone) if saved_by == "sharded learners" else (alone, sharded)
    for version in range(3):
        parts = split(make_fragments(version, version=version), 5)
        for group in (source, expected):
            train(group, parts)
    if through == "state":
        target.set_state(source.get_state())
    elif through == "files":
        state, written = source.write_state(tmp_path)
        assert sorted(written) == (slice_files() if source is sharded else [])
        write_checkpoint(tmp_path, {LEARNERS: state}, {}, written)
        np.testing.assert_equal(checkpoint_state(tmp_path)[LEARNERS]["learner"], source.get_state()["learner"])
        target.load_state(tmp_path)
        np.testing.assert_equal(learner_state(target), learner_state(source))
    else:
        target.restore_from_path(source.save_to_path(tmp_path / "checkpoint"))
    for version in (3, 4):
        parts = split(make_fragments(version, version=version), 8 - version)
        result, reference = train(target, parts)[0], train(expected, parts)[0]
        assert metrics_of(result) == pytest.approx(metrics_of(reference), rel=1e-4, abs=1e-6)
    assert_same(learner_state(target), learner_state(expected))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("saved_by", ["sharded learners", "one learner"])
def test_what_is_written_while_learners_train_is_the_state_before(
    sharded: Any, model_folder: str, tmp_path: Path, saved_by: str
) -> None:
    """To the last byte of every file."""

    # In here, so that learners get the code and need not find this module.
    def hold_back(learner: Any) -> None:
        learner.may_go_on = threading.Event()

        def later(*arguments: Any) -> Any:
            assert learner.may_go_on.wait(60)
            return write_slices(*arguments)

        slices.write_slices = later

    def let_go(learner: Any) -> None:
        slices.write_slices = write_slices
        learner.may_go_on.set()

    group = sharded if saved_by == "sharded learners" else warm_group(model_folder)
    train(group, SHARES["even"])
    expected, found = tmp_path / "expected", tmp_path / "found"
    state, written = group.write_state(expected)
    write_checkpoint(expected, {LEARNERS: state}, {}, written)
    if saved_by == "sharded learners":
        group.ask(hold_back)
    state, wait = group.begin_state(found)
    taken = take_checkpoint({LEARNERS: state})
    train(group, SHARES["even"])
    if saved_by == "sharded learners":
        assert group.ask(lambda learner: learner.written_files()) == [None, None]
        group.ask(let_go)
    taken.write(found, facts={}, written=wait())
    names = sorted(path.name for path in expected.iterdir())
    assert [path.name for path in sorted(found.iterdir())] == names
    assert [name for name in names if (found / name).read_bytes() != (expected / name).read_bytes()] == []


@pytest.mark.timeout(240)
def test_a_damaged_checkpoint_leaves_sharded_learners_as_they_are(sharded: Any, tmp_path: Path) -> None:
    state, written = sharded.write_state(tmp_path)
    write_checkpoint(tmp_path, {LEARNERS: state}, {}, written)
    train(sharded, SHARES["even"])
    before = learner_state(sharded)
    for name in slice_files():
        whole = (tmp_path / name).read_bytes()
        for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(OptionError, match=name):
                sharded.load_state(tmp_path)
        (tmp_path / name).write_bytes(whole)
    np.testing.assert_equal(learner_state(sharded), before)
    with pytest.raises(OptionError, match=r"is not there on node .* of learner 0; "):
        sharded.check_sees(tmp_path / "nowhere")
    sharded.check_sees(tmp_path)
    sharded.load_state(tmp_path)
    assert learner_state(sharded)[WEIGHTS_SEQ_NO] == before[WEIGHTS_SEQ_NO] - 1


@pytest.mark.timeout(240)
def test_the_weights_of_the_policy_come_back_with_an_update(sharded: Any) -> None:
    results = train(sharded, SHARES["even"], return_state=True)
    (state,) = [result[MODULE_STATE] for result in results if MODULE_STATE in result]
    weights = sharded.get_state(components="learner/rl_module", inference_only=True)["learner"]
    assert state[WEIGHTS_SEQ_NO] == weights[WEIGHTS_SEQ_NO]
    assert_same(state["rl_module"], weights["rl_module"])


@pytest.mark.timeout(240)
def test_one_learner_that_is_asked_alone_says_why_not(sharded: Any) -> None:
    train(sharded, SHARES["even"])
    for actor in (0, 1):
        (call,) = sharded.foreach_learner(
            lambda learner: learner.get_state(), remote_actor_ids=[actor], healthy_only=False
        )
        assert not call.ok
        assert isinstance(call.get(), RuntimeError)
        assert "not gathered here: ask TPPOLearnerGroup.get_state" in str(call.get())
    sharded.foreach_learner(lambda learner: None, healthy_only=False, mark_healthy=True)


@pytest.mark.timeout(240)
def test_weights_and_log_probs_for_the_engines(sharded: Any, model_folder: str) -> None:
    alone = warm_group(model_folder)
    sharded.set_state(alone.get_state())
    received, log_probs = [], []
    for group in (sharded, alone):
        train(group, SHARES["even"])
        env_runner = SimpleNamespace(set_state=lambda state: received.append(copy.deepcopy(state)))
        env_runners = SimpleNamespace(
            healthy_env_runner_ids=list, num_remote_env_runners=int, local_env_runner=env_runner
        )
        sync = WeightSync(group, env_runners, proof=WeightProof(exact=True), probe=range(32))
        sync.push()
        assert sync.version == received[-1][WEIGHTS_SEQ_NO] == 1
        log_probs.append(sync._log_probs_of_trainer([[3, 4, 5, 6, 7], [8, 9]], temperature=0.7))
        train(group, SHARES["one empty"])  # a pass without gradients must not leave old weights behind
    assert_same(received[0]["rl_module"], received[1]["rl_module"])
    assert [len(row) for row in log_probs[0]] == [4, 1]
    for left, right in zip(*log_probs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    assert_same(learner_state(sharded), learner_state(alone))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "in_background", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["in background", "at once"]
)
def test_a_learner_that_dies_while_it_saves_leaves_the_checkpoint_before(
    sharded: Any, model_folder: str, tmp_path: Path, in_background: bool
) -> None:
    """The last test: the group is dead after it."""
    group = sharded
    if not in_background:
        sharded.shutdown()
        group = build_group(model_folder, num_learners=2, distributed="fsdp")

    def save(place: str) -> None:
        state, written = group.write_state(Path(place))
        write_checkpoint(Path(place), {LEARNERS: state}, {}, written)

    def begin(place: Path) -> Callable[[], None]:
        state, wait = group.begin_state(place)
        return lambda: write_checkpoint(place, {LEARNERS: state}, {}, wait())

    # In here, so that learners get the code and need not find this module.
    def write_half(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        os._exit(1)

    def doom(learner: Any) -> None:
        if current_collective().rank == 1:
            slices.write_slices = write_half

    algorithm = SimpleNamespace(save_to_path=save, begin_checkpoint=begin)
    with Saver(1, in_background=in_background, say=print) as saver:
        saver.save(algorithm, checkpoint_path(tmp_path, 1))
        saver.wait()
        group.ask(doom)
        with pytest.raises(LearnerDied, match=r"^learner 1 of 2 died"):  # noqa: PT012
            saver.save(algorithm, checkpoint_path(tmp_path, 2))
            saver.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration_000001"]
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)
