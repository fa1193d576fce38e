from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tppo_rl.bench.learner import LARGEST_GRADIENT_DIFFERENCE, learner_figures
from tppo_rl.bench.workloads import LONGEST_RESPONSE, PROMPT, tppo_fragments, whole_episodes

pytestmark = pytest.mark.integration

NAMES = [
    "learner_efficiency",
    "learner_tokens_per_second",
    "bare_tokens_per_second",
    "padding_fraction",
    "processed_per_trained_token",
    "learner_tflops",
    "peak_memory",
    "gradient_difference",
]
OPTIONS = {
    "model": "",
    "random_weights": "tiny",
    "lengths": [24],
    "window": 8,
    "tokens": 128,
    "micro_batch_tokens": 256,
    "dtype": "float32",
    "device": "cpu",
    "threads": None,
    "peak_tflops": None,
    "repeats": 2,
}


@pytest.mark.parametrize("dtype", LARGEST_GRADIENT_DIFFERENCE)
def test_names_and_the_same_gradients_as_the_bare_loop(dtype: str) -> None:
    figures = learner_figures(**(OPTIONS | {"dtype": dtype, "peak_tflops": 1.0}))
    names = [*NAMES, "model_flops_utilization"]
    fixed = {"learner_efficiency", "padding_fraction", "processed_per_trained_token"}
    assert [f.figure for f in figures] == [
        *(name if name in fixed else f"{name}, windows of 8" for name in names),
        *(f"{name}, 24 tokens" for name in names),
    ]
    by_name = {figure.figure: figure for figure in figures}
    assert by_name["gradient_difference, windows of 8"].median < LARGEST_GRADIENT_DIFFERENCE[dtype]
    assert by_name["padding_fraction, 24 tokens"].median == 0.0
    # The last of 24 tokens predicts nothing that is trained: 23 positions for 8 tokens.
    assert by_name["processed_per_trained_token, 24 tokens"].median == pytest.approx(23 / 8)
    assert by_name["learner_efficiency, 24 tokens"].repeats == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"random_weights": "huge"}, "huge"), ({"dtype": "int8"}, "int8"), ({"lengths": [PROMPT]}, f"length={PROMPT}")],
)
def test_bad_values_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner_figures(**(OPTIONS | options))


def test_windows_make_up_whole_episodes() -> None:
    fragments = tppo_fragments(50, tokens=4096, window=32)
    assert 4096 <= sum(map(len, fragments)) < 4096 + LONGEST_RESPONSE
    assert all(len(fragment) == 32 for fragment in fragments if not fragment.finished)
    for before, after in pairwise(fragments):
        assert after.window_index == (0 if before.finished else before.window_index + 1)
        if not before.finished:
            assert np.array_equal(after.context, np.concatenate([before.context, before.tokens]))
    assert all(fragment.num_positions == 64 for fragment in whole_episodes(50, tokens=100, length=64))


@pytest.mark.parametrize(
    "arguments",
    [
        ["learner", "--random-weights", "tiny", "--tokens", "64", "--length", "24"],
        ["advantages", "--tokens", "1000", "--no-rllib"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_command_writes_its_records_without_ray_or_vllm(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "figures.json"
    program = (
        "import sys; from tppo_rl.cli import main\n"
        f"main({['bench', *arguments, '--repeats', '2', '--json', str(file)]!r}, standalone_mode=False)\n"
        "sys.exit(bool({'ray', 'vllm'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    records = json.loads(file.read_text(encoding="utf-8"))
    assert {tuple(record) for record in records} == {("figure", "median", "low", "high", "repeats", "unit")}
    assert all(record["figure"] in run.stdout for record in records)
