"""What `tppo-rl plan` said of a run before its start: the row of its file that has the run's mode and window."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.core.whole_files import write_whole

PLANNED = "planned.json"
"""In the run's folder: the plan's figures by the names of `forecast.PACE`."""


def planned_of(file: Path, options: Options) -> dict[str, float]:
    """Returns what a plan says of a run, by the names of `forecast.PACE`.

    Args:
        file: Of `tppo-rl plan --json`.
        options: Of the run.

    Raises:
        OptionError: it is no such file, or has no row with the run's mode and window.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["predictions"]
        found = {(row["mode"], row["window"]): row for row in rows}
    except OSError as error:
        raise OptionError(
            f"--plan={str(file)!r}: {error.strerror}; give what `tppo-rl plan --json FILE` wrote"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise OptionError(f"--plan={str(file)!r}: no plan; give what `tppo-rl plan --json FILE` wrote") from None
    rollout, mode = options.rollout, options.pipeline.mode
    wanted = ("ppo", None) if mode == "sync" and not rollout.has_windows else (mode, rollout.window)
    if wanted not in found:
        windows = ", ".join(str(window) for of, window in found if of == wanted[0])
        raise OptionError(
            f"--plan={str(file)!r}: it has windows of {windows or 'no'} tokens in {mode} mode, and the run has {rollout.window}; "
            f"plan it with --window {rollout.window}"
        )
    return _figures(found[wanted])


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        "seconds_per_update": row["seconds_per_token"] * row["tokens_per_update"],
        "slot_occupancy": row["occupancy"],
        "staleness": row["staleness_mean"],
    }


def keep_planned(folder: Path, planned: Mapping[str, float] | None) -> None:
    """Writes what a plan says of a run into `planned.json` of its folder; without a plan, leaves what is there."""
    if planned is not None:
        write_whole(folder / PLANNED, json.dumps(planned, indent=2) + "\n")


def read_planned(folder: Path) -> dict[str, float]:
    """The `planned.json` of a run's folder; empty where nothing was planned."""
    path = folder / PLANNED
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
