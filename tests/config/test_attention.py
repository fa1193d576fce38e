"""Which attention kernels are chosen, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.config.attention import attention_kernels, check_attention
from tppo_rl.config.checks import check_options
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError


def checked(values: dict[str, Any]) -> Options:
    return check_options(values, SPEC)


@pytest.mark.parametrize(
    ("values", "gpus", "installed", "words"),
    [
        ({"attention": "flash_attention_2"}, 1, False, ["flash-attn is not installed", "'auto'"]),
        ({"attention": "flash_attention_2"}, 1, True, ["dtype='float32'", "'bfloat16'"]),
        ({"attention": "flex_attention"}, 0, True, ["num_gpus_per_learner=0", "set num_gpus_per_learner to 1"]),
    ],
)
def test_attention_that_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], gpus: int, installed: bool, words: list[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    with pytest.raises(OptionError) as error:
        check_attention(checked(values | {"num_gpus_per_learner": gpus}))
    assert all(word in str(error.value) for word in [f"attention={values['attention']!r}", *words]), str(error.value)
    for kernels in ("auto", "sdpa"):
        check_attention(checked({"attention": kernels, "packing": True}))


@pytest.mark.parametrize(
    ("values", "installed", "expected"),
    [
        ({}, True, "sdpa"),
        ({"packing": True}, True, "sdpa"),
        ({"num_gpus_per_learner": 1, "dtype": "bfloat16"}, True, "sdpa"),
        ({"num_gpus_per_learner": 1, "dtype": "bfloat16", "packing": True}, True, "flash_attention_2"),
        ({"num_gpus_per_learner": 1, "dtype": "bfloat16", "packing": True}, False, "flex_attention"),
        ({"num_gpus_per_learner": 1, "packing": True}, True, "flex_attention"),
        ({"num_gpus_per_learner": 1, "packing": True, "attention": "sdpa"}, True, "sdpa"),
    ],
)
def test_kernels_are_chosen_by_device_layout_and_dtype(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], installed: bool, expected: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert attention_kernels(checked(values)) == expected
