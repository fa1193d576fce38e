"""`tppo-rl evaluate` against counts by hand, after a kill, and what it refuses; `tppo-rl rescore`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tppo_rl.cli import main
from tppo_rl.experiment.answer_report import compare_answers, figures_of, markdown
from tppo_rl.experiment.answers import Answer, Problem, read_answers


def answer(problem: int, repeat: int, text: str, *, correct: bool | None, tokens: int = 5) -> Answer:
    return Answer(problem, repeat, text, tokens, correct, float(bool(correct)), truncated=False)


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def run_apart(*arguments: Any, code: int = 0) -> str:
    """The same in a process of its own: vLLM keeps the streams of the process that it starts in."""
    command = [sys.executable, "-m", "tppo_rl", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


ANSWERS = [
    answer(0, 0, "7", correct=True, tokens=2),
    answer(0, 1, "7", correct=True, tokens=4),
    answer(0, 2, "8", correct=False, tokens=6),
    answer(0, 3, "none", correct=False, tokens=8),
    answer(1, 0, "1", correct=False, tokens=20),
    answer(1, 1, "1", correct=False, tokens=20),
    answer(1, 2, "3", correct=True, tokens=20),
    answer(1, 3, "2", correct=False, tokens=20),
]


def last_digit(text: str) -> str | None:
    found = re.findall(r"\d", text)
    return found[-1] if found else None


def test_figures_are_those_that_one_counts_by_hand() -> None:
    figures = figures_of(ANSWERS, last_digit)
    assert figures["avg@4"]["mean"] == pytest.approx(3 / 8)
    # Of the six pairs of answers five hold a right one, and three.
    assert figures["pass@2"]["mean"] == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert figures["pass@4"]["mean"] == 1.0
    assert figures["maj@4"]["mean"] == 0.5
    assert figures["length"]["mean"] == pytest.approx(12.5)
    assert [row["accuracy"] for row in figures["by_length"]] == [0.5, 0.25]
    assert {row["right"]: row["problems"] for row in figures["by_difficulty"]}["up to a quarter"] == 1
    # Two problems are too few for an interval, and JSON has no NaN.
    assert figures["avg@4"]["low"] is None
    json.dumps(figures, allow_nan=False)


def test_without_verdicts_there_is_no_accuracy() -> None:
    figures = figures_of([answer(0, 0, "x", correct=None), answer(1, 0, "y", correct=None)], last_digit)
    assert "avg@1" not in figures
    assert figures["length"]["mean"] == 5.0
    with pytest.raises(ValueError, match="no verdicts"):
        compare_answers([answer(0, 0, "x", correct=None)], ANSWERS)


def test_two_models_are_compared_on_the_problems_that_both_have() -> None:
    better = [answer(problem, 0, "1", correct=True) for problem in range(1, 12)]
    worse = [answer(problem, 0, "1", correct=problem == 3) for problem in range(20)]
    found = compare_answers(better, worse)
    assert found["accuracy_difference"]["n"] == 11
    assert found["accuracy_difference"]["mean"] == pytest.approx(10 / 11)
    assert found["p"] < 0.01
    with pytest.raises(ValueError, match="no problem in common"):
        compare_answers([answer(90, 0, "1", correct=True)], worse)


def test_no_text_breaks_the_table() -> None:
    problems = [Problem("a | b\n<script>", "`x`"), Problem("second", None)]
    evaluation = {"model": "m", "environment": "e", "figures": {"sampled": figures_of(ANSWERS, last_digit)}}
    text = markdown(evaluation, problems, {"sampled": ANSWERS})
    rows = [line for line in text.splitlines() if line.startswith(("| 0 ", "| 1 "))]
    assert rows == ["| 0 | a \\| b &lt;script> | `x` | 2 of 4 | 5 |", "| 1 | second |  | 1 of 4 | 20 |"]


def test_half_a_line_is_left_out_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    line = json.dumps(vars(ANSWERS[0]) if hasattr(ANSWERS[0], "__dict__") else {})
    file.write_text(line + "\n" + line[:20], encoding="utf-8")
    assert read_answers(file) == [ANSWERS[0]]
    file.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers\.jsonl: holds a line that is no answer"):
        read_answers(file)


def write_evaluation(folder: Path, gold: str | None) -> None:
    folder.mkdir()
    settings = {"model": "m", "environment": "e"}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    lines = [json.dumps({"prompt": f"p{index}", "gold_answer": gold}) for index in range(2)]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers = (json.dumps(vars(one)) for one in ANSWERS)
    (folder / "answers.jsonl").write_text("\n".join(answers) + "\n", encoding="utf-8")


def test_stored_answers_are_scored_again(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", "1")
    output = run("rescore", tmp_path / "e", "--verifier", "numeric")
    assert "avg@4 | 25.0 %" in output
    evaluation = json.loads((tmp_path / "e" / "rescored" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["figures"]["sampled"]["avg@4"]["mean"] == 0.25
    assert evaluation["settings"]["verifier"] == "numeric"
    # What was stored stays as it is.
    assert read_answers(tmp_path / "e" / "answers.jsonl") == ANSWERS
    write_evaluation(tmp_path / "n", None)
    assert "gave no gold answers" in run("rescore", tmp_path / "n", "--verifier", "numeric", code=2)
    assert "holds no evaluation" in run("rescore", tmp_path, "--verifier", "numeric", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tppo_rl/arithmetic-chain"], "--env: a model alone does not say"),
        (["tppo_rl/arithmetic-chain", "--env", "tppo_rl/ArithmeticChain-v0", "--extract", "somewhere"], "--extract="),
        (["tppo_rl/arithmetic-chain", "--env", "tppo_rl/ArithmeticChain-v0", "--n", "0"], "--n=0"),
        (["tppo_rl/arithmetic-chain", "--env", "tppo_rl/ArithmeticChain-v0", "--set", "lrr=1"], "lrr"),
        (["no/model", "--env", "tppo_rl/ArithmeticChain-v0"], "policy_model='no/model'"),
        (
            ["tppo_rl/arithmetic-chain", "--env", "tppo_rl/ArithmeticChain-v0", "--set", "env_config.max_steps=3"],
            "max_steps",
        ),
    ],
)
def test_bad_input_is_refused_before_an_engine_starts(arguments: list[str], message: str, tmp_path: Path) -> None:
    output = run("evaluate", *arguments, "--out", tmp_path / "out", code=2)
    assert message in output
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_an_evaluation_is_counted_and_completed_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["evaluate", "tppo_rl/arithmetic-chain", "--env", "tppo_rl/ArithmeticChain-v0", "--n", 2, "--problems", 8]
    command += ["--greedy", "--out", out, "--set", "max_response_length=64", "--set", "num_envs_per_env_runner=4"]
    run_apart(*command)
    answers = read_answers(out / "answers.jsonl")
    figures = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert len(answers) == 16
    assert figures["sampled"]["avg@2"]["mean"] == pytest.approx(sum(bool(one.correct) for one in answers) / 16)
    assert figures["greedy"]["problems"] == 8
    by_problem = [{one.correct for one in answers if one.problem == problem} for problem in range(8)]
    assert figures["sampled"]["pass@2"]["mean"] == pytest.approx(sum(True in verdicts for verdicts in by_problem) / 8)
    content = (out / "answers.jsonl").read_bytes()
    kept = b"".join(content.splitlines(keepends=True)[:5])
    (out / "answers.jsonl").write_bytes(kept + b'{"problem": 3, "rep')
    run_apart(*command)
    again = (out / "answers.jsonl").read_bytes()
    assert again.startswith(kept)
    assert {(one.problem, one.repeat) for one in read_answers(out / "answers.jsonl")} == {
        (problem, repeat) for problem in range(8) for repeat in range(2)
    }
    assert "holds an evaluation with other settings (repeats)" in run_apart(*command, "--n", 3, code=2)
    # With all answers there no engine is needed.
    output = run_apart(*command, "--against", out)
    assert "Accuracy differs by +0.0 points" in output
