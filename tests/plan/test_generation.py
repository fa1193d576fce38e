from __future__ import annotations

import pytest
from simulated_runs import COST, simulated_run

from tppo_rl.plan.costs import AffineEngineCost
from tppo_rl.plan.generation import Generation, generation
from tppo_rl.plan.lengths import ResponseLengths, fixed, lognormal, uniform
from tppo_rl.plan.roofline import ModelShape
from tppo_rl.plan.windows import Mode

SHAPE = ModelShape(parameters=1000.0, layers=2, attention_width=8, cache_width=4)
AFFINE = AffineEngineCost(COST.base, COST.per_sequence)


def predicted(lengths: ResponseLengths, mode: Mode, *, slots: int = 16, prompt_length: float = 0.0) -> Generation:
    return generation(lengths, mode, slots=slots, prompt_length=prompt_length, cost=AFFINE, shape=SHAPE)


@pytest.mark.parametrize(("mode", "window"), [("async", 16), ("sync", 36), ("ppo", None)])
@pytest.mark.parametrize("lengths", [lognormal(40.0, 1.0, 300), uniform(5, 60), fixed(24)], ids=lambda one: one.source)
def test_occupancy_steps_and_seconds_are_those_of_the_real_sampler(
    lengths: ResponseLengths, mode: Mode, window: int | None
) -> None:
    run = simulated_run(lengths, mode, window, steps=8000 if mode == "ppo" else 3000)
    expected = predicted(lengths, mode, prompt_length=run.prompt_length)
    # Fragments that were open at the beginning or at the end make the difference.
    assert expected.occupancy == pytest.approx(run.tokens / run.slot_steps, rel=0.04)
    assert expected.tokens_per_step == pytest.approx(run.tokens / run.steps, rel=0.04)
    assert expected.seconds_per_token == pytest.approx(run.seconds / run.tokens, rel=0.04)
    if lengths.step == 1:  # Else all slots begin their responses at the same step for ever.
        assert expected.held_tokens == pytest.approx(run.held_tokens, rel=0.06)


def test_fixed_lengths_waste_nothing() -> None:
    whole, windows = predicted(fixed(24), "ppo"), predicted(fixed(24), "async")
    assert whole.occupancy == windows.occupancy == 1.0
    assert whole.seconds_per_token == pytest.approx((COST.base + 16 * COST.per_sequence) / 16)
    assert whole.seconds_per_token == pytest.approx(windows.seconds_per_token)
    # Contexts of 1 .. 24 tokens: 12.5 on average, in the mean over steps of either mode.
    assert windows.held_tokens == pytest.approx(16 * 12.5)
    operations, moved = 2 * 1000 * 16 + 4 * 2 * 8 * 200, 2 * 1000 + 2 * 2 * 4 * 2 * 200
    assert windows.intensity == pytest.approx(operations / moved)
    assert whole.intensity == pytest.approx(operations / moved)


def test_the_longest_response_sets_the_occupancy_of_whole_responses() -> None:
    lengths = lognormal(48.0, 1.1, 800)
    for slots in (1, 8, 64):
        whole = predicted(lengths, "ppo", slots=slots)
        assert whole.occupancy == pytest.approx(lengths.mean / lengths.any_longer(slots).sum())
        assert whole.intensity <= predicted(lengths, "async", slots=slots).intensity * 1.001
    assert predicted(lengths, "ppo", slots=1).occupancy == pytest.approx(1.0)


def test_contexts_and_prompts_cost_what_they_are() -> None:
    cost = AffineEngineCost(per_context_token=1.0, per_prompt_token=100.0)
    for mode in ("async", "ppo"):
        one = generation(fixed(10), mode, slots=4, prompt_length=5.0, cost=cost, shape=SHAPE)  # type: ignore[arg-type]
        # Each token reads 5 + 5.5 of context on average, and a tenth of a prompt of 5 is prefilled for it.
        assert one.seconds_per_token == pytest.approx(10.5 + 50.0)


def test_env_runners_wait_for_one_another() -> None:
    lengths = lognormal(48.0, 1.1, 800)
    alone, two = (
        generation(lengths, "ppo", slots=8, prompt_length=0.0, cost=AFFINE, shape=SHAPE, env_runners=count)
        for count in (1, 2)
    )
    assert two.occupancy == pytest.approx(lengths.mean / lengths.any_longer(16).sum())
    assert two.seconds_per_token > alone.seconds_per_token
