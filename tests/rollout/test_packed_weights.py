from __future__ import annotations

import pickle

import numpy as np

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
            assert unpacked[name].dtype == array.dtype
            np.testing.assert_array_equal(unpacked[name], array)


def test_tied_weights_are_sent_once_and_stay_tied() -> None:
    given = weights()
    packed = PackedWeights.pack(given)
    unpacked = packed.unpack()
    assert np.shares_memory(unpacked["embedding"], unpacked["head"])
    assert len(packed.buffer) < sum(array.nbytes for array in given.values()) + 64 * len(given) - given["head"].nbytes


def test_tensors_are_aligned_views_of_one_buffer_that_does_not_follow_the_trainer() -> None:
    given = weights()
    packed = PackedWeights.pack(given)
    before = packed.unpack()["bias"].copy()
    given["bias"] += 1.0
    for name, array in packed.unpack().items():
        assert np.shares_memory(array, packed.buffer) or array.size == 0
        assert packed.places[name].offset % 64 == 0
    np.testing.assert_array_equal(packed.unpack()["bias"], before)
