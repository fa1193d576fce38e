"""New weights in engines whose workers have processes of their own: the right parts in each, at the right time, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from families import make_family
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tppo_rl.base_models import resolve_model
from tppo_rl.learner.hub_weights import HubLayout
from tppo_rl.learner.sharding import gather_weights
from tppo_rl.rollout.core_process import EngineDied
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.vllm_engine import VLLMEngine
from tppo_rl.rollout.weight_broadcast import WeightSender

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MODEL = resolve_model("tppo_rl/arithmetic-chain")
PROBE = list(range(4, 40))


def make_engine(model: str = MODEL, *, weight_transport: str = "object_store", **engine_args: Any) -> VLLMEngine:
    return VLLMEngine(
        model, dtype="float32", max_model_len=512, max_num_seqs=8, end_of_turn=[2], engine_args=engine_args,
        weight_transport=weight_transport,
    )  # fmt: skip


class Trainer:
    """A policy whose weights change, as a run sends them."""

    def __init__(self, folder: str = MODEL) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._layout = HubLayout(self._model)

    @torch.no_grad()
    def update(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self._model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
        return PackedWeights.pack(self._layout.of(gather_weights(self._model))).unpack()

    @torch.no_grad()
    def log_probs(self) -> torch.Tensor:
        tokens = torch.tensor([PROBE])
        logits = self._model(tokens).logits[0, :-1]
        return logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]


def expect(engine: VLLMEngine, log_probs: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(engine.score(PROBE)), log_probs, atol=1e-4, rtol=0)


def workers_of(before: set[psutil.Process]) -> list[psutil.Process]:
    """Returns the workers of an engine, which were not among this process's children before."""
    ours = set(psutil.Process().children(recursive=True)) - before
    workers = [process for process in ours if "Worker" in " ".join([process.name(), *process.cmdline()])]
    assert workers, [process.cmdline() for process in ours]
    return workers


def files_in_shared_memory() -> list[Path]:
    return list(Path("/dev/shm").glob(f"tppo-rl-weights-*-{os.getpid()}-*/*"))


@pytest.mark.parametrize(
    "engine_args",
    [
        {"multiprocessing": True, "linear": "packed"},
        {"tensor_parallel_size": 2},
        {"tensor_parallel_size": 2, "linear": "packed"},
        {"tensor_parallel_size": 2, "multiprocessing": True},
    ],
    ids=str,
)
def test_every_worker_takes_its_part_of_every_update(engine_args: dict[str, Any]) -> None:
    engine, trainer = make_engine(**engine_args), Trainer()
    try:
        for version in (1, 2, 3):
            engine.load_weights(trainer.update(version), version)
            expect(engine, trainer.log_probs())
            assert files_in_shared_memory() == []
    finally:
        engine.stop()


@pytest.mark.parametrize(
    "engine_args", [{"tensor_parallel_size": 2}, {"tensor_parallel_size": 2, "multiprocessing": True}], ids=str
)
def test_every_worker_gets_what_a_learner_broadcasts_or_is_one_error(engine_args: dict[str, Any]) -> None:
    before = set(psutil.Process().children(recursive=True))
    engine = make_engine(weight_transport="broadcast", **engine_args)
    trainer, sender = Trainer(), WeightSender("127.0.0.1", timeout_s=20)
    try:
        for version in (1, 2, 3):
            engine.load_weights(sender.offer(trainer.update(version)), version)
            expect(engine, trainer.log_probs())
        assert list(Path("/dev/shm").glob(f"tppo-rl-weights-*-{os.getpid()}-*")) == []
        offer = sender.offer(trainer.update(4))
        os.kill(workers_of(before)[-1].pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="an engine is dead"):
            deque((engine.load_weights(offer, version) for version in range(4, 1000)), maxlen=0)
    finally:
        engine.stop()
        sender.close()


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma2", "gpt2"])
def test_other_families_take_weights_in_a_process_of_their_own(family: str, tmp_path: Path) -> None:
    folder = str(make_family(family, tmp_path / "model"))
    engine, trainer = make_engine(folder, multiprocessing=True), Trainer(folder)
    try:
        for version in (1, 2, 3):
            engine.load_weights(trainer.update(version), version)
            expect(engine, trainer.log_probs())
    finally:
        engine.stop()


@pytest.mark.parametrize("engine_args", [{"multiprocessing": True}, {"tensor_parallel_size": 2}], ids=str)
def test_a_worker_that_is_killed_between_or_during_updates_is_one_error(engine_args: dict[str, Any]) -> None:
    before = set(psutil.Process().children(recursive=True))
    engine = make_engine(**engine_args)
    try:
        weights = load_file(Path(MODEL) / "model.safetensors")
        engine.load_weights(weights, 1)
        os.kill(workers_of(before)[0].pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="an engine is dead"):
            deque((engine.load_weights(weights, version) for version in range(2, 1000)), maxlen=0)
        assert files_in_shared_memory() == []
    finally:
        engine.stop()


ENGINE = """
import sys, time
from tppo_rl.rollout.vllm_engine import VLLMEngine

if __name__ == "__main__":
    engine = VLLMEngine(
        sys.argv[1], dtype="float32", max_model_len=512, max_num_seqs=8, end_of_turn=[2], engine_args={"multiprocessing": True}
    )
    print("there", flush=True)
    time.sleep(1000)
"""


def test_the_core_and_its_workers_end_with_an_env_runner_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "engine.py"
    program.write_text(ENGINE)
    starter = subprocess.Popen([sys.executable, str(program), MODEL], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    while "there" not in (line := starter.stdout.readline()):
        assert line, "it has ended"
    family = psutil.Process(starter.pid).children(recursive=True)
    assert any("EngineCore" in "".join(one.cmdline()) for one in family)
    starter.kill()
    starter.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    for one in alive:
        one.kill()
    assert not alive
