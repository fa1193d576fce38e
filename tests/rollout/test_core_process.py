"""An engine whose core has a process of its own: it takes steps on demand, and its death is one clear error."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from test_engine_processes import Trainer, expect, files_in_shared_memory

from tppo_rl.base_models import resolve_model
from tppo_rl.core.errors import OptionError
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.core_process import EngineDied
from tppo_rl.rollout.engine import Request, Sampling
from tppo_rl.rollout.vllm_engine import VLLMEngine, check_device
from tppo_rl.rollout.weight_broadcast import WeightSender, WeightsNotReceived, WeightsWithdrawn

pytestmark = pytest.mark.integration

MODEL = resolve_model("tppo_rl/arithmetic-chain")
PROMPT = list(range(4, 30))


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    found = load_file(Path(MODEL) / "model.safetensors")
    return found | {"lm_head.weight": found["model.embed_tokens.weight"]}


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(
        MODEL, dtype="float32", max_model_len=512, max_num_seqs=8, end_of_turn=Chat.from_pretrained(MODEL).end_of_turn,
        # The longest prompt here is read in two steps.
        engine_args={"multiprocessing": True, "max_num_batched_tokens": 256},
    )  # fmt: skip
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


def core_pids(engine: VLLMEngine) -> list[int]:
    return [process.pid for process in engine.llm_engine.engine_core.resources.engine_manager.processes]


def submit(engine: VLLMEngine, *names: str) -> None:
    for name in names:
        engine.submit(Request(name, PROMPT, 400, Sampling()))


def test_it_does_not_run_on_without_its_client(engine: VLLMEngine, weights: dict[str, Any]) -> None:
    engine.load_weights(weights, 1)
    submit(engine, *map(str, range(8)))
    assert {output.version for output in engine.step()} == {1}
    # Long enough for tens of steps that nobody has asked for.
    time.sleep(1.0)
    assert engine.llm_engine.engine_core.outputs_queue.empty()
    engine.load_weights(weights, 2)
    for _ in range(3):
        outputs = engine.step()
        assert {output.version for output in outputs} == {2}
        assert all(len(output.tokens) == 1 for output in outputs)
    engine.cut(list(map(str, range(8))))


def test_requests_that_were_cut_put_nothing_out(engine: VLLMEngine) -> None:
    submit(engine, "first", "second")
    engine.step()
    engine.cut(["first"])
    for _ in range(3):
        assert {output.request_id for output in engine.step()} <= {"second"}
    engine.cut(["second"])
    assert len(engine.score(PROMPT)) == len(PROMPT) - 1
    submit(engine, "third")
    assert [output.request_id for output in engine.step()] == ["third"]
    engine.cut(["third"])


def test_a_prompt_in_parts_puts_out_its_first_token(engine: VLLMEngine) -> None:
    engine.submit(Request("long", PROMPT * 15, 8, Sampling()))
    assert [output.request_id for output in engine.step()] == ["long"]
    engine.cut(["long"])


def test_weights_are_staged_while_requests_run_and_are_taken_when_they_are_loaded(
    engine: VLLMEngine, trainer: Trainer
) -> None:
    engine.load_weights(trainer.update(1), 1)
    old = trainer.log_probs()
    expect(engine, old)
    engine.submit(Request("one", PROMPT, 400, Sampling()))
    engine.step()
    for version in (2, 3):
        engine.stage_weights(trainer.update(version))
        assert {output.version for output in engine.step()} == {version - 1}
        engine.load_staged_weights(version)
        assert files_in_shared_memory() == []
        assert {output.version for output in engine.step()} == {version}
    engine.cut(["one"])
    engine.stage_weights(trainer.update(4))
    with pytest.raises(AssertionError):
        expect(engine, trainer.log_probs())
    engine.load_staged_weights(4)
    expect(engine, trainer.log_probs())


def test_an_engine_takes_what_a_learner_broadcasts(engine: VLLMEngine, trainer: Trainer) -> None:
    sender = WeightSender("127.0.0.1", timeout_s=20)
    try:
        engine.load_weights(sender.offer(trainer.update(11)), 11)
        expect(engine, trainer.log_probs())
        engine.submit(Request("one", PROMPT, 400, Sampling()))
        withdrawn = offer = sender.offer(trainer.update(12))
        engine.stage_weights(offer)
        assert {output.version for output in engine.step()} == {11}
        engine.load_staged_weights(12)
        assert {output.version for output in engine.step()} == {12}
        engine.cut(["one"])
        expect(engine, trainer.log_probs())
        newest = sender.offer(trainer.update(13))
        with pytest.raises(WeightsWithdrawn):
            engine.load_weights(withdrawn, 13)
        with pytest.raises(AssertionError):
            expect(engine, trainer.log_probs())
        engine.load_weights(newest, 13)
        expect(engine, trainer.log_probs())
    finally:
        sender.close()
    newer = trainer.log_probs()
    with pytest.raises(WeightsNotReceived, match=r"from the learner at 127\.0\.0\.1.*--resume"):
        engine.load_weights(newest, 14)
    # It samples on with the weights that it has, and takes others.
    assert engine.version == 13
    expect(engine, newer)
    engine.load_weights(trainer.update(14), 14)
    expect(engine, trainer.log_probs())


def test_an_update_that_fails_leaves_nothing_and_the_next_one_is_taken(engine: VLLMEngine, trainer: Trainer) -> None:
    weights = trainer.update(5)
    with pytest.raises(Exception, match=r"no\.such|no module or parameter"):
        engine.load_weights({"no.such.weight": next(iter(weights.values()))}, 5)
    assert files_in_shared_memory() == []
    engine.load_weights(weights, 5)
    expect(engine, trainer.log_probs())


@pytest.mark.parametrize("call", ["step", pytest.param("load_weights", marks=pytest.mark.slow)])
def test_a_killed_core_is_one_error_wherever_it_is_waited_for(call: str, weights: dict[str, Any]) -> None:
    engine = VLLMEngine(
        MODEL,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=8,
        end_of_turn=[2],
        engine_args={"multiprocessing": True},
    )
    try:
        submit(engine, "one")
        engine.step()
        for pid in core_pids(engine):
            os.kill(pid, signal.SIGKILL)
        use = partial(engine.load_weights, weights) if call == "load_weights" else lambda _: engine.step()
        # The core may answer some calls before it is gone.
        with pytest.raises(EngineDied, match=r"an engine is dead: EngineCore.* was killed by signal 9"):
            deque(map(use, range(1, 400)), maxlen=0)
        with pytest.raises(EngineDied, match=r"an engine is dead: EngineCore.* was killed by signal 9"):
            submit(engine, "two")
    finally:
        engine.stop()


@pytest.mark.parametrize(("device", "on_cpus"), [("cpu", False), ("cuda", True)])
def test_a_device_that_vllm_is_not_installed_for_is_refused(device: str, on_cpus: bool) -> None:
    with pytest.raises(OptionError, match=r"num_gpus_per_env_runner.*environment of its own"):
        check_device(device, vllm_runs_on_cpus=on_cpus)
    check_device(device, vllm_runs_on_cpus=not on_cpus)


@pytest.mark.slow
def test_a_core_that_is_killed_while_it_starts_is_the_same_error() -> None:
    def kill_when_there() -> None:
        before = set(psutil.Process().children(recursive=True))
        while not (found := set(psutil.Process().children(recursive=True)) - before):
            time.sleep(0.1)
        time.sleep(1.0)
        for process in found:
            process.kill()

    killer = threading.Thread(target=kill_when_there)
    killer.start()
    with pytest.raises(
        EngineDied, match=r"an engine is dead: (EngineCore.* was killed by signal 9|its processes are gone)"
    ):
        VLLMEngine(
            MODEL, dtype="float32", max_model_len=512, max_num_seqs=8, end_of_turn=[2], engine_args={"multiprocessing": True}
        )  # fmt: skip
    killer.join()
    assert files_in_shared_memory() == []


def test_a_core_that_ends_by_itself_while_it_starts_is_no_death() -> None:
    vllm_says = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert EngineDied.at_start(RuntimeError(vllm_says.format("{}"))) is not None
    assert EngineDied.at_start(RuntimeError(vllm_says.format("{'EngineCore': -9}"))) is not None
    assert EngineDied.at_start(RuntimeError(vllm_says.format("{'EngineCore': 1}"))) is None
    assert EngineDied.at_start(RuntimeError("CUDA is not there")) is None
