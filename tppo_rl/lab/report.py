"""The report of the laboratory: JSON for programs, Markdown and one HTML page with figures for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tppo_rl.lab.figures import draw_figures
from tppo_rl.lab.page import Block, Heading, Image, Table, Text, to_html, to_markdown

JSON_FILE, MARKDOWN_FILE, HTML_FILE = "critic_lab.json", "critic_lab.md", "critic_lab.html"
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
    ("true_values_by_response", "the same, responses weigh the same"),
    ("correlation", "correlation with true values"),
    ("slope", "slope of true values on its own"),
    ("correlation_of_differences", "correlation of differences"),
    ("slope_of_differences", "slope of true differences on its own"),
    ("auroc", "AUROC"),
    ("mean_error", "mean error"),
    ("root_mean_square_error", "root mean square error"),
)
_BY_RESPONSE = {"by_response": "explained_of_returns", "true_values_by_response": "explained_of_true_values"}
_AT_BEST = {"mean_error": "0", "root_mean_square_error": "0"}
"""All others are 1 at best, or what is measured."""
_WAYS = {
    "hold": "hold",
    "bootstrap": "bootstrap",
    "tail_corrected": "tail corrected",
    "returns": "return minus the mean of other continuations",
}
_NOTHING = "-"


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes `critic_lab.json`, `critic_lab.md`, `critic_lab.html` and the figures.

    Args:
        folder: Exists.
        results: What `tppo_rl.lab.laboratory.measure` returns.
    """
    (folder / JSON_FILE).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    blocks = list(blocks_of(results, draw_figures(results, folder)))
    (folder / MARKDOWN_FILE).write_text(to_markdown(blocks), encoding="utf-8")
    (folder / HTML_FILE).write_text(to_html(blocks, folder), encoding="utf-8")


def blocks_of(results: Mapping[str, Any], figures: Sequence[tuple[str, str]] = ()) -> Iterator[Block]:
    """Gives the blocks of the report; numbers stand with one standard error.

    Args:
        results: See `write_report`.
        figures: File names and captions.
    """
    critics = results["critics"]
    yield from _head(results)
    yield Heading("What there is to know")
    yield from _parts(results)
    if critics:
        yield Heading("Critics")
        yield from _critics(results)
    for name, caption in figures:
        yield Image(name, caption)
    if critics:
        yield Heading(DETAILS.removeprefix("\n## "))
        yield _calibration(critics)
        yield Heading("Boundary values")
        yield _boundaries(critics)
    if any(critic.get("gradients") for critic in critics.values()):
        yield Heading("Gradient of unfinished windows")
        yield _gradients(critics)


def _head(results: Mapping[str, Any]) -> Iterator[Block]:
    settings, sampled = results["settings"], results["sampled"]
    accuracy = "" if sampled["accuracy"] is None else f"accuracy {sampled['accuracy']:.2f}, "
    yield Heading(f"Critic laboratory: {settings['model']}", 1)
    yield Text(f"`{settings['environment']}`, {settings['split']} split, temperature {settings['temperature']:g}.")
    yield Text(
        f"{sampled['responses']} responses to {sampled['problems']} problems: {accuracy}mean return "
        f"{sampled['mean_return']:.2f}, mean length {sampled['mean_length']:.0f} tokens (median {sampled['median_length']:.0f}), "
        f"{sampled['truncated']:.0%} truncated. {sampled['known_states']} of {sampled['states']} states have continuations, "
        f"{sampled['continuations_per_state']:.1f} each. {sampled['tokens']:,} tokens were sampled."
    )
    yield Text("± is one standard error, over problems.")


def _parts(results: Mapping[str, Any]) -> Iterator[Block]:
    critics = list(results["critics"])
    columns = [f"{name}: {of}" for name in critics for of in ("returns", "true values")]
    rows = []
    for part in results["parts"]:
        cells = [_number(part["ceiling"]), _number(part["by_true_values"])]
        for name in critics:
            of = part["critics"].get(name, {})
            cells.append(_number(of.get("explained_of_returns")))
            cells.append(_number(of.get("explained_of_true_values")) if _varies(part) else _NOTHING)
        rows.append([f"{_KINDS[part['kind']]}: {part['name']}", str(part["states"]), *cells])
    yield Table(["states", "number", "ceiling", "true values explain", *columns], rows)
    yield Text(
        "Explained shares of the variance of returns, and of the variance of true values where these differ. Parts by share and by "
        "length look ahead: there the ceiling bounds nothing, and critics compare with what the true values explain."
    )


def _critics(results: Mapping[str, Any]) -> Iterator[Block]:
    critics = results["critics"]
    by_name = {part["name"]: part for part in results["parts"] if part["kind"] == "all"}
    best = _AT_BEST | {
        "explained_of_returns": _number(results["ceilings"]["explained_of_returns"]),
        "by_response": _number(by_name["responses"]["by_true_values"]),
        "auroc": _number(results["ceilings"]["auroc"]) + " or more",
    }

    def found(name: str, key: str) -> str:
        if key in critics[name]:
            return _number(critics[name][key])
        part = by_name["responses" if key in _BY_RESPONSE else "tokens"]
        return _number(part["critics"].get(name, {}).get(_BY_RESPONSE.get(key, key)))

    rows = [[words, best.get(key, "1"), *(found(name, key) for name in critics)] for key, words in _OF_CRITICS]
    yield Table(["", "at best", *critics], rows)
    distances = [critic["mean_distance"] for critic in critics.values() if critic["mean_distance"] is not None]
    if distances:
        yield Text(
            f"Differences are those of neighboring states of a response, {distances[0]:.1f} tokens apart on average."
        )


def _calibration(critics: Mapping[str, Any]) -> Block:
    rows = [
        [name, f"{row['share']:.2f}", *(f"{row[key]:.3f}" for key in ("value", "returns", "true_value"))]
        for name, critic in critics.items()
        for row in critic["calibration"]
    ]
    return Table(["critic", "share of tokens", "its value", "mean return", "true value"], rows)


def _boundaries(critics: Mapping[str, Any]) -> Block:
    rows = [
        [name, _WAYS[way], *(_number(of[key], digits=3) for key in ("mean_error", "root_mean_square_error"))]
        for name, critic in critics.items()
        for way, of in critic["boundaries"].items()
    ]
    return Table(["critic", "boundary value", "mean error", "root mean square error"], rows)


def _gradients(critics: Mapping[str, Any]) -> Block:
    rows = [
        [
            name,
            _WAYS[way],
            _number(of["cosine"]),
            _number(of["cosine_of_all"]),
            _number(of["tokens_per_signal"], digits=0),
        ]
        for name, critic in critics.items()
        for way, of in (critic.get("gradients") or {}).items()
    ]
    heads = [
        "critic",
        "advantages",
        "cosine",
        "cosine with that of all tokens",
        "tokens for noise as large as the signal",
    ]
    return Table(heads, rows)


def _varies(part: Mapping[str, Any]) -> bool:
    """Whether the true values of a part's states differ by more than chance."""
    return part["ceiling"] is not None and (part["ceiling"]["low"] or 0.0) > 0


def _number(estimate: Mapping[str, Any] | None, *, digits: int = 2) -> str:
    if estimate is None or estimate["value"] is None:
        return _NOTHING
    error = "" if estimate["error"] is None else f" ± {estimate['error']:,.{digits}f}"
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(estimate['value'], digits) + 0.0:,.{digits}f}{error}"
