"""The update step against a bare torch loop over the very same micro-batches: `tppo-rl bench learner`.

Ours is timed from fragments to new weights: batch, values, advantages, policy and critic, with all metrics. The bare loop
has its inputs prepared beforehand and makes nothing but the forward and backward passes, the losses and the optimizer
steps. Each has models of its own that begin with the same weights; the first update of both gives the same gradients,
which is checked. After it they are timed in turn, repeat by repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.workloads import RANDOM_MODELS, random_model, tppo_fragments, whole_episodes
from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.process_memory import process_memory
from tppo_rl.core.schedules import rate_at
from tppo_rl.kernels.denormals import flushed_subnormals
from tppo_rl.kernels.onednn_linear import use_fastest_linear
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments, last_positions
from tppo_rl.learner.micro_batches import micro_batches, minibatches
from tppo_rl.learner.models import Critic, Policy, load_causal_lm, parse_dtype, transformer_blocks
from tppo_rl.learner.optimizers import make_adamw
from tppo_rl.learner.packing import model_input
from tppo_rl.learner.sampled_log_probs import sampled_log_probs
from tppo_rl.learner.targets import ModelSet, Targets, estimate
from tppo_rl.learner.update import UpdateStep

LARGEST_GRADIENT_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Relative; above it the two loops would not do the same work."""
_GIB = 2**30


@flushed_subnormals()
def learner_figures(
    *,
    model: str,
    random_weights: str | None,
    lengths: Sequence[int],
    window: int,
    tokens: int,
    micro_batch_tokens: int,
    dtype: str,
    device: str,
    threads: int | None,
    peak_tflops: float | None,
    repeats: int,
) -> list[Figure]:
    """Measures a workload of T-PPO fragments, and one of whole episodes for each length.

    Args:
        model: Folder, hub id, or name of a shipped model.
        random_weights: A name of `RANDOM_MODELS` instead: nothing is read or downloaded.
        lengths: Tokens of each episode, prompt included.
        window: Longest fragment of the T-PPO workload, sampled tokens.
        tokens: Sampled tokens of an update.
        micro_batch_tokens: As in `Options`.
        dtype: "float32" or "bfloat16", of the computation; weights are float32.
        device: "cpu" or "cuda".
        threads: Torch threads; None leaves them.
        peak_tflops: What the device could do in this dtype; gives the utilization.
        repeats: Updates of each loop that are timed.

    Raises:
        ValueError: an unknown model, dtype or device, or a length that leaves no room for a response.
        RuntimeError: the two loops differ in the directions of their gradients.
    """
    if random_weights is not None and random_weights not in RANDOM_MODELS:
        raise ValueError(f"random_weights={random_weights!r} is unknown: use one of {', '.join(RANDOM_MODELS)}")
    if dtype not in LARGEST_GRADIENT_DIFFERENCE:
        raise ValueError(f"dtype={dtype!r}: use one of {', '.join(LARGEST_GRADIENT_DIFFERENCE)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch sees no such device here")
    if threads is not None:
        torch.set_num_threads(threads)
    options = Options.of(micro_batch_tokens=micro_batch_tokens)
    figures = []
    for name in (f"windows of {window}", *(f"{length} tokens" for length in lengths)):
        make = partial(make_models, model, random_weights, dtype, device)
        ours = make()
        vocabulary = ours.policy.model.config.vocab_size
        if name.startswith("windows"):
            fragments = tppo_fragments(vocabulary, tokens=tokens, window=window)
        else:
            fragments = whole_episodes(vocabulary, tokens=tokens, length=int(name.split()[0]))
        pair = _Pair(ours, fragments, options, device)
        pair.first_update(make, dtype)
        figures += pair.measure(name, repeats, peak_tflops)
        del ours, pair  # The next models need the memory.
    return figures


class Models(NamedTuple):
    """A policy and its critic."""

    policy: Policy
    critic: Critic


def make_models(model: str, random_weights: str | None, dtype: str, device: str) -> Models:
    """Returns a policy and a critic whose weights are the same at every call."""
    compute = parse_dtype(dtype)
    torch.manual_seed(0)
    if random_weights is None:
        backbones = [load_causal_lm(resolve_model(model), compute) for _ in range(2)]
    else:
        backbones = [random_model(random_weights) for _ in range(2)]
    for backbone in backbones:
        use_fastest_linear(backbone)
    policy, critic = Policy(backbones[0], compute), Critic(backbones[1], compute)
    # A value head at zero would leave the critic's backbone without gradients.
    torch.nn.init.normal_(critic.value_head.weight, std=0.02)
    return Models(policy.to(device), critic.to(device))


class _PolicyInput(NamedTuple):
    """A micro-batch of the policy; N tokens."""

    input_ids: torch.Tensor
    """int64 [b, n], padded."""
    states: tuple[torch.Tensor, torch.Tensor]
    """int64 [N] each: row and column of the state that predicts the token."""
    tokens: torch.Tensor
    """int64 [N]."""
    old_log_probs: torch.Tensor
    """float32 [N], nats."""
    advantages: torch.Tensor
    """float32 [N]."""


class _CriticInput(NamedTuple):
    """A micro-batch of the critic; N tokens."""

    input_ids: torch.Tensor
    """int64 [b, n], padded."""
    states: tuple[torch.Tensor, torch.Tensor]
    """int64 [N] each: row and column of the state that is valued."""
    targets: torch.Tensor
    """float32 [N]."""


class _Bare:
    """The bare loop."""

    def __init__(self, models: Models, batch: TrainBatch, targets: Targets, options: Options) -> None:
        self._policy, self._critic = models
        self._options = options
        self._policy_adam, self._critic_adam = (
            make_adamw(
                model.parameters(),
                lr=rate_at(lr, 0),
                betas=options.optimizer.adam_betas,
                weight_decay=options.optimizer.weight_decay,
            )
            for model, lr in ((self._policy, options.optimizer.lr), (self._critic, options.critic.critic_lr))
        )
        # As in `UpdateStep.run`.
        of_policy, of_critic = np.random.default_rng((0, 0, 0)), np.random.default_rng((0, 0, 0, 1))
        self._values = _value_inputs(batch, self._critic.device, options)
        self._policy_inputs = _policy_inputs(batch, targets, of_policy, self._policy.device, options)
        self._critic_inputs = _critic_inputs(batch, targets, of_critic, self._critic.device, options)

    def update(self) -> None:
        options = self._options
        with torch.no_grad():
            for input_ids in self._values:
                self._critic(input_ids)

        self._policy_adam.zero_grad(set_to_none=False)
        count = sum(len(part.tokens) for part in self._policy_inputs)
        for part in self._policy_inputs:
            with self._policy.autocast():
                hidden = self._policy.model.base_model(input_ids=part.input_ids, use_cache=False).last_hidden_state
                logits = self._policy.model.lm_head(hidden[part.states])
            log_probs = logits.float().log_softmax(-1).gather(1, part.tokens[:, None])[:, 0]
            ratio = (log_probs - part.old_log_probs).exp()
            clipped = ratio.clamp(1.0 - options.policy_loss.clip_low, 1.0 + options.policy_loss.clip_high)
            loss = -torch.minimum(ratio * part.advantages, clipped * part.advantages)
            (loss.sum() / count).backward()
        self._step(self._policy_adam, self._policy, options.optimizer.grad_clip)

        if self._critic_inputs:
            self._critic_adam.zero_grad(set_to_none=False)
            count = sum(len(part.targets) for part in self._critic_inputs)
            for values_part in self._critic_inputs:
                values = self._critic(values_part.input_ids)[values_part.states]
                (0.5 * (values - values_part.targets).square().sum() / count).backward()
            self._step(self._critic_adam, self._critic, options.critic.critic_grad_clip)

    def gradients(self) -> list[torch.Tensor]:
        """Returns those of the policy and those of the critic, a vector each."""
        return [
            torch.cat([_gradient(parameter).reshape(-1) for parameter in model.parameters()])
            for model in (self._policy, self._critic)
        ]

    def _step(self, adam: torch.optim.Optimizer, model: torch.nn.Module, max_norm: float | None) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf") if max_norm is None else max_norm)
        adam.step()


class _Pair:
    """Both loops on one workload."""

    _bare: _Bare

    def __init__(self, ours: Models, fragments: list[Fragment], options: Options, device: str) -> None:
        self._models = ours
        self._fragments = sampled_by(ours.policy, fragments, options)
        self._options = options
        self._cuda = device.startswith("cuda")
        self._step = UpdateStep(*ours, options)

    def first_update(self, make: Callable[[], Models], dtype: str) -> None:
        """Makes the first update of both, which also warms them up; the peak of the memory is of ours alone.

        Args:
            make: Makes the bare loop's models.
            dtype: Of the computation.

        Raises:
            RuntimeError: their gradients differ.
        """
        batch = batch_from_fragments(self._fragments)
        lengths = batch.sequence_lengths
        self._positions, self._finished_positions = (
            (int(some.sum()), int(some.square().sum())) for some in (lengths, lengths[batch.finished_rows])
        )
        _, targets = estimate(ModelSet(*self._models), batch, self._options)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._metrics = self._ours()
        self._peak = torch.cuda.max_memory_allocated() if self._cuda else process_memory("VmHWM")
        self._bare = _Bare(make(), batch, targets, self._options)
        self._bare.update()
        assert self._step.critic_gradients is not None
        ours = [self._step.policy_gradients.buffer, self._step.critic_gradients.buffer]  # type: ignore[union-attr]
        self._difference = max(
            _difference_in_direction(*pair) for pair in zip(ours, self._bare.gradients(), strict=True)
        )
        if not self._difference <= LARGEST_GRADIENT_DIFFERENCE[dtype]:
            raise RuntimeError(f"update step and bare loop differ: relative gradient difference {self._difference:.1e}")

    def measure(self, name: str, repeats: int, peak_tflops: float | None) -> list[Figure]:
        our_seconds: list[float] = []
        bare_seconds: list[float] = []
        for repeat in range(repeats):
            # Each goes first in turn, so that a drift of the machine's speed hits both alike.
            timed = [(self._ours, our_seconds), (self._bare.update, bare_seconds)]
            for update, seconds in timed if repeat % 2 else reversed(timed):
                seconds.append(self._seconds(update))
        trained = self._metrics["trained_tokens"]
        # The fixed names are those of T-PPO's own workload.
        at = "" if name.startswith("windows") else f", {name}"
        tflops = [self._floating_point_operations() / seconds / 1e12 for seconds in our_seconds]
        pairs = zip(bare_seconds, our_seconds, strict=True)
        figures = [
            figure_of(f"learner_efficiency{at}", [bare / ours for bare, ours in pairs], "share"),
            figure_of(f"learner_tokens_per_second, {name}", [trained / one for one in our_seconds], "tokens/s"),
            figure_of(f"bare_tokens_per_second, {name}", [trained / one for one in bare_seconds], "tokens/s"),
            figure_of(f"padding_fraction{at}", [self._metrics["padding_fraction"]], "share"),
            figure_of(
                f"processed_per_trained_token{at}",
                [self._metrics["processed_per_trained_token"]],
                "positions/token",
            ),
            figure_of(f"learner_tflops, {name}", tflops, "TFLOP/s"),
            figure_of(f"peak_memory, {name}", [self._peak / _GIB], "GiB of the device" if self._cuda else "GiB so far"),
            figure_of(f"gradient_difference, {name}", [self._difference], "relative"),
        ]
        if peak_tflops is not None:
            shares = [achieved / peak_tflops for achieved in tflops]
            figures.append(figure_of(f"model_flops_utilization, {name}", shares, "share"))
        return figures

    def _ours(self) -> dict[str, float]:
        batch = batch_from_fragments(self._fragments)
        _, targets = estimate(ModelSet(*self._models), batch, self._options)
        return self._step.run(batch, targets, policy_version=0).metrics

    def _seconds(self, update: Any) -> float:
        self._wait()
        start = time.perf_counter()
        update()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _floating_point_operations(self) -> float:
        """Of one update, without padding and without what is not a matrix product.

        A parameter of a matrix takes 2 at each position forwards and 4 backwards, causal attention 2 * width * n^2 a
        layer forwards and twice that backwards. The output layer sees sampled tokens alone.
        """
        config = self._models.policy.model.config
        parameters = sum(
            parameter.numel() for block in transformer_blocks(self._models.policy) for parameter in block.parameters()
        )
        attention = 2 * config.num_hidden_layers * config.hidden_size
        head = config.hidden_size * config.vocab_size

        def forward(lengths: float, squares: float) -> float:
            return 2 * parameters * lengths + attention * squares

        critic = self._bare._critic_inputs
        finished = (
            sum(part.input_ids.numel() for part in critic),
            sum(len(part.input_ids) * part.input_ids.shape[1] ** 2 for part in critic),
        )
        policy = 3 * (forward(*self._positions) + 2 * head * self._metrics["trained_tokens"])
        return policy + forward(*self._positions) + 3 * forward(*finished)


def sampled_by(policy: Policy, fragments: list[Fragment], options: Options) -> list[Fragment]:
    """Gives the fragments the policy's own log-probs: far from them, all ratios would be clipped and without gradient."""
    batch = batch_from_fragments(fragments)
    log_probs = sampled_log_probs(
        policy, batch, batch.window, temperature=1.0, micro_batch_tokens=options.compute.micro_batch_tokens
    ).numpy()
    return [
        replace(fragment, behavior_log_probs=row[: len(fragment)])
        for fragment, row in zip(fragments, log_probs, strict=True)
    ]


def _difference_in_direction(ours: torch.Tensor, bare: torch.Tensor) -> float:
    """Distance of the two gradients after both are brought to length 1.

    Their lengths say little: both were clipped by a float32 norm of their own, and on a CPU that norm's error grows with
    the number of elements, up to a percent at 10^8.
    """
    lengths = [float(vector.double().square().sum().sqrt()) for vector in (ours, bare)]
    if not any(lengths):
        return 0.0
    return float((ours / lengths[0] - bare / lengths[1]).double().square().sum().sqrt())


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _value_inputs(batch: TrainBatch, device: torch.device, options: Options) -> list[torch.Tensor]:
    lengths = batch.sequence_lengths
    groups = micro_batches(lengths, torch.arange(len(batch)), options.compute.micro_batch_tokens).rows
    return [batch.padded(rows, lengths[rows]).to(device) for rows in groups]


def _policy_inputs(
    batch: TrainBatch,
    targets: Targets,
    generator: np.random.Generator,
    device: torch.device,
    options: Options,
) -> list[_PolicyInput]:
    lengths = last_positions(batch.window)
    (shuffled,) = minibatches(batch.window.lengths, 1, generator)
    parts = []
    for rows in micro_batches(lengths, shuffled, options.compute.micro_batch_tokens).rows:
        mask = batch.window.mask[rows]
        inputs = model_input(batch, rows, lengths[rows], device, packing=False)
        parts.append(
            _PolicyInput(
                inputs.input_ids,
                inputs.places(mask.nonzero()[:, 0], batch.window.positions[rows][mask]),
                batch.window.tokens[rows][mask].to(device),
                batch.behavior_log_probs[rows][mask].to(device),
                targets.advantages[rows][mask].to(device),
            )
        )
    return parts


def _critic_inputs(
    batch: TrainBatch,
    targets: Targets,
    generator: np.random.Generator,
    device: torch.device,
    options: Options,
) -> list[_CriticInput]:
    assert targets.value_batch is not None
    tokens, sequences = targets.value_batch.tokens, targets.value_batch.rows
    if not len(sequences):
        return []
    lengths = last_positions(tokens)
    (shuffled,) = minibatches(tokens.lengths, 1, generator)
    parts = []
    for rows in micro_batches(lengths, shuffled, options.compute.micro_batch_tokens).rows:
        mask = tokens.mask[rows]
        inputs = model_input(batch, sequences[rows], lengths[rows], device, packing=False)
        states = inputs.places(mask.nonzero()[:, 0], tokens.positions[rows][mask])
        parts.append(_CriticInput(inputs.input_ids, states, targets.value_batch.targets[rows][mask].to(device)))
    return parts
