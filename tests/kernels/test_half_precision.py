"""The warning of number formats that a CPU has no instructions for."""

from __future__ import annotations

import logging

import pytest
import torch

from tppo_rl.kernels import half_precision


@pytest.mark.parametrize(("slowdown", "warns"), [(0.5, False), (30.0, True)])
def test_a_slow_format_is_named_with_its_factor(
    slowdown: float, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(half_precision, "half_precision_slowdown", lambda *_: slowdown)
    with caplog.at_level(logging.WARNING):
        half_precision.warn_of_slow_dtype(torch.float16)
        half_precision.warn_of_slow_dtype(torch.float32)
    named = "dtype='float16': this CPU takes 30.0 times as long for it as for float32; set dtype to 'float32'"
    assert [record.getMessage() for record in caplog.records] == [named] * warns


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_formats_are_measured(dtype: torch.dtype) -> None:
    half_precision.half_precision_slowdown.cache_clear()
    slowdown = half_precision.half_precision_slowdown(dtype, torch.get_num_threads())
    assert 0 < slowdown < float("inf")
    assert half_precision.half_precision_slowdown(dtype, torch.get_num_threads()) == slowdown
