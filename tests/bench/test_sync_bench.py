from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tppo_rl.bench.sync import sync_figures

pytestmark = pytest.mark.integration

NAMES = [
    "weight_publish_seconds",
    "weight_stage_seconds",
    "weight_load_seconds",
    "kv_forget_seconds",
    "plain_copy_seconds",
    "weights_sent",
    "bytes_per_parameter",
]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["object_store", "broadcast"])
def test_the_engine_takes_the_weights_and_the_records_are_written(tmp_path: Path, transport: str) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tppo_rl", "bench", "sync", "--random-weights", "tiny", "--repeats", "2"]
    command += ["--dtype", "bfloat16", "--linear", "packed", "--json", str(file)]
    command += ["--transport", transport]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    records = json.loads(file.read_text(encoding="utf-8"))
    assert [record["figure"] for record in records] == [
        "weight_sync_ratio",
        "weight_standstill_ratio",
        "weight_pause_ratio",
        *(f"{name}, tiny, bfloat16" for name in NAMES),
    ]
    # The tied output layer is sent once. Tensors begin at multiples of 64 bytes.
    assert 2.0 <= records[-1]["median"] < 2.05
    assert {tuple(record) for record in records} == {("figure", "median", "low", "high", "repeats", "unit")}


@pytest.mark.parametrize("options", [{"random_weights": "huge"}, {"dtype": "int8"}])
def test_bad_values_are_named(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"huge|int8"):
        sync_figures(
            **({"model": "", "random_weights": None, "dtype": "float32", "threads": 1, "repeats": 1} | options)
        )
