"""Checkpoints that sharded learners write and read by slices: with other numbers of learners, damaged, and their memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from group_helpers import MIB, OTHER_MEMORY, Peak, run_learners
from learner_helpers import estimate_targets
from safetensors import safe_open
from test_sharding import ONE_STEP, Learner, as_tensors, largest_deviation, shares

from tppo_rl.core.checkpoint_files import (
    check_whole,
    checkpoint_state,
    learner_state,
    module_state,
    write_checkpoint,
)
from tppo_rl.core.errors import OptionError
from tppo_rl.core.sliced_arrays import Sliced, slice_file, write_slices
from tppo_rl.learner import sharded_checkpoints
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import SingleLearner, current_collective
from tppo_rl.learner.lora import trained_weights
from tppo_rl.learner.models import Policy, load_causal_lm, transformer_blocks
from tppo_rl.learner.optimizers import make_adamw
from tppo_rl.learner.sharding import ShardedGradientStep, gather_optimizer_state, gather_weights, load_weights, shard
from tppo_rl.learner.slices import take_learner

pytestmark = pytest.mark.integration

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16, "weights_dtype": torch.bfloat16},
    "adapters": {"lora": {"rank": 2}},
}
BEFORE = 2
"""Updates before the checkpoint."""


def new_learner(folder: str, kind: str, distributed: str) -> Learner:
    return Learner(folder, ONE_STEP | {"distributed": distributed}, current_collective(), **KINDS[kind])


def update(learner: Learner, version: int) -> dict[str, float]:
    """The fragments of two learners; further ones have none, and one alone has all."""
    parts = [*shares(version), [], []]
    collective = learner.collective
    batch = batch_from_fragments(parts[0] + parts[1] if collective.size == 1 else parts[collective.rank])
    return learner.step.run(batch, estimate_targets(learner.critic, batch, learner.step.options), version).metrics


def optimizers_of(learner: Learner) -> dict[str, torch.optim.Optimizer]:
    assert learner.step.critic_optimizer is not None
    return {"policy": learner.step.policy_optimizer, "critic": learner.step.critic_optimizer}


def whole_state(learner: Learner) -> dict[str, Any]:
    """As `get_state` of a learner has it."""
    models = {"policy": learner.policy, "critic": learner.critic}
    return {
        "rl_module": {
            "default_policy": {name: trained_weights(model, gather_weights(model)) for name, model in models.items()}
        },
        "optimizer": {name: gather_optimizer_state(one) for name, one in optimizers_of(learner).items()},
        "update_step": learner.step.get_state(),
    }


def save_and_go_on(folder: str, place: str) -> dict[str, Any]:
    found = {}
    for kind in KINDS:
        learner = new_learner(folder, kind, "fsdp")
        for version in range(BEFORE):
            update(learner, version)
        models = {
            name: trained_weights(model, model.state_dict(keep_vars=True))
            for name, model in (("policy", learner.policy), ("critic", learner.critic))
        }
        target = Path(place) / kind
        target.mkdir(exist_ok=True, parents=True)
        taken = take_learner(learner.collective, models, optimizers_of(learner).items())
        found[kind] = {
            "state": {
                "rl_module": {"default_policy": taken.weights},
                "optimizer": taken.optimizers,
                "update_step": learner.step.get_state(),
            },
            "files": taken.write(target),
            "gathered": whole_state(learner),
            "metrics": update(learner, BEFORE),
            "after": whole_state(learner),
        }
    return found


def load_and_go_on(folder: str, place: str, distributed: str, kinds: list[str]) -> dict[str, Any]:
    found = {}
    for kind in kinds:
        learner = new_learner(folder, kind, distributed)
        update(learner, 5)  # what was there before is to be gone
        state = learner_state(Path(place) / kind, lazily=distributed == "fsdp")
        models = state["rl_module"]["default_policy"]
        load_weights(learner.policy, models["policy"], strict="lora" not in KINDS[kind])
        load_weights(learner.critic, models["critic"], strict="lora" not in KINDS[kind])
        for name, optimizer in optimizers_of(learner).items():
            whole = state["optimizer"][name]
            optimizer.load_state_dict(whole if distributed == "fsdp" else as_tensors(whole))
        learner.step.set_state(state["update_step"])
        found[kind] = {
            "gathered": whole_state(learner),
            "metrics": update(learner, BEFORE),
            "after": whole_state(learner),
        }
    return found


def assert_identical(left: Any, right: Any, path: str = "") -> None:
    """To the last bit; numbers of half precision stand in files as they are, and are given as float32."""
    if isinstance(right, dict):
        assert left.keys() == right.keys(), path
        for name in right:
            assert_identical(left[name], right[name], f"{path}/{name}")
    elif isinstance(right, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.tobytes() == right.tobytes(), path
    else:
        assert left == right, path


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "seconds" not in name and value == value}  # noqa: PLR0124


@pytest.fixture(scope="module")
def saved(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Checkpoints that two learners have written, by kind, and what the first one says of each."""
    folder = tmp_path_factory.mktemp("saved")
    outcomes = run_learners(save_and_go_on, 2, folder / "group", model_folder, str(folder))
    for kind in KINDS:
        # Every learner says the same of all.
        assert outcomes[0][kind]["state"] == outcomes[1][kind]["state"]
        files = outcomes[0][kind]["files"] | outcomes[1][kind]["files"]
        state = {"learner_group": {"learner": outcomes[0][kind]["state"]}}
        write_checkpoint(folder / kind, state, {"iteration": BEFORE}, files)
    return folder, outcomes[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_slices_make_up_the_whole_state(saved: tuple[Path, dict[str, Any]], kind: str) -> None:
    folder, expected = saved
    names = {slice_file(name, part, 2) for name in ("policy", "critic", "optimizers") for part in (0, 1)}
    assert {path.name for path in (folder / kind).iterdir()} == {"manifest.json", "state.json", *names}
    with safe_open(str(folder / kind / slice_file("policy", 0, 2)), framework="pt") as file:
        keys = set(file.keys())
    assert ("model.lm_head.weight" in keys) != ("model.model.embed_tokens.weight" in keys) or kind == "adapters"
    assert check_whole(folder / kind)["iteration"] == BEFORE
    whole = checkpoint_state(folder / kind)["learner_group"]["learner"]
    assert_identical(whole, expected[kind]["gathered"])
    weights = module_state(folder / kind)
    read = {model: {name: np.asarray(one) for name, one in named.items()} for model, named in weights.items()}
    assert_identical(read, expected[kind]["gathered"]["rl_module"]["default_policy"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_learners", [2, 3])
def test_any_number_of_sharded_learners_goes_on(
    saved: tuple[Path, dict[str, Any]], model_folder: str, tmp_path: Path, num_learners: int
) -> None:
    folder, expected = saved
    kinds = [*KINDS] if num_learners == 2 else ["float32", "adapters"]
    arguments = (model_folder, str(folder), "fsdp", kinds)
    for found in run_learners(load_and_go_on, num_learners, tmp_path / "group", *arguments):
        for kind in kinds:
            assert_goes_on(found[kind], expected[kind], exactly=num_learners == 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["float32", "adapters"])
def test_one_whole_learner_goes_on(saved: tuple[Path, dict[str, Any]], model_folder: str, kind: str) -> None:
    folder, expected = saved
    found = load_and_go_on(model_folder, str(folder), "ddp", [kind])
    assert_goes_on(found[kind], expected[kind], exactly=False)


def assert_goes_on(found: dict[str, Any], expected: dict[str, Any], *, exactly: bool) -> None:
    """The state is that which was saved, to the last bit, and the next update the one that followed there."""
    assert_identical(found["gathered"], expected["gathered"])
    if exactly:
        assert without_seconds(found["metrics"]) == without_seconds(expected["metrics"])
        assert_identical(found["after"], expected["after"])
        return
    compared = ("policy_loss", "value_loss", "policy_grad_norm", "critic_grad_norm", "entropy")
    pair = [[{name: one["metrics"][name] for name in compared}] for one in (found, expected)]
    assert largest_deviation(*pair) < 1e-5
    for name, weight in expected["after"]["rl_module"]["default_policy"]["policy"].items():
        own = found["after"]["rl_module"]["default_policy"]["policy"][name]
        np.testing.assert_allclose(own, weight, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sharded_learners_go_on_from_whole_ones(model_folder: str, tmp_path: Path) -> None:
    alone = Learner(model_folder, ONE_STEP, SingleLearner())
    for version in range(BEFORE):
        update(alone, version)
    gathered = whole_state(alone)
    write_checkpoint(tmp_path / "float32", {"learner_group": {"learner": gathered}}, {})
    expected = {"gathered": gathered, "metrics": update(alone, BEFORE), "after": whole_state(alone)}
    arguments = (model_folder, str(tmp_path), "fsdp", ["float32"])
    for found in run_learners(load_and_go_on, 2, tmp_path / "group", *arguments):
        assert_goes_on(found["float32"], expected, exactly=False)


def test_moments_of_another_model_are_refused() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = torch.optim.AdamW([parameter])
    ShardedGradientStep(optimizer, max_norm=None, collective=SingleLearner(), name="policy")
    state = optimizer.state_dict() | {"state": {0: {"exp_avg": np.zeros((3, 2), np.float32)}}}
    with pytest.raises(RuntimeError, match=r"moments of shape \(3, 2\) are not those of weights of shape \(4, 2\)"):
        optimizer.load_state_dict(state)


class StubLearner:
    """Writes a file of one array where it is told, or on a disk of its own."""

    def __init__(self, own_disk: Path | None = None, error: Exception | None = None) -> None:
        self.own_disk, self.error = own_disk, error
        self.loaded: dict[str, Any] | None = None

    def write_state(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.error is not None:
            raise self.error
        file = slice_file("policy", 0, 1)
        facts = write_slices((self.own_disk or folder) / file, {"w": torch.arange(6.0).reshape(3, 2)}, {})
        return {"rl_module": {"w": Sliced("policy", 1, "w", (3, 2))}}, {file: facts}

    def set_state(self, state: dict[str, Any]) -> None:
        self.loaded = state


def asking(learner: StubLearner) -> Callable[[Callable[[Any], Any]], list[Any]]:
    return lambda function: [function(learner)]


def test_what_no_driver_sees_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("shared", "own"):
        (tmp_path / name).mkdir()
    learner = StubLearner(own_disk=tmp_path / "own")
    with pytest.raises(OptionError, match=r"shared/policy_0_of_1\.safetensors'.* not there on the driver's; .* share"):
        sharded_checkpoints.write_slices(asking(learner), tmp_path / "shared")
    with pytest.raises(OptionError, match=r"^checkpoint='.*gone': is not there on node '.*' of learner 0; "):
        sharded_checkpoints.write_slices(asking(StubLearner()), tmp_path / "gone")
    with pytest.raises(OptionError, match="gone': is not there on node"):
        sharded_checkpoints.check_seen(asking(StubLearner()), tmp_path / "gone")


def test_an_error_of_a_learner_is_that_of_the_save(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught:
        sharded_checkpoints.write_slices(asking(StubLearner(error=full)), tmp_path)
    assert caught.value.errno == 28


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "gone for the learner", "rows twice"])
def test_damaged_slices_change_no_learner(tmp_path: Path, damage: str) -> None:
    learner = StubLearner()
    state, files = sharded_checkpoints.write_slices(asking(learner), tmp_path)
    write_checkpoint(tmp_path, {"learner_group": {"learner": state}}, {}, files)
    sharded_checkpoints.load_slices(asking(learner), tmp_path)
    assert learner.loaded is not None
    np.testing.assert_array_equal(learner.loaded["rl_module"]["w"][1:3], [[2, 3], [4, 5]])
    learner.loaded = None
    file = tmp_path / "policy_0_of_1.safetensors"
    content = bytearray(file.read_bytes())
    message = r"policy_0_of_1\.safetensors is not what was written: its checksum differs"

    def ask(function: Callable[[Any], Any]) -> list[Any]:
        if damage == "gone for the learner":
            file.unlink()
        return [function(learner)]

    if damage == "flipped":
        content[-3] ^= 4
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
        message = r"policy_0_of_1\.safetensors has .* bytes, and .* were written"
    elif damage == "rows twice":
        facts = write_slices(file, {"w": torch.zeros(3, 2)}, {"w": 1})
        write_checkpoint(tmp_path, {"learner_group": {"learner": state}}, {}, {file.name: facts})
        message = r"w: its slices do not make up an array of shape \(3, 2\)"
    elif damage == "gone":
        file.unlink()
        message = r"policy_0_of_1\.safetensors.* is not there on node"
    else:
        message = r"policy_0_of_1\.safetensors.* is not there on node"
    with pytest.raises(OptionError, match=message):
        sharded_checkpoints.load_slices(ask, tmp_path)
    assert learner.loaded is None


def measured(source: str, warm: str, place: str) -> dict[str, int]:
    """Saves a policy with moments, then loads it into a new optimizer; the first, small one loads the code."""
    collective = current_collective()
    for folder in (warm, source):
        policy = Policy(load_causal_lm(folder, torch.float32))
        shard(policy)
        optimizer = adamw(policy)
        optimizer.step()
        target = Path(place) / Path(folder).name
        target.mkdir(exist_ok=True)
        models = {"policy": policy.state_dict(keep_vars=True)}
        with Peak() as saving:
            taken = take_learner(collective, models, [("policy", optimizer)])
            written = taken.write(target)
        with Peak() as gathering:
            gather_optimizer_state(optimizer)
        files: list[Any] = [None] * collective.size
        torch.distributed.all_gather_object(files, written)
        if collective.rank == 0:
            state = {"rl_module": taken.weights["policy"], "optimizer": taken.optimizers["policy"]}
            all_files = {name: facts for one in files for name, facts in one.items()}
            write_checkpoint(target, {"learner_group": {"learner": state}}, {}, all_files)
        torch.distributed.barrier()
        optimizer = adamw(policy)
        with Peak() as loading:
            read = learner_state(target, lazily=True)
            load_weights(policy, read["rl_module"])
            optimizer.load_state_dict(read["optimizer"])
    sizes = [parameter.numel() * 4 for parameter in policy.parameters()]
    block = max(sum(p.numel() * 4 for p in block.parameters()) for block in transformer_blocks(policy))
    return {
        "saving": saving.bytes,
        "gathering": gathering.bytes,
        "loading": loading.bytes,
        "weights": sum(sizes),
        "block": block,
    }


def adamw(policy: Policy) -> torch.optim.AdamW:
    optimizer = make_adamw(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    ShardedGradientStep(optimizer, max_norm=None, collective=current_collective(), name="policy")
    return optimizer


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("num_learners", [2, 4])
def test_no_process_takes_more_than_its_slices_and_a_block(
    large_model: str, model_folder: str, tmp_path: Path, num_learners: int
) -> None:
    arguments = (large_model, model_folder, str(tmp_path))
    for rank, found in enumerate(run_learners(measured, num_learners, tmp_path / "group", *arguments)):
        moments = 2 * found["weights"] / num_learners
        print(
            f"{num_learners} learners, learner {rank}: weights and moments {3 * found['weights'] / MIB:.1f} MiB, a block "
            f"{found['block'] / MIB:.1f}, own moments {moments / MIB:.1f}; peak while saving {found['saving'] / MIB:.1f} more, while "
            f"loading {found['loading'] / MIB:.1f} more, while gathering moments {found['gathering'] / MIB:.1f} more"
        )
        assert found["weights"] > 90 * MIB
        assert found["saving"] < found["block"] + OTHER_MEMORY
        assert found["loading"] < moments + found["block"] + OTHER_MEMORY
        # What measures so little sees whole moments.
        assert found["gathering"] > 1.95 * found["weights"]
