"""The report of the laboratory: JSON for programs, Markdown with figures for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tppo_rl.lab.figures import draw_figures

JSON_FILE, MARKDOWN_FILE = "critic_lab.json", "critic_lab.md"
DETAILS = "\n## Calibration"
"""Where the part of the report begins that is too long for a terminal."""
_KINDS = {
    "all": "weighed by",
    "position": "position, tokens",
    "window": "window",
    "share": "share of the response",
    "length": "length of the response",
}
_OF_CRITICS = (
    ("explained_of_returns", "explained variance of returns"),
    ("by_response", "the same, responses weigh the same"),
    ("explained_of_true_values", "explained variance of true values"),
    ("correlation", "correlation with true values"),
    ("slope", "slope of true values on its own"),
    ("correlation_of_differences", "correlation of differences"),
    ("slope_of_differences", "slope of true differences on its own"),
    ("auroc", "AUROC"),
    ("mean_error", "mean error"),
    ("root_mean_square_error", "root mean square error"),
)
_WAYS = {
    "hold": "hold",
    "bootstrap": "bootstrap",
    "tail_corrected": "tail corrected",
    "returns": "return minus the mean of other continuations",
}


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes `critic_lab.json`, `critic_lab.md` and the figures.

    Args:
        folder: Exists.
        results: What `tppo_rl.lab.laboratory.measure` returns.
    """
    (folder / JSON_FILE).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    figures = draw_figures(results, folder)
    (folder / MARKDOWN_FILE).write_text(markdown(results, figures), encoding="utf-8")


def markdown(results: Mapping[str, Any], figures: Sequence[tuple[str, str]] = ()) -> str:
    """Returns the report as Markdown; numbers stand with one standard error.

    Args:
        results: See `write_report`.
        figures: File names and captions.
    """
    lines = [*_head(results), "", "## What there is to know", "", *_parts(results)]
    if results["critics"]:
        lines += ["", "## Critics", "", *_critics(results)]
    for name, caption in figures:
        lines += ["", f"![{caption}]({name})", "", caption]
    if results["critics"]:
        lines += [DETAILS, "", *_calibration(results), "", "## Boundary values", "", *_boundaries(results)]
        if any(critic.get("gradients") for critic in results["critics"].values()):
            lines += ["", "## Gradient of unfinished windows", "", *_gradients(results)]
    return "\n".join([*lines, ""])


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    settings, sampled = results["settings"], results["sampled"]
    accuracy = "" if sampled["accuracy"] is None else f"accuracy {sampled['accuracy']:.2f}, "
    yield f"# Critic laboratory: {settings['model']}"
    yield ""
    yield f"`{settings['environment']}`, {settings['split']} split, temperature {settings['temperature']:g}."
    yield ""
    yield (
        f"{sampled['responses']} responses to {sampled['problems']} problems: {accuracy}mean return "
        f"{sampled['mean_return']:.2f}, mean length {sampled['mean_length']:.0f} tokens (median {sampled['median_length']:.0f}), "
        f"{sampled['truncated']:.0%} truncated. {sampled['known_states']} of {sampled['states']} states have continuations, "
        f"{sampled['continuations_per_state']:.1f} each. {sampled['tokens']:,} tokens were sampled."
    )
    yield ""
    yield "± is one standard error, over problems."


def _parts(results: Mapping[str, Any]) -> Iterator[str]:
    critics = list(results["critics"])
    columns = [f"{name}: {of}" for name in critics for of in ("returns", "true values")]
    yield _row("states", "number", "ceiling", "true values explain", *columns)
    yield "|---" * (4 + len(columns)) + "|"
    for part in results["parts"]:
        cells = [_number(part["ceiling"]), _number(part["by_true_values"])]
        for name in critics:
            of = part["critics"].get(name, {})
            cells.append(_number(of.get("explained_of_returns")))
            cells.append(_number(of.get("explained_of_true_values")) if _varies(part) else "-")
        yield _row(f"{_KINDS[part['kind']]}: {part['name']}", str(part["states"]), *cells)
    yield ""
    yield (
        "Explained shares of the variance of returns, and of the variance of true values where these differ. Parts by share and by length look ahead: there the ceiling bounds nothing, and critics "
        "compare with what the true values explain."
    )


def _critics(results: Mapping[str, Any]) -> Iterator[str]:
    critics = results["critics"]
    by_name = {part["name"]: part for part in results["parts"] if part["kind"] == "all"}
    bounds = {
        "explained_of_returns": _number(results["ceilings"]["explained_of_returns"]),
        "by_response": _number(by_name["responses"]["by_true_values"]),
        "auroc": _number(results["ceilings"]["auroc"]) + " or more",
        "explained_of_true_values": "1",
        "correlation": "1",
        "slope": "1",
        "correlation_of_differences": "1",
        "slope_of_differences": "1",
        "mean_error": "0",
        "root_mean_square_error": "0",
    }
    yield _row("", "at best", *critics)
    yield "|---" * (2 + len(critics)) + "|"
    for key, words in _OF_CRITICS:
        cells = []
        for name, critic in critics.items():
            of_tokens, of_responses = (by_name[part]["critics"].get(name, {}) for part in ("tokens", "responses"))
            found = of_responses.get("explained_of_returns") if key == "by_response" else critic.get(key)
            cells.append(_number(found or of_tokens.get(key)))
        yield _row(words, bounds[key], *cells)
    distances = [critic["mean_distance"] for critic in critics.values() if critic["mean_distance"] is not None]
    if distances:
        yield ""
        yield f"Differences are those of neighboring states of a response, {distances[0]:.1f} tokens apart on average."


def _calibration(results: Mapping[str, Any]) -> Iterator[str]:
    yield _row("critic", "share of tokens", "its value", "mean return", "true value")
    yield "|---|---|---|---|---|"
    for name, critic in results["critics"].items():
        for row in critic["calibration"]:
            yield _row(name, f"{row['share']:.2f}", *(f"{row[key]:.3f}" for key in ("value", "returns", "true_value")))


def _boundaries(results: Mapping[str, Any]) -> Iterator[str]:
    yield _row("critic", "boundary value", "mean error", "root mean square error")
    yield "|---|---|---|---|"
    for name, critic in results["critics"].items():
        for way, figures in critic["boundaries"].items():
            yield _row(
                name, _WAYS[way], _number(figures["mean_error"]), _number(figures["root_mean_square_error"], digits=3)
            )


def _gradients(results: Mapping[str, Any]) -> Iterator[str]:
    yield _row(
        "critic", "advantages", "cosine", "cosine with that of all tokens", "tokens for noise as large as the signal"
    )
    yield "|---|---|---|---|---|"
    for name, critic in results["critics"].items():
        for way, figures in (critic.get("gradients") or {}).items():
            yield _row(
                name,
                _WAYS[way],
                _number(figures["cosine"]),
                _number(figures["cosine_of_all"]),
                _number(figures["tokens_per_signal"], digits=0),
            )


def _varies(part: Mapping[str, Any]) -> bool:
    """Whether the true values of a part's states differ by more than chance."""
    return part["ceiling"] is not None and (part["ceiling"]["low"] or 0.0) > 0


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _number(estimate: Mapping[str, Any] | None, *, digits: int = 2) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    error = "" if estimate["error"] is None else f" ± {estimate['error']:,.{digits}f}"
    return f"{estimate['value']:,.{digits}f}{error}"
