"""The compiled recurrence is the tensor code, bit for bit."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.maths.advantages import egae


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    gamma=st.sampled_from([1.0, 0.97, 0.3]),
    lambda_=st.sampled_from([0.0, 0.5, 0.95, 1.0, "per row"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    corrected=st.booleans(),
)
def test_equals_the_tensor_code_to_the_last_bit(
    lengths: list[int], seed: int, gamma: float, lambda_: float | str, dtype: torch.dtype, corrected: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, steps = len(lengths), max(lengths) + seed % 3
    rewards, values = torch.randn(2, rows, steps, generator=generator, dtype=dtype)
    padding = torch.arange(steps) >= torch.tensor(lengths)[:, None]
    rewards[padding] = float("nan")
    values[padding] = float("nan")
    boundary = torch.randn(rows, generator=generator, dtype=dtype)
    rate = torch.rand(rows, generator=generator, dtype=dtype) if lambda_ == "per row" else lambda_
    tail_corrected = torch.rand(rows, generator=generator) < 0.5 if corrected else None
    compiled, tensor_code = (
        egae(
            rewards,
            values,
            # A gradient is only to be had from the tensor code.
            boundary.clone().requires_grad_(needs_gradient),
            torch.tensor(lengths),
            gamma=gamma,
            lambda_=rate,  # type: ignore[arg-type]
            tail_corrected=tail_corrected,
        )
        for needs_gradient in (False, True)
    )
    assert tensor_code.requires_grad
    assert not compiled.requires_grad
    assert compiled.dtype == dtype
    assert torch.equal(compiled, tensor_code)


def test_rows_need_not_be_contiguous() -> None:
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).T
    lengths = torch.tensor([6, 1, 3, 5])
    whole = egae(torch.zeros_like(values), values, torch.zeros(4), lengths, gamma=1.0, lambda_=0.9)
    copied = egae(torch.zeros(4, 6), values.contiguous(), torch.zeros(4), lengths, gamma=1.0, lambda_=0.9)
    assert torch.equal(whole, copied)
