"""What goes to vLLM, without an engine."""

from __future__ import annotations

import pytest

from tppo_rl.rollout.vllm_engine import _with_head_dtype


def test_overrides_of_users_and_of_the_output_layer_go_together() -> None:
    given = {"hf_overrides": {"max_position_embeddings": 64}, "block_size": 16}
    wanted = {"hf_overrides": {"max_position_embeddings": 64, "head_dtype": "float32"}, "block_size": 16}
    assert _with_head_dtype(given, "float32") == wanted
    assert _with_head_dtype({}, "float32") == {"hf_overrides": {"head_dtype": "float32"}}
    with pytest.raises(ValueError, match=r"hf_overrides=.*: with head_dtype='float32' it must be a mapping"):
        _with_head_dtype({"hf_overrides": lambda config: config}, "float32")
