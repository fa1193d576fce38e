"""The command on its own, and the report that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tppo_rl.cli import main

SMALL = [
    "--lengths",
    "lognormal:30,1",
    "--cap",
    "200",
    "--slots",
    "8",
    "--batch-tokens",
    "512",
    "--learner-speed",
    "20000",
]


def test_it_prints_a_table_and_a_recommendation_and_writes_files(tmp_path: Path) -> None:
    whole = CliRunner().invoke(main, ["plan", *SMALL, "--window", "25", "--window", "200"])
    assert "partial rollouts" in whole.output
    figure, file = tmp_path / "plan.png", tmp_path / "plan.json"
    result = CliRunner().invoke(
        main, ["plan", *SMALL, "--window", "25", "--window", "100", "--figure", str(figure), "--json", str(file)]
    )
    assert result.exit_code == 0, result.output
    for words in ("T-PPO async", "T-PPO sync", "PPO", "Take ", "trained tokens a second", "of generation"):
        assert words in result.output, words
    assert figure.read_bytes().startswith(b"\x89PNG")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["mode"], row["window"]) for row in content["predictions"]] == [
        ("async", 25),
        ("async", 100),
        ("sync", 25),
        ("sync", 100),
        ("ppo", None),
    ]
    assert content["recommended"] in content["predictions"]


def test_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; from tppo_rl.cli import main\n"
        f"main({['plan', *SMALL]!r}, standalone_mode=False)\n"
        "sys.exit(bool({'ray', 'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


def test_the_defaults_and_a_gpu_do() -> None:
    for arguments in (
        ["--window", "64"],
        ["--costs", "h100", "--model", "qwen2.5-7b", "--devices", "8", "--window", "64"],
        ["--costs", "h100", "--model", "qwen2.5-32b", "--tensor-parallel", "2", "--devices", "4", "--window", "64"],
        ["--devices", "1", "--window", "64"],
    ):
        result = CliRunner().invoke(main, ["plan", *arguments])
        assert result.exit_code == 0, result.output
        assert "Take " in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lengths", "normal:3"], "lengths='normal:3'"),
        (["--lengths", "runs/none"], "lengths='runs/none'"),
        (["--costs", "none.json"], "costs='none.json'"),
        (["--rollout-records", "none.json"], "rollout_records='none.json'"),
        (["--learner-speed", "0"], "learner_speed=0"),
        (["--learner-speed", "1", "--learner-records", "x.json"], "give one of them"),
        (["--slots", "0"], "slots=0"),
        (["--model", "qwen2.5-7b"], "bench plan --model qwen2.5-7b"),
        (["--tensor-parallel", "2"], "tensor_parallel=2"),
        (["--costs", "h100", "--model", "./nothing"], "model='./nothing'"),
    ],
)
def test_bad_input_ends_with_one_message(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["plan", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert words in result.output


def test_memory_is_printed_for_a_card_with_its_formula() -> None:
    result = CliRunner().invoke(
        main, ["plan", "--memory", "--model", "qwen2.5-7b", "--costs", "h100", "--lengths", "fixed:1024"]
    )
    assert result.exit_code == 0, result.output
    for words in ("learner", "backward pass", "keys and values", "MORE than one h100 has", "2q + 2k + 4i"):
        assert words in result.output, words
    assert "placements on 2 GPUs of 74.5 GiB (h100)" in result.output
    assert "this would fit: lora: {rank: 16}" in " ".join(result.output.replace("│", " ").split())
    assert "(card - process - a * held) / card" in result.output
    assert result.output.count("does not fit") == 4
    refused = CliRunner().invoke(main, ["plan", *SMALL, "--set", "lr=1"])
    assert refused.exit_code != 0


def test_placements_of_a_model_stand_side_by_side() -> None:
    arguments = ["plan", "--memory", "--model", "qwen2.5-1.5b", "--costs", "h100", "--lengths", "fixed:1024"]
    result = CliRunner().invoke(main, [*arguments, "--devices", "8"])
    assert result.exit_code == 0, result.output
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:]]
        for line in result.output.splitlines()
        if len(cells := line.split("│")) == 7
    }
    assert {name: row[0] for name, row in rows.items() if name} == {
        "colocated, awake": "8 + 8",
        "colocated, sleeping": "8 + 8",
        "disaggregated": "4 + 4",
        "cluster": "8 + 8",
    }
    shares = [float(rows[name][2].partition(":")[0]) for name in ("colocated, awake", "colocated, sleeping")]
    assert 0 < shares[0] < shares[1] < 0.9
    shared = CliRunner().invoke(main, [*arguments, "--devices", "8", "--set", "placement=cluster"])
    assert shared.exit_code == 2
    assert "placement='cluster': all of them are compared; leave it out" in shared.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "--costs", "banana"], "--costs='banana': with --memory it names a card; give one of"),
        (["--memory", "--costs", "h100", "--devices", "0"], "Invalid value for '--devices'"),
        (["--devices", "-3"], "Invalid value for '--devices'"),
        (["--tensor-parallel", "0"], "Invalid value for '--tensor-parallel'"),
    ],
)
def test_nonsense_is_refused_by_name(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["plan", *SMALL, *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_a_window_that_no_response_fills_is_refused() -> None:
    result = CliRunner().invoke(main, ["plan", *SMALL, "--window", "25", "--window", "201"])
    assert result.exit_code != 0
    assert "--window=201: no response is longer than 200 tokens" in result.output
