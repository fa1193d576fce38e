"""Steps of `tppo-rl bench device` on attention, weights, sharding and the engine; see `tppo_rl.bench.device_steps`."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.device_steps import MODEL, Found, seconds_of
from tppo_rl.bench.workloads import random_model, tppo_fragments
from tppo_rl.config.options import Options
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.hub_weights import HubLayout
from tppo_rl.learner.models import Critic, Policy, load_causal_lm
from tppo_rl.learner.packing import check_packing
from tppo_rl.learner.sharding import gather_weights, shard
from tppo_rl.learner.targets import ModelSet, estimate
from tppo_rl.learner.update import UpdateStep
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Request, Sampling
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.vllm_engine import VLLMEngine
from tppo_rl.rollout.weight_proof import WeightProof, probe_tokens

_LARGEST_LOGIT_DIFFERENCE = 2e-2
_GB = 1e9
_REQUESTS = 16
_ENGINE_SHARE = 0.3
"""Of a GPU's memory, where a learner is beside the engine."""


def attention(device: str, small: bool) -> Found:
    """Packed rows in each implementation of attention, against padded ones."""
    figures: dict[str, Any] = {}
    wrong = []
    length = 256 if small else 8192
    for name in ("sdpa", "flex_attention"):
        try:
            model = random_model("tiny" if small else "qwen2.5-0.5b", attn_implementation=name)
            policy = Policy(model, torch.float32 if small else torch.bfloat16).to(device)
            check_packing(policy)
            ids = torch.randint(2, policy.model.config.vocab_size, (1, length), device=device)
            positions = torch.arange(length // 4, device=device).repeat(4)[None]

            def forward(policy: Policy = policy, ids: torch.Tensor = ids, positions: torch.Tensor = positions) -> None:
                with torch.no_grad(), policy.autocast():
                    policy.model.base_model(input_ids=ids, position_ids=positions, use_cache=False)

            figures[f"s {name}, {length} packed"] = seconds_of(forward, device)
        except Exception as error:
            # An implementation that is not there is no fault where padding is the default.
            figures[f"{name}"] = f"not usable: {type(error).__name__}: {error}"[:200]
    if all("not usable" in str(value) for value in figures.values()):
        wrong.append("no implementation of attention keeps packed sequences apart")
    return Found(figures, wrong)


def weights(device: str, small: bool) -> Found:
    """The way of new weights from a learner to the object store and to a file, in seconds a GB of what is sent."""
    model = random_model("50m" if small else "qwen2.5-1.5b").to(device)
    start = time.perf_counter()
    gathered = HubLayout(model).of(gather_weights(model))
    gather_s = time.perf_counter() - start
    start = time.perf_counter()
    packed = PackedWeights.pack(gathered, torch.bfloat16)
    pack_s = time.perf_counter() - start
    sent = packed.buffer.nbytes / _GB
    unpacked = packed.unpack()
    to_device_s = seconds_of(lambda: [tensor.to(device) for tensor in unpacked.values()], device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = {"GB": sent, "s/GB gathered": gather_s / sent, "s/GB packed": pack_s / sent}
    figures |= {"s/GB to the device": to_device_s / sent}
    wrong = []
    if packed.buffer.nbytes > parameters * 2 + 64 * len(unpacked):
        wrong.append(f"{packed.buffer.nbytes} bytes are sent for {parameters} parameters in bfloat16")
    name, tensor = next(iter(unpacked.items()))
    if not torch.equal(tensor, torch.from_numpy(gathered[name]).bfloat16()):
        wrong.append(f"{name} is not what the learner has")
    return Found(figures, wrong)


def sharding(device: str, small: bool) -> Found:
    """A sharded model on one device: NCCL or gloo starts, and the model computes the same."""
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/group", rank=0, world_size=1
        )
        try:
            policy = Policy(load_causal_lm(resolve_model(MODEL), torch.float32)).to(device)
            ids = torch.arange(4, 60, device=device)[None]
            with torch.no_grad():
                expected = policy.logits(ids)
            shard(policy)
            logits = policy.logits(ids)
            difference = float((logits.detach() - expected).abs().max())
            logits.square().mean().backward()
            largest = max(float(parameter.grad.abs().max()) for parameter in policy.parameters())  # type: ignore[union-attr]
        finally:
            torch.distributed.destroy_process_group()
    wrong = [] if difference <= _LARGEST_LOGIT_DIFFERENCE else [f"logits differ by {difference:.1e} once sharded"]
    if not 0 < largest < float("inf"):
        wrong.append(f"the largest gradient is {largest}")
    return Found({"logit difference": difference}, wrong)


def engine(device: str, small: bool) -> Found:
    """An engine samples, takes new weights while requests run, proves them, and recomputes what it has."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    trainer = Policy(load_causal_lm(resolve_model(MODEL), torch.float32), dtype).to(device)
    sampler = _Sampling(trainer, device, dtype)
    try:
        sampler.sample(20)
        with torch.no_grad():
            for parameter in trainer.parameters():
                parameter.mul_(1.02)
        sampler.push()
        sampler.sample(20)
        return sampler.found()
    finally:
        sampler.engine.stop()


def colocated(device: str, small: bool) -> Found:
    """A learner and an engine on one device in turn: three updates, each followed by new weights and their proof."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    policy, critic = (
        kind(load_causal_lm(resolve_model(MODEL), torch.float32), dtype).to(device) for kind in (Policy, Critic)
    )
    options = Options.of(lr=1e-3)
    step = UpdateStep(policy, critic, options)  # type: ignore[arg-type]
    sampler = _Sampling(policy, device, dtype)  # type: ignore[arg-type]
    try:
        for version in range(3):
            sampler.sample(10)
            batch = batch_from_fragments(tppo_fragments(100, tokens=256, window=16))
            batch, targets = estimate(ModelSet(policy, critic), batch, options)  # type: ignore[arg-type]
            step.run(batch, targets, policy_version=version)
            sampler.push()
        return sampler.found()
    finally:
        sampler.engine.stop()


class _Sampling:
    """An engine with requests that run, and the proof of its weights.

    Args:
        trainer: Its weights are sent.
        device: "cpu" or "cuda".
        dtype: Of the engine.
    """

    def __init__(self, trainer: Policy, device: str, dtype: torch.dtype) -> None:
        chat = Chat.from_pretrained(resolve_model(MODEL))
        self.engine = VLLMEngine(
            resolve_model(MODEL),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=512,
            max_num_seqs=_REQUESTS,
            end_of_turn=chat.end_of_turn,
            device=device,
            engine_args={"linear": "packed"} if device == "cpu" else {"gpu_memory_utilization": _ENGINE_SHARE},
        )
        self._trainer = trainer
        self._dtype = dtype
        self._layout = HubLayout(trainer.model)
        self._probe = probe_tokens(chat, 256)
        self._proof = WeightProof(exact=dtype == torch.float32)
        self._figures: dict[str, Any] = {"runner": self._runner()}
        self._versions: set[int] = set()
        self._tokens = 0
        self._wrong: list[str] = []
        if self._proof.needs_control:
            self._proof.take_control(self._expected(), [self.engine.score(self._probe)])
        for index in range(_REQUESTS):
            prompt = [4 + (index + at) % 60 for at in range(20 + index)]
            self.engine.submit(Request(str(index), prompt, 400, Sampling()))

    def sample(self, steps: int) -> None:
        """Lets the engine take some steps."""
        start, before = time.perf_counter(), self._tokens
        for _ in range(steps):
            for output in self.engine.step():
                self._versions.add(output.version)
                self._tokens += len(output.tokens)
        self._figures["tokens/s"] = (self._tokens - before) / (time.perf_counter() - start)

    def push(self) -> None:
        """Sends the trainer's weights while requests run, cuts these, and proves the weights."""
        version = self.engine.version + 1
        sent = PackedWeights.pack(self._layout.of(gather_weights(self._trainer.model)), self._dtype)
        start = time.perf_counter()
        self.engine.load_weights(sent.unpack(), version)
        self._figures["s for new weights"] = time.perf_counter() - start
        self.engine.step()
        self.engine.cut([str(index) for index in range(_REQUESTS)])
        try:
            self._figures["difference on the probe"] = self._proof.check(
                self._expected(), [self.engine.score(self._probe)]
            )
        except RuntimeError as error:
            self._wrong.append(str(error))
        for index in range(_REQUESTS):
            self.engine.submit(
                Request(str(index), [4 + (index + at) % 60 for at in range(30)], 400, Sampling(), version)
            )

    def found(self) -> Found:
        if not self._tokens:
            self._wrong.append("no token was sampled")
        return Found(self._figures | {"tokens": self._tokens}, self._wrong)

    def _expected(self) -> Any:
        ids = torch.tensor([self._probe], device=self._trainer.device)
        with torch.no_grad():
            log_probs = self._trainer.logits(ids)[0, :-1].float().log_softmax(-1)
        return log_probs.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()

    def _runner(self) -> str:
        """Name of vLLM's model runner: a GPU's is another one than a CPU's."""
        core = getattr(self.engine.llm_engine.engine_core, "engine_core", None)
        worker = getattr(getattr(core, "model_executor", None), "driver_worker", None)
        runner = getattr(getattr(worker, "worker", worker), "model_runner", None)
        return f"{type(runner).__module__}.{type(runner).__name__}"


STEPS = {function.__name__: function for function in (attention, weights, sharding, engine, colocated)}
