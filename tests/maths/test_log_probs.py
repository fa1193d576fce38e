from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.maths.log_probs import token_log_probs


def test_numbers_worked_by_hand() -> None:
    # Scores log 1, log 3 at temperature 1: 1/4 and 3/4. At temperature 0.5 they square: 1/10 and 9/10.
    logits = torch.tensor([[0.0, math.log(3.0)]] * 2, dtype=torch.float64)
    plain = token_log_probs(logits, torch.tensor([0, 1]), temperature=1.0)
    assert plain.log_probs.exp().tolist() == pytest.approx([0.25, 0.75])
    assert plain.entropy.tolist() == pytest.approx([-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))] * 2)
    sharp = token_log_probs(logits, torch.tensor([0, 1]), temperature=0.5)
    assert sharp.log_probs.exp().tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_equals_processed_log_probs_of_the_engine(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 200, generator=generator) * 5
    tokens = torch.randint(0, 200, (64,), generator=generator)
    result = token_log_probs(logits, tokens, temperature=temperature)
    # vLLM: logits to float32, divided by the temperature in place, log_softmax, gather.
    processed = logits.float().div(temperature).log_softmax(dim=-1, dtype=torch.float32)
    torch.testing.assert_close(result.log_probs, processed.gather(1, tokens[:, None])[:, 0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(result.entropy, -(processed.exp() * processed).sum(dim=-1), atol=1e-5, rtol=1e-5)


def test_half_precision_logits_are_raised_first() -> None:
    logits = (torch.randn(8, 50, generator=torch.Generator().manual_seed(1)) * 8).bfloat16()
    tokens = torch.arange(8)
    result = token_log_probs(logits, tokens, temperature=1.0)
    assert result.log_probs.dtype == torch.float32
    assert torch.equal(result.log_probs, token_log_probs(logits.float(), tokens, temperature=1.0).log_probs)


def test_masked_vocabulary_keeps_the_entropy_finite() -> None:
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    result = token_log_probs(logits, torch.tensor([1]), temperature=1.0)
    assert float(result.entropy) == pytest.approx(math.log(2))
    assert float(result.log_probs) == pytest.approx(-math.log(2))


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tokens = torch.tensor([0, 1, 2, 3, 8])
    plain = token_log_probs(logits, tokens, temperature=0.8)
    raised = token_log_probs(logits + 100.0, tokens, temperature=0.8)
    torch.testing.assert_close(plain, raised)


def test_gradcheck_and_detached_entropy() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, tokens, temperature=0.7).log_probs, [logits])
    assert not token_log_probs(logits, tokens, temperature=0.7).entropy.requires_grad


def test_entropy_gradient_worked_by_hand() -> None:
    # p = 1/4, 3/4: dH/dz_v = -p_v (log p_v + H); a temperature of 0.5 on half the logits doubles it.
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = [-0.25 * (math.log(0.25) + entropy), -0.75 * (math.log(0.75) + entropy)]
    for temperature in (1.0, 0.5):
        logits = (temperature * torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)).requires_grad_()
        result = token_log_probs(logits, torch.tensor([0]), temperature=temperature, entropy_gradient=True)
        assert float(result.entropy.detach()) == pytest.approx(entropy)
        (gradient,) = torch.autograd.grad(result.entropy.sum(), logits)
        assert gradient[0].tolist() == pytest.approx([value / temperature for value in expected])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_entropy_gradient_changes_no_value(temperature: float) -> None:
    logits = 5 * torch.randn(16, 40, generator=torch.Generator().manual_seed(5))
    logits[:, 7] = -torch.inf
    tokens = torch.arange(16) % 7
    plain = token_log_probs(logits, tokens, temperature=temperature)
    with_gradient = token_log_probs(logits, tokens, temperature=temperature, entropy_gradient=True)
    assert torch.equal(with_gradient.log_probs, plain.log_probs)
    torch.testing.assert_close(with_gradient.entropy, plain.entropy, atol=1e-6, rtol=1e-6)
    for row in range(16):
        scores = [score / temperature for score in logits[row].double().tolist() if score > -math.inf]
        norm = math.log(sum(map(math.exp, scores)))
        expected = -sum(math.exp(score - norm) * (score - norm) for score in scores)
        assert float(with_gradient.entropy[row]) == pytest.approx(expected, abs=1e-5)


def test_entropy_gradcheck() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(
        lambda x: tuple(token_log_probs(x, tokens, temperature=0.7, entropy_gradient=True)), [logits]
    )


def test_masked_vocabulary_keeps_the_entropy_gradient_finite() -> None:
    """With -inf in two columns, value and gradient are those of the vocabulary without them."""
    generator = torch.Generator().manual_seed(7)
    small = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    hole = torch.full((3, 1), -torch.inf, dtype=torch.float64)
    large = torch.cat([small.detach()[:, :2], hole, small.detach()[:, 2:], hole], dim=1).requires_grad_()
    results = [
        token_log_probs(logits, torch.tensor([0, 1, 1]), temperature=0.8, entropy_gradient=True)
        for logits in (small, large)
    ]
    torch.testing.assert_close(results[0].entropy, results[1].entropy)
    for result in results:
        (result.entropy.sum() + result.log_probs.sum()).backward()
    assert small.grad is not None
    assert large.grad is not None
    torch.testing.assert_close(large.grad[:, [0, 1, 3, 4]], small.grad)
    assert not large.grad[:, [2, 5]].any()
    # A single entry that is left has no entropy and no gradient.
    alone = torch.tensor([[3.0, -torch.inf]], requires_grad=True)
    token_log_probs(alone, torch.tensor([0]), temperature=1.0, entropy_gradient=True).entropy.sum().backward()
    assert alone.grad is not None
    assert alone.grad.tolist() == [[0.0, 0.0]]


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, V\]"):
        token_log_probs(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), temperature=1.0)
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), temperature=0.0)


@given(
    st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), min_size=1, max_size=6),
    st.floats(0.3, 2.0),
    st.randoms(use_true_random=False),
)
def test_equals_the_definition_in_any_order(rows, temperature, random) -> None:
    random.shuffle(rows)
    tokens = [random.randrange(5) for _ in rows]
    result = token_log_probs(torch.tensor(rows, dtype=torch.float64), torch.tensor(tokens), temperature=temperature)
    for row, token, log_prob, entropy in zip(
        rows, tokens, result.log_probs.tolist(), result.entropy.tolist(), strict=True
    ):
        weights = [math.exp(score / temperature) for score in row]
        shares = [weight / sum(weights) for weight in weights]
        assert log_prob == pytest.approx(math.log(shares[token]), abs=1e-9)
        assert entropy == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-9)
