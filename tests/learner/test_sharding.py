"""Two learners in two processes that share one copy of weights, gradients and moments, against one learner."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_helpers import (
    VOCABULARY,
    estimate_targets,
    load_models,
    make_fragment,
    make_fragments,
    round_norms_of_blocks,
    run_two_learners,
    save_tiny_model,
    split,
)
from torch.distributed.tensor import DTensor

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner import models
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import Collective, SingleLearner, current_collective
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.models import Critic, Policy, recompute_activations
from tppo_rl.learner.sharding import (
    gather_optimizer_state,
    gather_weights,
    gathered,
    is_sharded,
    load_weights,
    same_number_of_passes,
)
from tppo_rl.learner.update import UpdateStep

NUM_UPDATES = 20
NUM_KINDS = 6  # of shares
COMPARED = ("policy_loss", "value_loss", "entropy", "policy_grad_norm", "critic_grad_norm", "value_mean")
# Micro-batches of 40 tokens: learners with different shares have to make up for different numbers of passes.
ONE_STEP = {"lr": 3e-4, "critic_lr": 1e-3, "weight_decay": 0.1, "micro_batch_tokens": 40}
MINIBATCHES = ONE_STEP | {"minibatch_size": 10, "critic_minibatch_size": 12, "num_epochs": 2, "critic_num_epochs": 2}
RECOMPUTED = ONE_STEP | {"off_policy_correction": "none", "critic_warmup_updates": 2, "lr_warmup_updates": 5}


def shares(update: int) -> list[list[Fragment]]:
    """The fragments of one update on two learners; the kinds of shares take turns."""
    fragments = make_fragments(update, version=update)
    finished_first = sorted(fragments, key=lambda fragment: not fragment.finished)
    long = [
        make_fragment(
            np.random.default_rng(1000 + update), context=90, earlier=40, tokens=30, finished=True, version=update
        )
    ]
    return [
        split(fragments, 4),
        split(finished_first, 4),  # the second share has no finished episode
        split(fragments, 8),  # the second share is empty
        split(fragments, 0),  # the first share is empty
        [fragments, long],  # 8 short sequences and a long one
        split([replace(f, terminated=False, rewards=f.rewards * 0, correct=None) for f in fragments], 7),
    ][update % NUM_KINDS]


class Learner:
    """Models and update step of one learner, with a state that any kind of learner can load."""

    def __init__(
        self,
        folder: str,
        options: dict[str, Any],
        collective: Collective,
        *,
        recompute: bool = False,
        dtype: torch.dtype = torch.float32,
        weights_dtype: torch.dtype = torch.float32,
        lora: dict[str, Any] | None = None,
        rounded: bool = False,
    ) -> None:
        self.policy, self.critic = load_models(folder, dtype, weights_dtype=weights_dtype, lora=lora)
        for model in (self.policy, self.critic) if rounded else ():
            round_norms_of_blocks(model)
        for model in (self.policy, self.critic) if recompute else ():
            recompute_activations(model)
        self.collective = collective
        tokens = options.get("context_cache_tokens", 0)
        self.caches = [ContextCache(tokens), ContextCache(tokens)] if tokens else []
        own = self.caches[0] if self.caches else None
        self.step = UpdateStep(self.policy, self.critic, Options.of(**options), collective, own)

    def update(self, version: int) -> dict[str, float]:
        parts = shares(version)
        share = parts[0] + parts[1] if self.collective.size == 1 else parts[self.collective.rank]
        batch = batch_from_fragments(share)
        # The made-up episodes have the same numbers in every update.
        for cache in self.caches:
            cache.clear()
        cache = self.caches[1] if self.caches else None
        targets = estimate_targets(self.critic, batch, self.step.options, cache=cache)
        result = self.step.run(batch, targets, version)
        return {name: result.metrics[name] for name in COMPARED if name in result.metrics}

    def state(self) -> dict[str, Any]:
        assert self.step.critic_optimizer is not None
        return {
            "policy": gather_weights(self.policy),
            "critic": gather_weights(self.critic),
            "policy_optimizer": gather_optimizer_state(self.step.policy_optimizer),
            "critic_optimizer": gather_optimizer_state(self.step.critic_optimizer),
            "counters": self.step.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        assert self.step.critic_optimizer is not None
        load_weights(self.policy, state["policy"])
        load_weights(self.critic, state["critic"])
        self.step.policy_optimizer.load_state_dict(as_tensors(state["policy_optimizer"]))
        self.step.critic_optimizer.load_state_dict(as_tensors(state["critic_optimizer"]))
        self.step.set_state(state["counters"])


def as_tensors(state: dict[str, Any]) -> dict[str, Any]:
    # Copies: the optimizer goes on with the tensors that it is given.
    entries = {i: {name: torch.tensor(value) for name, value in e.items()} for i, e in state["state"].items()}
    return state | {"state": entries}


def trajectory(
    folder: str,
    phases: list[tuple[str, int, int]],
    options: dict[str, Any],
    collective: Collective,
    *,
    state: dict[str, Any] | None = None,
    **models: Any,
) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Makes the updates of (`distributed`, first, last + 1), with new learners and a checkpoint between the phases.

    Returns the metrics of each update and the checkpoint after each phase.
    """
    metrics, states = [], []
    for distributed, first, last in phases:
        learner = Learner(folder, options | {"distributed": distributed}, collective, **models)
        assert is_sharded(learner.policy) == is_sharded(learner.critic) == (distributed == "fsdp")
        if state is not None:
            learner.load(state)
        metrics += [learner.update(version) for version in range(first, last)]
        state = learner.state()
        states.append(state)
    return metrics, states


PLANS: dict[str, tuple[list[tuple[str, int, int]], dict[str, Any]]] = {
    "ddp": ([("ddp", 0, NUM_UPDATES)], ONE_STEP),
    "fsdp": ([("fsdp", 0, NUM_UPDATES)], ONE_STEP),
    "ddp, then fsdp": ([("ddp", 0, 10), ("fsdp", 10, NUM_UPDATES)], ONE_STEP),
    "fsdp, then ddp": ([("fsdp", 0, 10), ("ddp", 10, NUM_UPDATES)], ONE_STEP),
    "recomputed log-probs": ([("fsdp", 0, NUM_UPDATES)], RECOMPUTED),
    "recomputed activations": ([("fsdp", 0, NUM_KINDS)], ONE_STEP),
    "packed": ([("fsdp", 0, NUM_KINDS)], ONE_STEP | {"packing": True}),
    "gradient of windows alone, contexts that are kept": (
        [("fsdp", 0, NUM_KINDS)],
        ONE_STEP | {"context_gradient": False, "context_cache_tokens": 1000},
    ),
    "gradient of windows alone": ([("fsdp", 0, NUM_KINDS)], ONE_STEP | {"context_gradient": False}),
    "gradient of windows alone, recomputed activations": (
        [("fsdp", 0, NUM_KINDS)],
        ONE_STEP | {"context_gradient": False},
    ),
}


def learner(rank: int, folder: str, meeting_point: str, results: str) -> None:
    assert "ray" not in sys.modules, "sharding is plain torch"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    collective = current_collective()
    outcomes: dict[str, Any] = {
        name: trajectory(folder, phases, options, collective, recompute="activations" in name)
        for name, (phases, options) in PLANS.items()
    }
    for distributed in ("ddp", "fsdp"):
        outcomes[f"minibatches, {distributed}"] = trajectory(
            folder, [(distributed, 0, NUM_KINDS)], MINIBATCHES, collective
        )
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            # Sharded blocks compute with rounded norms, and a token at the bound of the clip falls on one side or the
            # other with them: whole models are given rounded ones too.
            numbers: dict[str, Any] = {"dtype": torch.bfloat16, "weights_dtype": dtype, "rounded": distributed == "ddp"}
            outcomes[f"bfloat16 with {name} weights, {distributed}"] = trajectory(
                folder, [(distributed, 0, NUM_KINDS)], ONE_STEP, collective, **numbers
            )
        for recompute in (False, True):
            name = f"adapters{' and recomputed activations' if recompute else ''}, {distributed}"
            outcomes[name] = trajectory(
                folder, [(distributed, 0, NUM_KINDS)], ONE_STEP, collective, recompute=recompute, lora={"rank": 2}
            )
    models.MAX_LOGITS = 3 * VOCABULARY
    outcomes["logits in parts"] = trajectory(folder, [("fsdp", 0, NUM_KINDS)], ONE_STEP, collective)
    alone = torch.load(f"{results}.alone", weights_only=False)
    outcomes["one learner, then fsdp"] = trajectory(
        folder, [("fsdp", 10, NUM_UPDATES)], ONE_STEP, collective, state=alone
    )
    outcomes["held"] = held(Learner(folder, ONE_STEP | {"distributed": "fsdp"}, collective))
    outcomes["not finite"] = not_finite(Learner(folder, ONE_STEP | {"distributed": "fsdp"}, collective))
    outcomes["logits"] = logits(Learner(folder, ONE_STEP | {"distributed": "fsdp"}, collective))
    torch.save(outcomes, f"{results}.{rank}")
    torch.distributed.destroy_process_group()


def held(learner: Learner) -> dict[str, int]:
    """Numbers that this learner keeps between updates."""
    learner.update(0)
    assert learner.step.critic_optimizer is not None
    parameters = [*learner.policy.parameters(), *learner.critic.parameters()]
    gradients = [parameter.grad for parameter in parameters]
    moments = [
        value
        for optimizer in (learner.step.policy_optimizer, learner.step.critic_optimizer)
        for entries in optimizer.state.values()
        for value in entries.values()
        if value.ndim
    ]
    return {
        "weights": sum(local(tensor).numel() for tensor in parameters),
        "gradients": sum(local(tensor).numel() for tensor in gradients if tensor is not None),
        "moments": sum(local(tensor).numel() for tensor in moments),
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def not_finite(learner: Learner) -> tuple[bool, dict[str, float]]:
    """Breaks the advantages of the second learner alone; whether the policy stayed, and the metrics."""
    before = gather_weights(learner.policy)
    batch = batch_from_fragments(shares(0)[learner.collective.rank])
    targets = estimate_targets(learner.critic, batch, learner.step.options)
    if learner.collective.rank == 1:
        targets = replace(targets, advantages=torch.full_like(targets.advantages, float("inf")))
    metrics = learner.step.run(batch, targets, 0).metrics
    after = gather_weights(learner.policy)
    return all((before[name] == after[name]).all() for name in before), metrics


def logits(learner: Learner) -> torch.Tensor:
    learner.update(0)
    with torch.no_grad():
        return gathered(learner.policy.logits(torch.tensor([[3, 4, 5, 6]])))


@pytest.fixture(scope="module")
def alone(model_folder: str) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """One learner; its checkpoints after half of the updates and after all."""
    return trajectory(model_folder, [("ddp", 0, 10), ("ddp", 10, NUM_UPDATES)], ONE_STEP, SingleLearner())


@pytest.fixture(scope="module")
def two_learners(model_folder: str, alone: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("sharded")
    torch.save(alone[1][0], folder / "result.alone")
    return run_two_learners(learner, folder, model_folder, timeout_s=240)


def largest_deviation(left: list[dict[str, float]], right: list[dict[str, float]]) -> float:
    assert [metrics.keys() for metrics in left] == [metrics.keys() for metrics in right]
    return max(abs(a[name] - b[name]) / max(1.0, abs(b[name])) for a, b in zip(left, right, strict=True) for name in a)


def assert_same_state(left: Any, right: Any, path: str = "", *, tolerance: float = 1e-3) -> None:
    """Compares two states with nested names down to their arrays, which must also agree in type."""
    if isinstance(right, dict):
        assert left.keys() == right.keys(), path
        for name in right:
            assert_same_state(left[name], right[name], f"{path}/{name}", tolerance=tolerance)
    elif hasattr(right, "dtype"):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), atol=tolerance, rtol=tolerance)
    else:
        assert left == right, path


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("plan", [*PLANS, "logits in parts", "one learner, then fsdp"])
def test_loss_trajectories_equal_those_of_one_learner(
    two_learners: list[dict[str, Any]], alone: Any, model_folder: str, plan: str
) -> None:
    (first, states), (second, _) = (outcomes[plan] for outcomes in two_learners)
    expected, expected_states = alone
    if plan == "recomputed log-probs" or plan.startswith("gradient of windows alone"):
        phases, options = PLANS[plan]
        unsharded = [("ddp", *updates) for _, *updates in phases]
        expected, expected_states = trajectory(model_folder, unsharded, options, SingleLearner())
    start = 10 if plan.startswith("one learner") else 0
    deviation = largest_deviation(first, expected[start : start + len(first)])
    print(f"{plan}: largest deviation {deviation:.1e}")
    assert first == second
    assert start + len(first) in (NUM_KINDS, NUM_UPDATES)
    assert any(metrics["policy_grad_norm"] > 1 for metrics in first if "policy_grad_norm" in metrics)
    assert deviation < 1e-4
    if start + len(first) == NUM_UPDATES:
        assert_same_state(states[-1], expected_states[-1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_learner_goes_on_from_sharded_ones(
    two_learners: list[dict[str, Any]], alone: Any, model_folder: str
) -> None:
    _, (half, _) = two_learners[0]["fsdp, then ddp"]
    metrics, _ = trajectory(model_folder, [("ddp", 10, NUM_UPDATES)], ONE_STEP, SingleLearner(), state=half)
    assert largest_deviation(metrics, alone[0][10:]) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_minibatches_are_those_of_whole_models(two_learners: list[dict[str, Any]]) -> None:
    """Shares are cut into other minibatches than the whole, so two learners are compared with two."""
    for outcomes in two_learners:
        deviation = largest_deviation(outcomes["minibatches, fsdp"][0], outcomes["minibatches, ddp"][0])
        assert deviation < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["adapters", "adapters and recomputed activations"])
def test_adapters_of_sharded_models_train_as_those_of_whole_ones(two_learners: list[dict[str, Any]], name: str) -> None:
    metrics, (state,) = two_learners[0][f"{name}, fsdp"]
    expected, (expected_state,) = two_learners[0]["adapters, ddp"]
    assert metrics == two_learners[1][f"{name}, fsdp"][0]
    assert largest_deviation(metrics, expected) < 1e-4
    assert_same_state(state, expected_state)


@pytest.mark.slow
@pytest.mark.timeout(300)
# Weights of 8 bits are rounded in every update, by sums in another order otherwise: gradient norms move by some roundings.
@pytest.mark.parametrize(
    ("weights", "tolerance"), [("float32", 1e-4), ("bfloat16", 8 * torch.finfo(torch.bfloat16).eps)]
)
def test_bfloat16_is_that_of_whole_models(two_learners: list[dict[str, Any]], weights: str, tolerance: float) -> None:
    first, second = two_learners
    metrics, (state,) = first[f"bfloat16 with {weights} weights, fsdp"]
    expected, (expected_state,) = first[f"bfloat16 with {weights} weights, ddp"]
    assert metrics == second[f"bfloat16 with {weights} weights, fsdp"][0]
    deviation = largest_deviation(metrics, expected)
    print(f"bfloat16 with {weights} weights: largest deviation {deviation:.1e}")
    assert largest_deviation(metrics[:1], expected[:1]) < 1e-3
    assert deviation < tolerance
    assert_same_state(state, expected_state, tolerance=0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_learner_holds_its_slices_alone(two_learners: list[dict[str, Any]], model_folder: str) -> None:
    whole = sum(parameter.numel() for model in load_models(model_folder) for parameter in model.parameters())
    first, second = (outcomes["held"] for outcomes in two_learners)
    for name, numbers in {"weights": whole, "gradients": whole, "moments": 2 * whole}.items():
        assert first[name] + second[name] == numbers, name
        assert 0.45 * numbers < first[name] < 0.55 * numbers, name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gradient_that_is_not_finite_on_one_learner_skips_the_step_on_all(two_learners: list[dict[str, Any]]) -> None:
    for outcomes in two_learners:
        stayed, metrics = outcomes["not finite"]
        assert stayed
        assert (metrics["policy_skipped_steps"], metrics["critic_skipped_steps"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_plain_logits_of_a_sharded_policy(two_learners: list[dict[str, Any]], model_folder: str) -> None:
    learner = Learner(model_folder, ONE_STEP, SingleLearner())
    expected = logits(learner)
    for outcomes in two_learners:
        torch.testing.assert_close(outcomes["logits"], expected, atol=1e-3, rtol=1e-3)


def test_alone_there_is_nothing_to_share(model_folder: str) -> None:
    policy, critic = load_models(model_folder)
    with pytest.raises(ValueError, match=r"^distributed='fsdp'"):
        UpdateStep(policy, critic, Options.of(distributed="fsdp"))
    groups = [torch.tensor([1])]
    assert same_number_of_passes(policy, groups) is groups


def test_weights_of_another_model_are_refused(model_folder: str, tmp_path: Path) -> None:
    policy, critic = load_models(model_folder)
    other, _ = load_models(save_tiny_model(tmp_path, seed=1))
    load_weights(policy, gather_weights(other))
    assert (gather_weights(policy)["model.model.norm.weight"] == gather_weights(other)["model.model.norm.weight"]).all()
    with pytest.raises(RuntimeError, match="value_head"):
        load_weights(critic, gather_weights(other))
    assert isinstance(policy, Policy)
    assert isinstance(critic, Critic)
