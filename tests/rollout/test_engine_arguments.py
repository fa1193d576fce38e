"""What goes to vLLM, without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tppo_rl.rollout.vllm_engine import _layout, _with_head_dtype


def test_overrides_of_users_and_of_the_output_layer_go_together() -> None:
    given = {"hf_overrides": {"max_position_embeddings": 64}, "block_size": 16}
    wanted = {"hf_overrides": {"max_position_embeddings": 64, "head_dtype": "float32"}, "block_size": 16}
    assert _with_head_dtype(given, "float32") == wanted
    assert _with_head_dtype({}, "float32") == {"hf_overrides": {"head_dtype": "float32"}}
    with pytest.raises(ValueError, match=r"hf_overrides=.*: with head_dtype='float32' it must be a mapping"):
        _with_head_dtype({"hf_overrides": lambda config: config}, "float32")


@pytest.mark.parametrize(
    ("config", "asked", "quantization", "layout"),
    [
        ({"hidden_size": 128}, None, None, "in_place"),
        ({"hidden_size": 512}, None, None, "packed"),
        ({"hidden_size": 512}, "in_place", None, "in_place"),
        ({"hidden_size": 128}, "packed", None, "packed"),
        # vLLM changes these weights once it has loaded them.
        ({"hidden_size": 128}, "in_place", "fp8", "packed"),
        ({"hidden_size": 128, "quantization_config": {"quant_method": "fp8"}}, "in_place", None, "packed"),
        ({"hidden_size": 128, "model_type": "qwen3_moe", "num_experts": 4}, "in_place", None, "packed"),
    ],
)
def test_layers_are_copied_to_only_where_they_stay_as_they_were_loaded(
    config: dict[str, Any], asked: str | None, quantization: str | None, layout: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"} | config), encoding="utf-8")
    assert _layout(str(tmp_path), asked, quantization) == layout
