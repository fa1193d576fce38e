"""Weights from a learner into a vLLM engine, against a plain copy of the bytes that are sent: `tppo-rl bench sync`.

Timed is what a weight update takes beside Ray, in three parts: the learner publishes its weights, in the engine's number format, while
the engine samples; they are staged where the engine's workers can read them, between two requests, where a step could still be taken; the
engine loads them, and its weights change. And apart from that what it takes to drop the keys and values of the old ones. There is neither an
optimizer nor a critic.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.workloads import RANDOM_MODELS, random_model
from tppo_rl.learner.hub_weights import HubLayout
from tppo_rl.learner.models import load_causal_lm, parse_dtype
from tppo_rl.learner.sharding import WeightViews
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.vllm_engine import VLLMEngine
from tppo_rl.rollout.weight_broadcast import Offer, WeightSender

_PROBE = list(range(2, 34))
_LARGEST_GAP = {"float32": 1e-4, "bfloat16": 0.05}
"""Mean absolute log-prob gap on the probe, nats, above which the engine has not taken the weights."""
_GIB = 2**30


def sync_figures(
    *,
    model: str,
    random_weights: str | None,
    dtype: str,
    threads: int,
    repeats: int,
    linear: str | None = None,
    own_process: bool = False,
    transport: str = "object_store",
) -> list[Figure]:
    """Times weight updates of an engine that generates nothing meanwhile.

    Args:
        model: Folder, hub id, or name of a shipped model.
        random_weights: A name of `RANDOM_MODELS` instead: nothing is read or downloaded.
        dtype: "float32" or "bfloat16", of the engine; the learner's weights are float32.
        threads: Torch threads of both.
        repeats: Updates that are timed.
        linear: Layout of the engine's linear layers, "in_place" or "packed"; None: that of a run.
        own_process: Whether the engine's core has a process of its own, which gets weights through shared memory or by broadcast.
        transport: "object_store", whose own copy is not measured here, or "broadcast", see the option `weight_transport`.

    Raises:
        ValueError: an unknown model or dtype.
        RuntimeError: the engine does not hold the weights that it was given.
    """
    if random_weights is not None and random_weights not in RANDOM_MODELS:
        raise ValueError(f"random_weights={random_weights!r} is unknown: use one of {', '.join(RANDOM_MODELS)}")
    if dtype not in _LARGEST_GAP:
        raise ValueError(f"dtype={dtype!r}: use one of {', '.join(_LARGEST_GAP)}")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if random_weights is not None:
            random_model(random_weights).save_pretrained(folder)
        source = resolve_model(model) if random_weights is None else folder
        policy = load_causal_lm(source, parse_dtype("float32"))
        engine = VLLMEngine(
            source,
            dtype=dtype,
            max_model_len=512,
            max_num_seqs=8,
            end_of_turn=[1],
            kv_on_update="keep",
            num_threads=threads,
            engine_args=({"linear": linear} if linear else {}) | ({"multiprocessing": True} if own_process else {}),
            weight_transport=transport,
        )
        sender = WeightSender("127.0.0.1") if transport == "broadcast" else None
        try:
            return _measure(policy, engine, sender, dtype, f"{random_weights or Path(source).name}, {dtype}", repeats)
        finally:
            engine.stop()
            if sender is not None:
                sender.close()


def _measure(
    policy: torch.nn.Module, engine: VLLMEngine, sender: WeightSender | None, dtype: str, name: str, repeats: int
) -> list[Figure]:
    parameters = list(policy.parameters())
    views, layout = WeightViews(policy), HubLayout(policy)

    def pack() -> PackedWeights:
        return PackedWeights.pack(layout.of(views.of_now()), parse_dtype(dtype))

    def publish() -> tuple[Mapping[str, torch.Tensor] | Offer, np.ndarray]:
        """Returns what the engine gets, and a buffer of as many bytes."""
        if kept is None:
            packed = pack()
            return packed.unpack(), packed.buffer
        assert sender is not None
        arrays = layout.of(views.of_now())
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        return sender.offer(tensors, parse_dtype(dtype)), kept

    kept = None if sender is None else pack().buffer
    copy = np.empty_like(pack().buffer)
    copy_seconds, publish_seconds, stage_seconds, load_seconds, forget_seconds = [], [], [], [], []
    for version in range(1, repeats + 2):
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.0 + 0.01 / version)
        start = time.perf_counter()
        weights, plain = publish()
        published = time.perf_counter() - start
        staged = _seconds(partial(engine.stage_weights, weights))
        copied = _seconds(partial(np.copyto, copy, plain))
        loaded = _seconds(partial(engine.load_staged_weights, version))
        forgotten = _seconds(engine.forget_kv)
        if version == 1:
            continue  # The first time vLLM compiles and imports what the others find.
        copy_seconds.append(copied)
        publish_seconds.append(published)
        stage_seconds.append(staged)
        load_seconds.append(loaded)
        forget_seconds.append(forgotten)
    _check(policy, engine, dtype)

    sent, count = len(copy), sum(parameter.numel() for parameter in parameters)
    pauses = np.array(load_seconds)
    standstills = pauses + stage_seconds
    plain_copies = np.array(copy_seconds)
    return [
        figure_of("weight_sync_ratio", ((standstills + publish_seconds) / plain_copies).tolist(), "times a plain copy"),
        figure_of("weight_standstill_ratio", (standstills / plain_copies).tolist(), "times a plain copy"),
        figure_of("weight_pause_ratio", (pauses / plain_copies).tolist(), "times a plain copy"),
        figure_of(f"weight_publish_seconds, {name}", publish_seconds, "s"),
        figure_of(f"weight_stage_seconds, {name}", stage_seconds, "s"),
        figure_of(f"weight_load_seconds, {name}", load_seconds, "s"),
        figure_of(f"kv_forget_seconds, {name}", forget_seconds, "s"),
        figure_of(f"plain_copy_seconds, {name}", copy_seconds, "s"),
        figure_of(f"weights_sent, {name}", [sent / _GIB], "GiB"),
        figure_of(f"bytes_per_parameter, {name}", [sent / count], "bytes"),
    ]


@torch.no_grad()
def _check(policy: torch.nn.Module, engine: VLLMEngine, dtype: str) -> None:
    tokens = torch.tensor([_PROBE])
    logits = policy(input_ids=tokens, use_cache=False).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].numpy()
    gap = float(np.abs(engine.score(_PROBE) - expected).mean())
    if not gap <= _LARGEST_GAP[dtype]:
        raise RuntimeError(f"engine and learner differ by {gap:.2e} nats on average: it has not taken the weights")


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
