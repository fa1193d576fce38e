"""Sleep against the real engine, as far as a CPU goes: vLLM pauses, preempts and resumes; its worker gives no memory back.

So what a GPU would lose is overwritten here while the engine sleeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_vllm_engine import log_prob_diffs, make_engine, make_sampler

from tppo_rl.base_models import resolve_model
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.vllm_engine import VLLMEngine

pytestmark = pytest.mark.integration

MODEL = resolve_model("tppo_rl/arithmetic-chain")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def policy() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def weights_of(policy: Any) -> Any:
    base = {name: weight.clone() for name, weight in policy.state_dict().items() if name != "lm_head.weight"}

    def weights(version: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(version)
        changed = {name: w * (1 + 0.01 * torch.randn(w.shape, generator=generator)) for name, w in base.items()}
        return PackedWeights.pack({name: weight.numpy() for name, weight in changed.items()}).unpack()

    return weights


@pytest.fixture(scope="module")
def engine(chat: Chat) -> Iterator[VLLMEngine]:
    # Kept keys and values: without the sleep they would be those of older weights.
    engine = make_engine(chat, kv_on_update="keep")
    yield engine
    engine.stop()


def core_of(engine: VLLMEngine) -> Any:
    return engine.llm_engine.engine_core.engine_core


def overwrite_keys_and_values(engine: VLLMEngine) -> None:
    caches = core_of(engine).model_executor.driver_worker.worker.model_runner.kv_caches
    assert len(caches) > 0
    for cache in caches:
        cache.fill_(7.0)


def test_open_answers_go_on_after_a_sleep_with_keys_and_values_computed_anew(
    engine: VLLMEngine, chat: Chat, policy: Any, weights_of: Any
) -> None:
    engine.load_weights(weights_of(1), 1)
    sampler = make_sampler(engine, chat, window=16)
    sampler.tickets.extend(Ticket(index, index, index) for index in range(200))
    scheduler = core_of(engine).scheduler
    fragments: list[Fragment] = []
    while len(fragments) < 100:
        fragments += sampler.run(9)
        running = len(scheduler.running)
        assert running > 16, "there must be open answers"
        engine.sleep()
        assert engine.llm_engine.is_sleeping()
        assert (len(scheduler.running), len(scheduler.waiting)) == (0, running)
        assert scheduler.kv_cache_manager.usage == 0
        overwrite_keys_and_values(engine)
        engine.load_weights(weights_of(engine.version + 1), engine.version + 1)
        assert not engine.llm_engine.is_sleeping()
    fragments += sampler.cut_windows()
    assert len({int(version) for fragment in fragments for version in fragment.versions}) > 3
    spanning = sum(len(set(fragment.versions.tolist())) > 1 for fragment in fragments)
    assert spanning > 10, "windows must go on over a sleep"
    gaps = log_prob_diffs(fragments, policy, weights_of, temperature=1.0)
    assert gaps.mean() <= 1e-6
    sampler.suspend()


def test_weights_are_loaded_between_the_parts_that_wake(
    engine: VLLMEngine, weights_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    executor = core_of(engine).model_executor
    call = executor.collective_rpc

    def watched(method: Any, *arguments: Any, **keywords: Any) -> Any:
        if method in ("sleep", "wake_up"):
            told.append((method, keywords.get("kwargs")))
        elif method == "update_weights":
            told.append(("load", executor.sleeping_tags.copy()))
        return call(method, *arguments, **keywords)

    monkeypatch.setattr(executor, "collective_rpc", watched)
    engine.sleep()
    engine.load_weights(weights_of(50), 50)
    assert told == [
        ("sleep", {"level": 1}),
        ("wake_up", {"tags": ["weights"]}),
        ("load", {"kv_cache"}),
        ("wake_up", {"tags": ["kv_cache"]}),
    ]


def test_a_sleeping_engine_takes_no_steps_and_wakes_with_its_weights(engine: VLLMEngine, weights_of: Any) -> None:
    engine.load_weights(weights_of(51), 51)
    before = engine.score(range(4, 40))
    engine.sleep()
    with pytest.raises(AssertionError, match="takes no steps"):
        engine.step()
    engine.wake_up()
    torch.testing.assert_close(torch.tensor(engine.score(range(4, 40))), torch.tensor(before), atol=1e-6, rtol=0)


def test_vllm_refuses_sleep_mode_on_a_cpu(chat: Chat) -> None:
    """Why `engine.enable_sleep_mode` is refused there before an engine starts."""
    with pytest.raises(ValueError, match="Sleep mode is not supported"):
        make_engine(chat, engine_args={"enable_sleep_mode": True})
