from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tppo_rl.kernels.denormals import flushed_subnormals, is_flushing

SUBNORMAL = 1e-40


def doubled() -> float:
    return float(2 * torch.full((1000,), SUBNORMAL)[-1])


def test_they_are_0_inside_and_in_threads_that_are_started_there() -> None:
    assert doubled() == pytest.approx(2 * SUBNORMAL)
    with flushed_subnormals():
        assert is_flushing()
        assert doubled() == 0
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(doubled).result() == 0
    assert not is_flushing()
    assert doubled() == pytest.approx(2 * SUBNORMAL)


def test_who_flushes_already_goes_on_so_also_after_an_error() -> None:
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(KeyError), flushed_subnormals():
            raise KeyError
        assert is_flushing()
    finally:
        torch.set_flush_denormal(False)
    with pytest.raises(KeyError), flushed_subnormals():
        raise KeyError
    assert not is_flushing()
