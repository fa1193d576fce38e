"""The rollout benchmark on a small scale, with a real engine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tppo_rl.base_models import resolve_model
from tppo_rl.bench.rollout import (
    LongTailedEngine,
    endless_tickets,
    make_sampler,
    model_weights,
    recompute_seconds,
    rollout_figures,
)
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Output, Request, Sampling
from tppo_rl.rollout.vllm_engine import VLLMEngine

pytestmark = pytest.mark.integration


def test_figures_have_their_names_and_all_slots_are_busy() -> None:
    figures = rollout_figures(
        model="tppo_rl/arithmetic-chain",
        slots=(4,),
        window=8,
        mean_length=12,
        cap=64,
        steps=12,
        threads=1,
        repeats=2,
    )
    by_name = {figure.figure: figure for figure in figures}
    assert {"rollout_efficiency_4", "slot_occupancy_4", "slot_occupancy"} <= set(by_name)
    assert by_name["slot_occupancy"].median == 1.0
    assert all(figure.median > 0 for figure in figures if figure.unit == "tokens/s")
    assert by_name["rollout_efficiency_4"].repeats == 2


def test_recompute_ends_when_every_slot_samples_again() -> None:
    model = resolve_model("tppo_rl/arithmetic-chain")
    # A step holds the context of one slot, so that eight of them take several.
    engine = VLLMEngine(
        model,
        dtype="float32",
        max_model_len=192,
        max_num_seqs=8,
        end_of_turn=(),
        engine_args={"max_num_batched_tokens": 64, "enable_chunked_prefill": True},
    )
    sampler = make_sampler(LongTailedEngine(engine, mean=64, cap=64), Chat.from_pretrained(model), 8, 8, 64)
    sampler.tickets.extend(itertools.islice(endless_tickets(), 500))
    productive: list[int] = []

    def run(steps: int) -> tuple[int, float]:
        before = sampler.num_productive_slot_steps
        sampler.run(steps)
        productive.append(sampler.num_productive_slot_steps - before)
        return 0, 1.0

    try:
        recompute_seconds(sampler, run, 0.0)
        productive.clear()
        engine.load_weights(model_weights(model), 1)
        assert recompute_seconds(sampler, run, 0.25) == 0.75 * len(productive)
        assert len(productive) > 1
        assert productive[-1] == 8 > max(productive[:-1])
    finally:
        sampler.close()
        engine.stop()


class Recorder:
    """An engine that keeps what it is given and samples one token for every request."""

    version = 0

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}

    def submit(self, request: Request) -> None:
        self.requests[request.request_id] = request

    def step(self) -> list[Output]:
        return [Output(name, [3], [-1.0], 0, False, False) for name in self.requests]


@pytest.mark.parametrize("cap", [50, 400])
def test_lengths_are_long_tailed_and_survive_a_resubmission(cap: int) -> None:
    inner = Recorder()
    engine = LongTailedEngine(inner, mean=40, cap=cap)  # type: ignore[arg-type]
    for index in range(2000):
        engine.submit(Request(str(index), [1], 10_000, Sampling()))
    lengths = np.array([request.max_new_tokens for request in inner.requests.values()])
    assert lengths.min() >= 1
    assert lengths.max() == cap
    assert np.median(lengths) < lengths.mean() < 44
    engine.step()
    engine.submit(Request("0", [1, 3], 10_000, Sampling()))
    assert inner.requests["0"].max_new_tokens == lengths[0] - 1
