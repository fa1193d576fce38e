"""What a pass takes, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.config.options import Options
from tppo_rl.plan.learner_memory import kept_of_layer, learner_pass
from tppo_rl.plan.model_shape import Shape

LINEAR = (("q_proj", 8, 8), ("k_proj", 8, 4), ("v_proj", 8, 4), ("o_proj", 8, 8),
          ("gate_proj", 8, 16), ("up_proj", 8, 16), ("down_proj", 16, 8))  # fmt: skip
SHAPE = Shape(
    parameters=32 * 8 + 2 * 600,
    embedding=32 * 8,
    of_layer=600,
    output=0,
    layers=2,
    hidden=8,
    heads=2,
    queries=8,
    keys=4,
    mlp=16,
    vocabulary=32,
    linear=LINEAR * 2,
)
LORA = {"lora": {"rank": 2}}
HALF = {"dtype": "bfloat16"}
BLOCKS = 3 * 4 * 10 * 32
"""Copies of the logits of ten tokens in float32."""


def options(**changes: Any) -> Options:
    return Options.of(micro_batch_tokens=10, critic=None, advantage_estimator="group_relative", **changes)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        # Residual stream and its normalized copy twice, two norms, queries, output of attention; keys, values; the MLP.
        ({}, 4 * (8 * 8 + 2 * 4 + 4 * 16 + 4)),
        # The first four in float32; five inputs of linear layers, queries, output, keys, values, MLP in half precision.
        (HALF, 4 * (4 * 8 + 4) + 2 * (7 * 8 + 2 * 4 + 4 * 16)),
        (HALF | {"weights_dtype": "bfloat16"}, 4 * (2 * 8 + 4) + 2 * (6 * 8 + 2 * 4 + 4 * 16)),
        # No normalized copies, but two numbers of each of seven adapters.
        (LORA, 4 * (6 * 8 + 2 * 4 + 4 * 16 + 14 + 4)),
        (HALF | LORA, 4 * (2 * 8 + 4) + 2 * (7 * 8 + 2 * 4 + 4 * 16 + 14)),
    ],
)
def test_a_layer_keeps_what_was_counted(changes: dict[str, Any], kept: int) -> None:
    given = options(**changes)
    assert kept_of_layer(SHAPE, given, given.models.lora) == kept


def test_a_pass_in_float32_peaks_where_the_last_layer_goes_backwards() -> None:
    kept = 10 * 4 * 140 * 2 + 2 * 4 * 8 * 10
    head = 4 * 8 * 10 + 4 * 10 * 32 + max(4 * 10 * 32 + BLOCKS, 4 * 256)
    last_layer = 4 * 256 + 10 * (2 * 16 * 4 + 2 * 8 * 4) + 4 * 8 * 16
    found = learner_pass(SHAPE, options(), has_logits=True)
    assert found.kept == kept
    assert found.peak == kept + max(head, last_layer)
    critic = learner_pass(SHAPE, options(), has_logits=False)
    assert critic.peak == kept + last_layer - 4 * 256


def test_recomputed_layers_keep_their_inputs_and_one_layer_comes_on_top() -> None:
    found = learner_pass(SHAPE, options(gradient_checkpointing=True), has_logits=False)
    assert found.kept == 10 * 4 * 8 * 2 + 2 * 4 * 8 * 10
    assert found.peak == found.kept + 10 * 4 * 140 + 10 * (2 * 16 * 4 + 2 * 8 * 4) + 4 * 8 * 16


def test_casts_last_until_the_end_of_the_forward_pass() -> None:
    casts = 2 * 2 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16)
    found = learner_pass(SHAPE, options(**HALF), has_logits=False)
    again = learner_pass(SHAPE, options(**HALF, gradient_checkpointing=True), has_logits=False)
    assert found.kept == 10 * kept_of_layer(SHAPE, options(**HALF), None) * 2 + 2 * 4 * 8 * 10 + casts
    assert again.peak >= again.kept + casts


def test_adapters_are_counted_beside_the_layers_that_are_named() -> None:
    assert SHAPE.adapters(2, "all-linear") == 2 * 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
    assert SHAPE.adapters(2, ("q_proj", "v_proj")) == 2 * 2 * (16 + 12)
    assert SHAPE.first_layers(1).adapters(2, ("q_proj",)) == 2 * 16
