"""What answers say of a model: figures with intervals, by length and difficulty, a row for each problem; JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.experiment.answers import Answer, Problem, by_problem
from tppo_rl.maths.answer_statistics import (
    Interval,
    compare,
    majority_at_k,
    mean_over_problems,
    pass_at_k,
)

JSON_FILE = "evaluation.json"
MARKDOWN_FILE = "evaluation.md"
_LONGEST_CELL = 80
_PARTS = 3
_SHARES = ((0.0, "none"), (0.25, "up to a quarter"), (0.5, "up to half"), (0.75, "up to three quarters"), (1.0, "more"))


def figures_of(answers: Sequence[Answer], extract: Callable[[str], str | None]) -> dict[str, Any]:
    """Returns the figures of one way of answering.

    Args:
        answers: The same number for each problem.
        extract: Finds what votes in an answer's text, for majorities.

    Returns:
        `avg@n`, and for k of 2 and more `pass@k` and `maj@k`, as intervals (fields of `Interval`), means of length, truncation and reward, `by_length`
        and `by_difficulty` as rows. Without verdicts of the environment there are neither accuracies nor these rows.
    """
    rows = list(by_problem(answers))
    n = len(rows[0]) if rows else 0
    lengths = np.array([[answer.tokens for answer in row] for row in rows], np.float64)
    truncated = np.array([[answer.truncated for answer in row] for row in rows], np.float64)
    rewards = np.array([[answer.reward for answer in row] for row in rows], np.float64)
    found: dict[str, Any] = {
        "problems": len(rows),
        "answers_per_problem": n,
        "reward": _written(mean_over_problems(rewards.mean(1))),
        "length": _written(mean_over_problems(lengths.mean(1))),
        "truncated": _written(mean_over_problems(truncated.mean(1))),
    }
    if any(answer.correct is None for answer in answers):
        return found
    correct = np.array([[bool(answer.correct) for answer in row] for row in rows])
    votes = [[extract(answer.text) for answer in row] for row in rows]
    found[f"avg@{n}"] = _written(mean_over_problems(correct.mean(1)))
    for k in _powers_of_two(n)[1:]:
        found[f"pass@{k}"] = _written(mean_over_problems(pass_at_k(correct, k)))
    for k in _powers_of_two(n)[2:]:
        found[f"maj@{k}"] = _written(mean_over_problems(majority_at_k(votes, correct, k)))
    found["by_length"] = _by_length(lengths.mean(1), correct.mean(1), truncated.mean(1))
    found["by_difficulty"] = _by_difficulty(correct.mean(1))
    return found


def compare_answers(one: Sequence[Answer], other: Sequence[Answer]) -> dict[str, Any]:
    """Compares two models on the problems that both have answered: accuracy of the first minus that of the second.

    Raises:
        ValueError: they have no problem in common, or the environment gave no verdicts.
    """
    means = []
    for answers in (one, other):
        if any(answer.correct is None for answer in answers):
            raise ValueError("the environment gave no verdicts: there is nothing to compare")
        means.append(
            {row[0].problem: float(np.mean([bool(answer.correct) for answer in row])) for row in by_problem(answers)}
        )
    common = sorted(means[0].keys() & means[1].keys())
    if not common:
        raise ValueError("the two have no problem in common")
    difference = compare(*(np.array([mean[problem] for problem in common]) for mean in means))
    return {"accuracy_difference": _written(difference.interval), "p": None if np.isnan(difference.p) else difference.p}


def write_report(
    folder: Path, evaluation: Mapping[str, Any], problems: Sequence[Problem], answers: Mapping[str, Sequence[Answer]]
) -> None:
    """Writes `evaluation.json` and `evaluation.md`.

    Args:
        folder: Exists.
        evaluation: `model`, `settings`, and figures by the name of the way of answering; maybe `against`.
        problems: By number.
        answers: By the name of the way of answering.
    """
    (folder / JSON_FILE).write_text(json.dumps(evaluation, indent=1) + "\n", encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(markdown(evaluation, problems, answers), encoding="utf-8")


def markdown(
    evaluation: Mapping[str, Any], problems: Sequence[Problem], answers: Mapping[str, Sequence[Answer]]
) -> str:
    """Returns the report as Markdown."""
    lines = [f"# {evaluation['model']}", "", f"`{evaluation['environment']}`, held-out problems."]
    for name, figures in evaluation["figures"].items():
        lines += ["", f"## {name}", "", "| figure | mean | 95 % interval |", "|---|---|---|"]
        lines += [_figure_row(key, value) for key, value in figures.items() if isinstance(value, Mapping)]
        lines += [
            "",
            f"{figures['problems']} problems, answers to each: {figures['answers_per_problem']}. Intervals are over problems.",
        ]
        for key, head in (("by_length", "mean length, tokens"), ("by_difficulty", "share of right answers")):
            if key in figures:
                columns = list(figures[key][0])
                lines += ["", f"| {head} | {' | '.join(columns[1:])} |", "|---" * len(columns) + "|"]
                lines += [f"| {' | '.join(map(_number, row.values()))} |" for row in figures[key]]
    if "against" in evaluation:
        against = evaluation["against"]
        difference = against["accuracy_difference"]
        lines += [
            "",
            f"## Against {against['model']}",
            "",
            f"Accuracy differs by {100 * difference['mean']:+.1f} points",
        ]
        if against["p"] is not None:
            lines[-1] += f" ({100 * difference['low']:+.1f} … {100 * difference['high']:+.1f}), p = {against['p']:.3g}"
        lines[-1] += f" (paired permutation test over {difference['n']} problems)."
    lines += ["", "## Problems", "", "| | prompt | answer | right | mean length |", "|---|---|---|---|---|"]
    first = next(iter(answers.values()), [])
    for row in by_problem(first):
        problem = problems[row[0].problem]
        right = "" if row[0].correct is None else f"{sum(bool(answer.correct) for answer in row)} of {len(row)}"
        length = np.mean([answer.tokens for answer in row])
        lines.append(
            f"| {row[0].problem} | {_cell(problem.prompt)} | {_cell(problem.gold_answer or '')} | {right} | {length:.0f} |"
        )
    return "\n".join([*lines, ""])


def _written(interval: Interval) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if np.isnan(value) else value for key, value in asdict(interval).items()}


def _powers_of_two(n: int) -> list[int]:
    powers = [2**power for power in range(n.bit_length()) if 2**power <= n]
    return powers if not powers or powers[-1] == n else [*powers, n]


def _by_length(lengths: np.ndarray, correct: np.ndarray, truncated: np.ndarray) -> list[dict[str, Any]]:
    """Problems in three parts by the mean length of their answers, shortest first."""
    rows = []
    for part in np.array_split(np.argsort(lengths, kind="stable"), _PARTS):
        if len(part):
            rows.append(
                {
                    "length": f"{lengths[part].min():.0f} to {lengths[part].max():.0f}",
                    "problems": len(part),
                    "accuracy": float(correct[part].mean()),
                    "truncated": float(truncated[part].mean()),
                }
            )
    return rows


def _by_difficulty(correct: np.ndarray) -> list[dict[str, Any]]:
    """Problems by the share of their answers that are right."""
    rows, below = [], -1.0
    for largest, name in _SHARES:
        inside = (correct > below) & (correct <= largest)
        rows.append({"right": name, "problems": int(inside.sum())})
        below = largest
    return rows


def _figure_row(name: str, figure: Mapping[str, Any]) -> str:
    scale, unit = (1, "") if name in ("reward", "length") else (100, " %")
    mean, low, high = (None if figure[key] is None else figure[key] * scale for key in ("mean", "low", "high"))
    interval = "too few problems" if low is None else f"{low:.1f} … {high:.1f}{unit}"
    return f"| {name} | {mean:.1f}{unit} | {interval} |"


def _number(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """One line without what would end a cell of the table."""
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST_CELL else line[: _LONGEST_CELL - 1] + "…"
    return line.replace("|", "\\|").replace("<", "&lt;")
