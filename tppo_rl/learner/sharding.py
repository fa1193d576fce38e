"""Models whose weights, gradients and optimizer moments are spread over the learners (torch's FSDP2).

    shard(model)                  every transformer block, and the rest of the model, becomes a part that is gathered
                                  for its forward and backward pass and dropped again; each learner keeps its slice
    same_number_of_passes         what micro-batches have to go through first
    ShardedGradientStep           `GradientStep` on slices
    gathered, load_weights, …     whole tensors out of slices and back

| call | which learners |
|---|---|
| forward and backward of a sharded model, `same_number_of_passes`, `ShardedGradientStep.apply` | all, equally often |
| `gather_weights`, `gather_optimizer_state` | all |
| `load_weights`, `optimizer.load_state_dict` | any: each takes its rows of the whole |

Passes are collective, so a learner with fewer micro-batches than another has to make passes over nothing: a micro-batch
without rows is one token of padding (`TrainBatch.padded`), and a loss over no tokens gives zero gradients.

A gathered state is one of whole tensors, as unsharded models have it: either kind of learner loads those of the other. What is
loaded may also be in files, of which a learner reads its rows (`core.sliced_arrays`); `slices` writes such files.

In half precision blocks are gathered in the compute dtype, half of the bytes, and gradients are summed in float32. The
computation is that of autocast on whole models but for one thing: the blocks' norms, which autocast leaves in float32, have
weights rounded to the compute dtype, as an engine of that dtype has them. Two things keep it so. Inputs of blocks are not
cast: autocast's residual stream is float32. And what stands outside of the blocks is gathered as it is kept: a rounded
embedding would make the whole residual stream one of half precision.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from tppo_rl.learner.collective import Collective, current_collective
from tppo_rl.learner.models import Critic, Policy, transformer_blocks
from tppo_rl.learner.optimizers import StepReport, clip_and_step, parameters_of, scaled_backward, squared_norm
from tppo_rl.learner.transformers_internals import kept_in_float32


def shard(model: Policy | Critic, device: torch.device | None = None) -> None:
    """Shards the model in place over all learners of the process group; they must hold the same weights.

    Gradients are summed over learners, as everywhere in the update step: losses are divided by global counts already.

    Args:
        model: Whole on its device, without gradients and moments; or without weights (see `sharded_build`).
        device: Of the learner, for a model without weights; None: the model's own.
    """
    device = device or next(model.parameters()).device
    group = torch.distributed.group.WORLD
    assert group is not None, "there is no process group"
    mesh = DeviceMesh.from_group(group, device.type)
    of_blocks, of_the_rest = _precision(model)
    blocks = transformer_blocks(model)
    for block in blocks:
        _cast_layer_norms(block)
    for module in (*blocks, model):
        precision = of_the_rest if module is model else of_blocks
        # At the root as well: weights are slices whenever no pass is under way, so that none can be read stale.
        part = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        part.set_gradient_divide_factor(1.0)
        # A factor other than the number of learners is a premultiplied sum otherwise, which gloo does not have.
        part.set_force_sum_reduction_for_comms(True)
    # Mixtures of experts: learners may have sent their tokens to different experts.
    model.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
    for method in ("logits", "read", "within") if isinstance(model, Policy) else ("within",):
        register_fsdp_forward_method(model, method)


def _precision(model: Policy | Critic) -> tuple[MixedPrecisionPolicy, MixedPrecisionPolicy]:
    """Returns the dtypes in which blocks, and the rest of the model, are gathered and their gradients summed."""
    if model.dtype not in (torch.bfloat16, torch.float16):
        return MixedPrecisionPolicy(), MixedPrecisionPolicy()
    rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Some families name weights that half precision will not do for.
    kept = {part for module in model.modules() for part in kept_in_float32(module)}
    if any(part in name for name, _ in model.named_parameters() for part in kept):
        return rest, rest
    return replace(rest, param_dtype=model.dtype), rest


class _LayerNorm(torch.nn.LayerNorm):
    """A layer norm that takes weights of another dtype than its inputs, which on a CPU torch's own refuses."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight, bias = (None if part is None else part.to(inputs.dtype) for part in (self.weight, self.bias))
        return torch.nn.functional.layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)


def _cast_layer_norms(block: torch.nn.Module) -> None:
    for module in block.modules():
        if type(module) is torch.nn.LayerNorm:
            module.__class__ = _LayerNorm


def is_sharded(model: torch.nn.Module | None) -> bool:
    """Whether `shard` was applied to the model."""
    return isinstance(model, FSDPModule)


def same_number_of_passes(model: Policy | Critic, groups: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the micro-batches, with empty ones behind them up to the most that any learner has.

    Without a sharded model they are returned as they are, and nothing is exchanged.

    Args:
        model: What the micro-batches are for.
        groups: int64 row indices of each micro-batch.
    """
    if not is_sharded(model):
        return groups
    most = int(current_collective(model.device).max_(torch.tensor(len(groups))))
    return groups + [torch.zeros(0, dtype=torch.int64)] * (most - len(groups))


class ShardedGradientStep:
    """The gradients of one sharded model and the optimizer that they feed; the interface is that of `GradientStep`.

    Each micro-batch's gradients are summed over learners in its backward pass: collecting them first would take
    gradients of the whole model on every learner.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, max_norm: float | None, collective: Collective, name: str
    ) -> None:
        """Makes the gradients' slices and lets `optimizer.load_state_dict` take whole tensors.

        Args:
            optimizer: Of a sharded model's parameters.
            max_norm: Bound on the global norm; None never clips.
            collective: Sums squared norms over learners.
            name: Names the model in warnings.
        """
        self.optimizer = optimizer
        self._max_norm = max_norm
        self._collective = collective
        self._name = name
        # Zeros rather than None: a parameter without a gradient has the optimizer step of a zero gradient, as in
        # `GradientStep`.
        for parameter in parameters_of(optimizer):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.register_load_state_dict_pre_hook(_slices_of_state)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss, summed over learners."""
        scaled_backward(self.optimizer, loss)

    def zero(self) -> None:
        """Forgets the gradients; call it before the first backward pass of a step."""
        torch._foreach_zero_(self._slices())

    def apply(self, lr: float) -> StepReport:
        """Clips the summed gradients by their global norm and steps with learning rate `lr`.

        Every learner must call it, after equally many backward passes.
        """
        slices = self._slices()
        norm = math.sqrt(float(self._collective.sum_(squared_norm(slices))))
        return clip_and_step(self.optimizer, slices, norm, lr=lr, max_norm=self._max_norm, name=self._name)

    def _slices(self) -> list[torch.Tensor]:
        gradients = [parameter.grad for parameter in parameters_of(self.optimizer)]
        assert all(isinstance(gradient, DTensor) for gradient in gradients), "a gradient is not sharded or not there"
        return [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the whole of a sharded tensor, which all learners must ask for, and other tensors as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(
    model: torch.nn.Module, *, keep: bool = True, only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Returns copies of the whole weights by name; those of half precision as float32, for numpy has no bfloat16.

    All learners must call it where the model is sharded.

    Args:
        model: A model, sharded or not.
        keep: False returns nothing: a learner that only gives its slices to the others needs no memory for the whole.
        only: Names of the wanted weights; None: all.
    """
    copies: dict[Any, np.ndarray] = {}
    weights = {}
    for name, weight in model.state_dict().items():
        if only is not None and name not in only:
            continue
        whole = gathered(weight)
        if keep:
            # Tied weights are there under two names: one copy does for both.
            key = name if whole is not weight else (weight.data_ptr(), weight.shape, weight.stride())
            weights[name] = copies[key] if key in copies else copies.setdefault(key, _to_numpy(whole))
    return weights


class WeightViews:
    """A model's weights without a copy, where it is whole, in float32 and on a CPU."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._parameters: list[torch.Tensor] = []
        self._addresses: list[int] = []
        self._views: dict[str, np.ndarray] = {}

    def of_now(self) -> dict[str, np.ndarray]:
        """Returns the weights by name as `gather_weights` does; they change with the next optimizer step.

        Where there can be no views they are copies, and the model must not be sharded.
        """
        if self._addresses != [parameter.data_ptr() for parameter in self._parameters] or not self._views:
            self._parameters = list(self._model.parameters())
            self._addresses = [parameter.data_ptr() for parameter in self._parameters]
            state = self._model.state_dict()
            if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in state.values()):
                return gather_weights(self._model)
            self._views = {name: weight.numpy() for name, weight in state.items()}
        return dict(self._views)


@torch.no_grad()
def load_weights(model: torch.nn.Module, weights: Mapping[str, Any], *, strict: bool = True) -> None:
    """Loads what `gather_weights` returned, on one learner alone; without `strict` also a part of it.

    One tensor after the other is copied, and of a sharded model's weights the learner's rows alone. So weights may be in files
    (`StoredArray`), and take memory for one of them.

    Raises:
        RuntimeError: names or shapes of the weights are not those of the model.
    """
    current = model.state_dict()
    whole: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        own = current.get(name)
        if own is None or own.shape != weight.shape:
            # torch says it below.
            whole[name] = torch.as_tensor(np.array(weight))
            continue
        local, rows = (own.to_local(), _own_rows(weight, own)) if isinstance(own, DTensor) else (own, weight)
        local.copy_(torch.as_tensor(np.array(rows)))
        whole[name] = own
    model.load_state_dict(whole, strict=strict)


def rows_of(sharded: DTensor) -> tuple[int, int]:
    """Returns the first of a learner's rows of a tensor, and the one after the last."""
    assert sharded.placements == (Shard(0),), "torch shards by rows"
    mesh = sharded.device_mesh
    size = -(-sharded.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * size, sharded.shape[0])
    return start, min(start + size, sharded.shape[0])


def _own_rows(whole: Any, sharded: DTensor) -> Any:
    start, stop = rows_of(sharded)
    return whole[start:stop]


def gather_optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """Returns the optimizer's `state_dict` with whole tensors as numpy arrays, scalars as numbers.

    All learners must call it where the model is sharded; `keep` is that of `gather_weights`.
    """
    state = optimizer.state_dict()
    whole: dict[int, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            tensor = gathered(value)
            if keep:
                whole.setdefault(index, {})[name] = _to_numpy(tensor) if tensor.ndim else tensor.item()
    return state | {"state": whole} if keep else {}


def _slices_of_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Takes this learner's rows out of the tensors of an optimizer's state: whole tensors, arrays, or those in files."""
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    # torch itself says it where the numbers of parameters differ.
    parameters = dict(zip(indices, parameters_of(optimizer), strict=False))
    slices = {
        index: {name: _slice_like(value, parameters[index]) for name, value in entries.items()}
        for index, entries in state_dict["state"].items()
        if index in parameters
    }
    return state_dict | {"state": slices}


def _slice_like(value: Any, sharded: torch.Tensor) -> torch.Tensor:
    """Returns a copy of the rows of `value` that `sharded` has of its tensor; numbers are the same for all learners."""
    if not getattr(value, "shape", ()):
        return torch.as_tensor(value)
    if not isinstance(sharded, DTensor) or value.shape != sharded.shape:
        raise RuntimeError(
            f"moments of shape {tuple(value.shape)} are not those of weights of shape {tuple(sharded.shape)}"
        )
    own = torch.empty_like(sharded, requires_grad=False)
    assert isinstance(own, DTensor)
    rows = _own_rows(value, sharded)
    own.to_local().copy_(rows if isinstance(rows, torch.Tensor) else torch.as_tensor(np.array(rows)))
    return own


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    whole = tensor.cpu()
    whole = whole.to(_at_least_float32(whole)) if whole.is_floating_point() else whole
    # A view would change under the reader's hands with the next optimizer step.
    return whole.numpy().copy() if whole.data_ptr() == tensor.data_ptr() else whole.numpy()


def _at_least_float32(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
