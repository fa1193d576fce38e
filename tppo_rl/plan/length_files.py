"""Response lengths from a histogram in a file, or from what a run left in its folder.

A run keeps a sample of its fragments. The lengths of those that finished would mislead: an asynchronous run begins with
nothing but new responses, of which the short ones finish first, and at its end long ones are still open. So the estimate
is the product-limit one (Kaplan and Meier 1958, with late entry): of all fragments that sampled the token at response
position t, the share that ended there is the hazard h(t), whatever became of the rest, and

    P(length > t) = (1 - h(1)) (1 - h(2)) … (1 - h(t)).

Only the newer half of a run counts, for responses change in length as a policy learns.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tppo_rl.core.errors import OptionError
from tppo_rl.core.paths import ROLLOUTS
from tppo_rl.plan.lengths import NAMED, ResponseLengths, named_lengths

if TYPE_CHECKING:
    import pyarrow as pa

_LAYOUT = 'a JSON object {"LENGTH": COUNT, …}, a JSON list of lengths, or CSV lines LENGTH,COUNT'


def read_lengths(text: str, cap: int | None = None) -> ResponseLengths:
    """Returns the lengths of a named distribution, a histogram's file or a run's folder.

    Args:
        text: A distribution (see `named_lengths`), a `.json` or `.csv` file, or a folder with `rollouts/*.parquet`.
        cap: Longest response, tokens; longer ones are taken to end there.

    Raises:
        OptionError: none of these, or a file that does not hold what it should.
    """
    path = Path(text)
    if path.is_dir():
        lengths = lengths_of_run(path)
    elif path.is_file():
        lengths = lengths_of_file(path)
    elif path.suffix in (".json", ".csv") or "/" in text:
        raise OptionError(f"lengths={text!r}: no such file or folder; give a histogram, a run's folder, {NAMED}")
    else:
        return named_lengths(text, cap)
    return lengths if cap is None else lengths.capped(cap)


def lengths_of_file(path: Path) -> ResponseLengths:
    """Returns the histogram of a file: a JSON object of counts by length, a JSON list of lengths, or a CSV of both.

    Raises:
        OptionError: it is none of these.
    """
    try:
        content = path.read_text(encoding="utf-8")
        counts = _counts_of_csv(content) if path.suffix == ".csv" else _counts_of_json(content)
    except (ValueError, TypeError, AttributeError):
        raise OptionError(f"lengths={str(path)!r}: not a histogram; give {_LAYOUT}") from None
    if not counts or min(counts) < 1:
        raise OptionError(f"lengths={str(path)!r}: lengths are whole numbers from 1 on; give {_LAYOUT}")
    histogram = np.zeros(max(counts) + 1)
    for length, count in counts.items():
        histogram[length] += count
    return ResponseLengths(histogram, path.name)


def lengths_of_run(folder: Path) -> ResponseLengths:
    """Returns the lengths of the newer half of a run, as the head of this file says.

    Raises:
        OptionError: the folder keeps no fragments, or none of them finished.
    """
    starts, ends, finished = _fragments_of_run(folder)
    if not finished.any():
        raise OptionError(f"lengths={str(folder)!r}: no response finished in the newer half of this run; let it go on")
    return ResponseLengths(product_limit(starts, ends, finished), folder.name)


def product_limit(starts: np.ndarray, ends: np.ndarray, finished: np.ndarray) -> np.ndarray:
    """Returns the distribution of lengths that fragments of responses speak for, float64 [longest + 1].

    Args:
        starts: int64 [F]: response tokens before each fragment.
        ends: int64 [F]: response tokens up to its last one.
        finished: bool [F]: whether the response ended there.
    """
    longest = int(ends.max())
    entered = np.bincount(starts + 1, minlength=longest + 2)
    left = np.bincount(ends + 1, minlength=longest + 2)
    at_risk = np.cumsum(entered - left)[: longest + 1]
    ended = np.bincount(ends[finished], minlength=longest + 1)
    hazard = np.divide(ended, at_risk, out=np.zeros(longest + 1), where=at_risk > 0)
    hazard[longest] = 1.0  # Nobody was seen to go on; what is left ends here.
    survival = np.cumprod(1.0 - hazard)
    return np.append(0.0, survival[:-1] - survival[1:])


def prompt_length_of_run(folder: Path) -> float:
    """Returns the mean length of the prompts of the newer half of a run, tokens.

    The mean is over fragments, not over responses: long responses often have long prompts, and every window of theirs is
    read with the prompt before it.

    Raises:
        OptionError: the folder keeps no fragments.
    """
    return float(_table_of_run(folder, ["prompt_length"]).column("prompt_length").to_numpy().mean())


def _fragments_of_run(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pyarrow.compute as pc

    table = _table_of_run(folder, ["context", "tokens", "prompt_length", "terminated", "truncated"])
    context, tokens = (pc.list_value_length(table.column(name)).to_numpy() for name in ("context", "tokens"))
    starts = context.astype(np.int64) - table.column("prompt_length").to_numpy()
    finished = pc.or_(table.column("terminated"), table.column("truncated")).to_numpy()
    return starts, starts + tokens, finished


def _table_of_run(folder: Path, columns: list[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((folder / ROLLOUTS).glob("*.parquet"))
    if not files:
        raise OptionError(
            f"lengths={str(folder)!r}: no rollouts/*.parquet in this folder; give the folder of one run that was made "
            "with rollout_log_fragments above 0"
        )
    return pa.concat_tables(pq.read_table(file, columns=columns) for file in files[len(files) // 2 :])


def _counts_of_json(content: str) -> dict[int, float]:
    data = json.loads(content)
    if isinstance(data, dict):
        return {int(length): float(count) for length, count in data.items()}
    values, counts = np.unique(np.array(data, dtype=np.int64).reshape(-1), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _counts_of_csv(content: str) -> dict[int, float]:
    rows = [row for row in csv.reader(content.splitlines()) if row]
    if rows and not rows[0][0].strip().isdigit():
        rows = rows[1:]  # A line of names.
    counts: dict[int, float] = {}
    for length, count in rows:
        counts[int(length)] = counts.get(int(length), 0.0) + float(count)
    return counts
