"""Costs in files: those that `tppo-rl bench plan --costs` writes, and the records of other benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.costs import AffineEngineCost, Costs, MeasuredLearnerCost, PassCost, forward_and_backward
from tppo_rl.plan.fits import fit_engine, nonnegative_fit
from tppo_rl.plan.windows import PassWork


def write_costs(costs: Costs, path: Path) -> None:
    """Writes measured costs as JSON, in the form that `read_costs` reads."""
    assert isinstance(costs.engine, AffineEngineCost)
    assert isinstance(costs.learner, MeasuredLearnerCost)
    content = {"source": costs.source, "engine": asdict(costs.engine), "learner": asdict(costs.learner)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_costs(path: Path) -> Costs:
    """Reads a file of `write_costs`; missing coefficients are 0.

    Raises:
        OptionError: it is none, or holds unknown keys or negative numbers.
    """
    content = _load(path, "costs")
    if not isinstance(content, Mapping) or not {"engine", "learner"} <= set(content):
        raise OptionError(
            f"costs={str(path)!r}: keys 'engine' and 'learner' are wanted; `tppo-rl bench plan --costs` writes"
        )
    engine = _section(path, "engine", content["engine"], AffineEngineCost)
    parts = content["learner"]
    known = [field.name for field in fields(MeasuredLearnerCost)]
    if not isinstance(parts, Mapping) or set(parts) - set(known):
        raise OptionError(f"costs={str(path)!r}: 'learner' takes {', '.join(known)}")
    passes = {name: _section(path, name, part, PassCost) for name, part in parts.items()}
    return Costs(engine, MeasuredLearnerCost(**passes), str(content.get("source", path.name)))


def engine_of_records(path: Path) -> AffineEngineCost:
    """Returns the curve of what `tppo-rl bench rollout --json` wrote, with at least two numbers of slots.

    Its steps hold the contexts and prompts of their workload, which `base` and `per_sequence` therefore include.

    Raises:
        OptionError: the file is something else, or has too few numbers of slots.
    """
    medians = _records(path, "rollout")
    slots, seconds = [], []
    for name, median in medians.items():
        if name.startswith("rollout_tokens_per_second, "):
            slots.append(int(name.split(", ")[1].split()[0]))
            seconds.append(slots[-1] / median)
    if len(slots) < 2:
        raise OptionError(
            f"rollout_records={str(path)!r}: {len(slots)} numbers of slots; measure two or more with --slots"
        )
    updates = [median for name, median in medians.items() if name.startswith("weight_update_seconds")]
    nothing = np.zeros(len(slots))
    return fit_engine(slots, nothing, nothing, seconds, weight_update=float(np.mean(updates)) if updates else 0.0)  # type: ignore[arg-type]


def learner_of_records(path: Path) -> MeasuredLearnerCost:
    """Returns the passes of what `tppo-rl bench learner --json` wrote, from its whole episodes.

    Its records are of whole updates: a backward pass is taken to cost two forward ones, so an update over whole episodes
    is seven (policy three, values one, critic three).

    Raises:
        OptionError: the file is something else, or holds no whole episodes.
    """
    medians = _records(path, "learner")
    works, seconds = [], []
    for name, speed in medians.items():
        title, _, workload = name.partition(", ")
        if title == "learner_tokens_per_second" and workload.endswith(" tokens"):
            length = int(workload.split()[0])
            positions = medians[f"processed_per_trained_token, {workload}"]
            works.append(PassWork(0.0, positions, positions * length))
            seconds.append(1 / speed / 7)
    if not works:
        raise OptionError(f"learner_records={str(path)!r}: no whole episodes; measure some with --length")
    # One sequence length tells nothing of how the cost grows with it.
    features = np.array([[work.positions, work.pairs] for work in works])
    per_position, per_pair = (
        nonnegative_fit(features, seconds) if len(works) > 1 else [seconds[0] / works[0].positions, 0.0]
    )
    return forward_and_backward(per_position, per_pair)


_Section = TypeVar("_Section", AffineEngineCost, PassCost)


def _section(path: Path, name: str, content: Any, kind: type[_Section]) -> _Section:
    known = [field.name for field in fields(kind)]
    if not isinstance(content, Mapping) or set(content) - set(known):
        raise OptionError(f"costs={str(path)!r}: {name!r} takes {', '.join(known)}, seconds each")
    for key, value in content.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise OptionError(f"costs={str(path)!r}: {name}.{key}={value!r} will not do; give seconds, at least 0")
    return kind(**content)


def _records(path: Path, bench: str) -> dict[str, float]:
    content = _load(path, f"{bench}_records")
    try:
        return {str(record["figure"]): float(record["median"]) for record in content}
    except (TypeError, KeyError, ValueError):
        raise OptionError(
            f"{bench}_records={str(path)!r}: no records; give what `tppo-rl bench {bench} --json FILE` writes"
        ) from None


def _load(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{key}={str(path)!r}: not a readable JSON file ({error})") from None
