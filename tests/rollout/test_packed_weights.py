from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from tppo_rl.rollout.packed_weights import PackedWeights


def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    tied = generator.normal(size=(5, 3)).astype(np.float32)
    return {
        "embedding": tied,
        "bias": generator.normal(size=7).astype(np.float32),
        "transposed": generator.normal(size=(4, 6)).astype(np.float32).T,
        "counter": np.array(3),
        "nothing": np.zeros((0, 2), np.float32),
        "head": tied,
    }


def test_what_is_packed_comes_out() -> None:
    given = weights()
    packed = PackedWeights.pack(given)
    for unpacked in (packed.unpack(), pickle.loads(pickle.dumps(packed)).unpack()):
        assert list(unpacked) == list(given)
        for name, array in given.items():
            assert unpacked[name].numpy().dtype == array.dtype
            np.testing.assert_array_equal(unpacked[name].numpy(), array)


def test_tied_weights_are_sent_once_and_stay_tied() -> None:
    given = weights()
    packed = PackedWeights.pack(given)
    unpacked = packed.unpack()
    assert unpacked["embedding"].data_ptr() == unpacked["head"].data_ptr()
    assert len(packed.buffer) < sum(array.nbytes for array in given.values()) + 64 * len(given) - given["head"].nbytes


def test_tensors_are_aligned_views_of_one_buffer_that_does_not_follow_the_trainer() -> None:
    given = weights()
    packed = PackedWeights.pack(given)
    before = packed.unpack()["bias"].clone()
    given["bias"] += 1.0
    for name, tensor in packed.unpack().items():
        assert np.shares_memory(tensor.numpy(), packed.buffer) or not tensor.numel()
        assert packed.places[name].offset % 64 == 0
    assert torch.equal(packed.unpack()["bias"], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_half_the_bytes_and_rounds_as_an_engine_does(dtype: torch.dtype) -> None:
    given = weights()
    packed = PackedWeights.pack(given, dtype, float32=["bia"])
    unpacked = packed.unpack()
    for name, array in given.items():
        kept = name in ("bias", "counter")
        expected = torch.from_numpy(array) if kept else torch.from_numpy(array).to(dtype)
        assert unpacked[name].dtype == expected.dtype
        assert torch.equal(unpacked[name], expected)
    whole = PackedWeights.pack({"wide": np.ones((64, 64), np.float32)}, dtype)
    assert len(whole.buffer) == 64 * 64 * 2


def test_a_buffer_that_may_only_be_read_gives_no_warning() -> None:
    packed = PackedWeights.pack(weights())
    packed.buffer.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            packed.unpack()
    finally:
        torch.set_warn_always(False)
