"""What became of a run whose processes were killed, read from its files: windows, prompts, tokens."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Kill:
    """One kill and how the run came back."""

    what: str
    iteration: int
    """Iterations that had ended."""
    recovery_s: float | None = None
    """Until the next iteration ended; None: it was the last thing that happened."""
    orphans_s: float | None = None
    """After a driver, in the midst of a save or not: until its env-runners and engines were gone."""


@dataclass
class Outcome:
    """What became of a run."""

    kills: list[Kill] = field(default_factory=list)
    ended: bool = False
    """Whether the run ended by itself."""
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    windows: int = 0
    twice: int = 0
    """Windows that the history of the final weights holds more than once."""
    broken: int = 0
    """Windows that do not follow upon the one before them, token by token."""
    missing_prompts: int = 0
    """Prompts below the largest one whose response has ended, with no window in the history and not open in the checkpoint."""
    identity: int = 0
    """sampled - trained - queued - in flight - dropped, at the end."""


def judge(outcome: Outcome, run: Path) -> None:
    """Reads what the history of the final weights holds."""
    from tppo_rl.core.begun_episodes import begun_from_table
    from tppo_rl.core.checkpoint_files import LEARNERS, LOOP, checkpoint_state
    from tppo_rl.core.fragments import Fragment
    from tppo_rl.experiment.checkpoints import find_newest_checkpoint
    from tppo_rl.experiment.rollout_view import read_rollouts

    if (run / "summary.json").is_file():
        outcome.summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    windows: defaultdict[int, dict[int, Fragment]] = defaultdict(dict)
    times: Counter[tuple[int, int]] = Counter()
    for kept in read_rollouts(run, 1, None):
        one = kept.fragment
        times[one.episode_id, one.window_index] += 1
        windows[one.episode_id][one.window_index] = one
    outcome.windows, outcome.twice = len(times), sum(count > 1 for count in times.values())
    for of_episode in windows.values():
        for index, window in of_episode.items():
            before = of_episode.get(index - 1)
            if index and (
                before is None or not np.array_equal(window.context, np.concatenate([before.context, before.tokens]))
            ):
                outcome.broken += 1
    checkpoint = find_newest_checkpoint(run)
    if checkpoint is not None:
        ledger = checkpoint_state(checkpoint, without=LEARNERS)[LOOP]["ledger"]
        begun = begun_from_table(ledger["begun"])
        out = {*ledger["returned"], *(number for leased in ledger["leased"].values() for number in leased)}
        outcome.missing_prompts = len(set(range(ledger["next_episode"])) - windows.keys() - out)
        in_flight = sum(episode.open_tokens for episode in begun)
        dropped = sum(ledger["dropped"].values())
        outcome.identity = ledger["sampled"] - ledger["trained"] - ledger["queued"] - in_flight - dropped


def rows_of(outcomes: Sequence[Outcome], undisturbed: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Returns the table of some runs beside undisturbed ones: how much, and of what."""
    kills = [kill for one in outcomes for kill in one.kills]
    ended = sum(one.ended for one in outcomes)
    rows = [
        (f"{ended} of {len(outcomes)}", "runs ended by themselves"),
        (f"{sum(one.seconds for one in outcomes):,.0f}", "seconds"),
    ]
    for what in dict.fromkeys(kill.what for kill in kills):
        of_kind = [kill for kill in kills if kill.what == what]
        seconds = [kill.recovery_s for kill in of_kind if kill.recovery_s is not None]
        rows.append((f"{len(of_kind)}", f"kills of the {what}"))
        rows.append((_spread(seconds), "  seconds to the end of the next iteration: least, median, most"))
        orphans = [kill.orphans_s for kill in of_kind if kill.orphans_s is not None]
        if orphans:
            rows.append((_spread(orphans), "  seconds until its processes were gone"))
    dropped: Counter[str] = Counter()
    for one in outcomes:
        dropped.update(one.summary.get("tokens_dropped_by_reason") or {})
    rows += [
        (f"{sum(one.windows for one in outcomes):,}", "windows in the histories of the final weights"),
        (f"{sum(one.twice for one in outcomes)}", "of these trained more than once"),
        (f"{sum(one.broken for one in outcomes)}", "of these that do not follow upon the one before"),
        (f"{sum(one.missing_prompts for one in outcomes)}", "prompts neither trained, nor open, nor waiting"),
        (f"{sum(abs(one.identity) for one in outcomes)}", "tokens unaccounted for"),
        (json.dumps(dropped), "tokens dropped, by reason"),
        (_mean_and_error(accuracies(outcomes)), "held-out accuracy at the end, and its standard error"),
    ]
    if undisturbed:
        rows.append((_mean_and_error(accuracies(undisturbed)), f"that of {len(undisturbed)} undisturbed runs"))
    return rows


def faults(outcomes: Sequence[Outcome], undisturbed: Sequence[Outcome]) -> list[str]:
    """Returns what is wrong with some runs, one line for each kind.

    An accuracy is wrong that is two standard errors of the difference from that of undisturbed runs, of which it takes two.
    """
    found = {
        "runs did not end by themselves": sum(not one.ended for one in [*outcomes, *undisturbed]),
        "windows were trained more than once": sum(one.twice for one in outcomes),
        "windows do not follow upon the one before": sum(one.broken for one in outcomes),
        "prompts are lost": sum(one.missing_prompts for one in outcomes),
        "tokens are unaccounted for": sum(abs(one.identity) for one in outcomes),
    }
    lines = [f"{count} {what}" for what, count in found.items() if count]
    ours, theirs = accuracies(outcomes), accuracies(undisturbed)
    if min(len(ours), len(theirs)) > 1:
        error = float(np.hypot(_standard_error(ours), _standard_error(theirs)))
        gap = float(np.mean(ours) - np.mean(theirs))
        if abs(gap) > 2 * error:
            lines.append(
                f"the accuracy differs by {gap:+.3f} from that of undisturbed runs (standard error {error:.3f})"
            )
    return lines


def accuracies(outcomes: Sequence[Outcome]) -> list[float]:
    """Returns the held-out accuracies at the end of the runs that measured one."""
    found = (one.summary.get("heldout_accuracy_after") for one in outcomes)
    return [float(accuracy) for accuracy in found if accuracy is not None]


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def _mean_and_error(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {_standard_error(values):.3f}" if len(values) > 1 else mean


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{min(seconds):.1f} … {float(np.median(seconds)):.1f} … {max(seconds):.1f}"
