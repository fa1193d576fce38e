"""Scaled losses: gradients that float16 can hold, the same step, and what becomes of overflows."""

from __future__ import annotations

import pytest
import torch

from tppo_rl.learner.collective import SingleLearner
from tppo_rl.learner.loss_scale import FIRST_SCALE, GROWTH_INTERVAL, adapt_loss_scale, loss_scale, scale_losses
from tppo_rl.learner.optimizers import GradientStep, make_adamw


def make_step(*, scaled: bool, max_norm: float | None = None) -> tuple[torch.nn.Linear, GradientStep]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = make_adamw(model.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    if scaled:
        scale_losses(optimizer)
    return model, GradientStep(optimizer, max_norm=max_norm, collective=SingleLearner(), name="linear")


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_scaled_step_is_the_same_step(max_norm: float | None) -> None:
    reports = []
    weights = []
    for scaled in (False, True):
        model, step = make_step(scaled=scaled, max_norm=max_norm)
        for _ in range(3):
            step.zero()
            step.backward(model(torch.ones(4, 3)).square().sum())
            reports.append(step.apply(lr=0.05))
        weights.append(model.weight.detach())
    # A power of two changes no digit.
    assert reports[:3] == reports[3:]
    assert torch.equal(*weights)


def test_gradients_below_the_least_of_float16_are_kept() -> None:
    """The product's gradient is computed in float16, whose least number is 6e-8."""
    steps = [make_step(scaled=scaled) for scaled in (False, True)]
    norms = []
    for model, step in steps:
        step.zero()
        with torch.autocast("cpu", torch.float16):
            outputs = model(torch.ones(1, 3))
        step.backward(outputs.float().sum() * 1e-8)
        norms.append(step.apply(lr=0.0).norm)
    assert norms[0] == 0.0
    assert norms[1] == pytest.approx(1e-8 * (2 * 3 + 2) ** 0.5, rel=1e-3)


def test_an_overflow_halves_the_scale_and_skips_the_step() -> None:
    model, step = make_step(scaled=True)
    before = model.weight.detach().clone()
    step.zero()
    step.backward(model(torch.ones(1, 3)).sum() * float("inf"))
    assert not step.apply(lr=0.1).applied
    assert torch.equal(model.weight, before)
    assert loss_scale(step.optimizer) == FIRST_SCALE / 2


def test_the_scale_grows_after_many_steps_and_never_falls_below_one() -> None:
    _, step = make_step(scaled=True)
    optimizer = step.optimizer
    for _ in range(GROWTH_INTERVAL - 1):
        adapt_loss_scale(optimizer, overflowed=False)
    assert loss_scale(optimizer) == FIRST_SCALE
    adapt_loss_scale(optimizer, overflowed=False)
    assert loss_scale(optimizer) == 2 * FIRST_SCALE
    for _ in range(40):
        adapt_loss_scale(optimizer, overflowed=True)
    assert loss_scale(optimizer) == 1.0


def test_checkpoints_have_the_scale() -> None:
    _, step = make_step(scaled=True)
    adapt_loss_scale(step.optimizer, overflowed=True)
    _, other = make_step(scaled=True)
    other.optimizer.load_state_dict(step.optimizer.state_dict())
    assert loss_scale(other.optimizer) == FIRST_SCALE / 2


def test_a_checkpoint_without_a_scale_leaves_the_losses_scaled() -> None:
    _, step = make_step(scaled=False)
    _, other = make_step(scaled=True)
    other.optimizer.load_state_dict(step.optimizer.state_dict())
    assert loss_scale(other.optimizer) == FIRST_SCALE


def test_without_scaling_nothing_is_scaled() -> None:
    _, step = make_step(scaled=False)
    adapt_loss_scale(step.optimizer, overflowed=True)
    assert loss_scale(step.optimizer) == 1.0
