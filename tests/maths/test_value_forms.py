"""Forms of a value head: against definitions, closed forms and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.maths.value_forms import (
    MIN_BINS,
    SIGMA_IN_BINS,
    CrossEntropy,
    HLGauss,
    SquaredError,
    ValueForm,
    value_form,
)

FORMS = [SquaredError(), CrossEntropy(-0.5, 2.0), HLGauss(-0.5, 2.0, 41)]


def _fitted(form: ValueForm, returns: torch.Tensor) -> torch.Tensor:
    """Constant outputs [K] that a general minimizer finds for returns [N]."""
    outputs = torch.zeros(form.num_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = form.loss(outputs.expand(len(returns), -1), returns).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return outputs.detach()


@pytest.mark.parametrize("form", FORMS)
def test_the_start_is_the_constant_that_fits_best(form: ValueForm) -> None:
    returns = torch.tensor([0.1, 0.9, 1.7, 0.4, 0.4], dtype=torch.float64)
    start = form.start(form.targets(returns).mean(dim=0))

    torch.testing.assert_close(form.values(start), returns.mean(), atol=2e-3, rtol=0)
    best = form.loss(_fitted(form, returns).expand(len(returns), -1), returns).mean()
    torch.testing.assert_close(form.loss(start.expand(len(returns), -1), returns).mean(), best, atol=1e-3, rtol=0)


@pytest.mark.parametrize("form", FORMS[1:])
@given(target=st.floats(-0.5, 2.0))
def test_outputs_that_fit_a_return_have_its_value(form: ValueForm, target: float) -> None:
    returns = torch.tensor([target], dtype=torch.float64)
    outputs = form.start(form.targets(returns)[0])
    # A sigmoid starts at no share below a hundredth.
    torch.testing.assert_close(form.values(outputs), returns[0], atol=0.026, rtol=0)


@pytest.mark.parametrize("form", FORMS[1:])
def test_values_stay_in_the_range_and_returns_beyond_count_as_its_ends(form: ValueForm) -> None:
    extreme = torch.eye(form.num_outputs, dtype=torch.float64) * 500 - torch.ones(form.num_outputs) * 250
    margin = 3.0 * 2.5 / (form.num_outputs - 6) if form.num_outputs > 1 else 0.0
    values = form.values(torch.cat([extreme, -extreme]))
    assert float(values.min()) >= -0.5 - margin
    assert float(values.max()) <= 2.0 + margin
    for beyond, end in ((-7.0, -0.5), (9.0, 2.0)):
        pair = torch.tensor([beyond, end], dtype=torch.float64)
        targets = form.targets(pair)
        torch.testing.assert_close(targets[0], targets[1])


def test_cross_entropy_is_its_definition() -> None:
    form = CrossEntropy(0.0, 1.0)
    outputs, returns = (
        torch.tensor([[0.3], [-1.2], [2.0]], dtype=torch.float64),
        torch.tensor([1.0, 0.0, 0.25]).double(),
    )
    expected = []
    for (output,), target in zip(outputs.tolist(), returns.tolist(), strict=True):
        share = 1 / (1 + math.exp(-output))
        expected.append(-(target * math.log(share) + (1 - target) * math.log(1 - share)))
    torch.testing.assert_close(form.loss(outputs, returns), torch.tensor(expected, dtype=torch.float64))


def test_hl_gauss_targets_are_masses_of_a_normal_distribution() -> None:
    form = HLGauss(0.0, 1.0, 16)
    (target,) = form.targets(torch.tensor([0.33], dtype=torch.float64)).tolist()

    normal = torch.distributions.Normal(*torch.tensor([0.33, SIGMA_IN_BINS * 0.1], dtype=torch.float64))
    edges = torch.arange(17, dtype=torch.float64) * 0.1 - 0.3
    masses = normal.cdf(edges).diff()
    assert target == pytest.approx((masses / masses.sum()).tolist(), abs=1e-9)
    assert sum(target) == pytest.approx(1.0)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences_and_none_reaches_the_returns(form: ValueForm) -> None:
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(4, form.num_outputs, dtype=torch.float64, generator=generator, requires_grad=True)
    returns = torch.tensor([0.0, 1.0, 0.3, 1.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: form.loss(given, returns.detach()), [outputs])
    form.loss(outputs, returns).sum().backward()
    assert returns.grad is None


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("form", FORMS)
def test_shapes(form: ValueForm, shape: tuple[int, ...]) -> None:
    outputs, returns = torch.zeros(*shape, form.num_outputs), torch.zeros(shape)
    assert form.values(outputs).shape == form.loss(outputs, returns).shape == shape
    assert form.targets(returns).shape == outputs.shape


def test_forms_by_settings() -> None:
    assert value_form(None) == value_form({"loss": "squared_error"}) == SquaredError()
    assert value_form({"loss": "cross_entropy", "low": -1.0, "high": 1.0}) == CrossEntropy(-1.0, 1.0)
    assert value_form({"loss": "hl_gauss", "low": 0.0, "high": 2.0, "bins": 51}) == HLGauss(0.0, 2.0, 51)
    with pytest.raises(ValueError, match="loss='mse' is unknown"):
        value_form({"loss": "mse"})
    with pytest.raises(ValueError, match=r"range of values is 1\.0 to 1\.0"):
        CrossEntropy(1.0, 1.0)
    with pytest.raises(ValueError, match="bins or more"):
        HLGauss(0.0, 1.0, MIN_BINS - 1)
