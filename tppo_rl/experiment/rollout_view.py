"""The fragments that a run has kept, in the terminal: `tppo-rl rollouts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import NO_VERSION, Fragment, fragments_from_table
from tppo_rl.core.paths import ROLLOUTS

_PREFIX = "iteration_"
_LONGEST_CELL = 60
_SHADES = ((0.9, "green"), (0.5, "default"), (0.1, "yellow"), (0.0, "red"))
"""Colors of sampled tokens by their least probability."""


@dataclass(frozen=True)
class Kept:
    """A fragment of a run's files."""

    iteration: int
    fragment: Fragment

    @property
    def reward(self) -> float:
        """Of the episode so far."""
        return float(self.fragment.context_rewards.sum() + self.fragment.rewards.sum())

    @property
    def length(self) -> int:
        """Sampled tokens of the episode so far."""
        return int(self.fragment.context_sampled.sum()) + len(self.fragment)

    @property
    def staleness(self) -> float:
        """Mean number of updates between the sampling of the window's tokens and the iteration that trained them."""
        versions = self.fragment.versions[self.fragment.versions != NO_VERSION]
        return float(self.iteration - 1 - versions.mean()) if len(versions) else 0.0


SORTS: dict[str, Callable[[Kept], float]] = {
    "iteration": lambda kept: kept.iteration,
    "reward": lambda kept: kept.reward,
    "length": lambda kept: kept.length,
    "staleness": lambda kept: kept.staleness,
}


def read_rollouts(run: Path, first: int, last: int | None) -> Iterator[Kept]:
    """Gives the fragments of a run's iterations from `first` to `last`, or to the end.

    Raises:
        OptionError: the run has kept none.
    """
    files = sorted((run / ROLLOUTS).glob(f"{_PREFIX}*.parquet"))
    if not files:
        raise OptionError(f"{run}: has no {ROLLOUTS}; give the folder of a run with rollout_log_fragments above 0")
    for file in files:
        iteration = int(file.stem.removeprefix(_PREFIX))
        if first <= iteration and (last is None or iteration <= last):
            for fragment in fragments_from_table(pq.read_table(file)):
                yield Kept(iteration, fragment)


def tokenizer_of(run: Path, model: str | None) -> Any:
    """Returns the tokenizer of a run's model.

    Raises:
        OptionError: the run has no checkpoint that names its model, and none was given.
    """
    from transformers import AutoTokenizer

    from tppo_rl.base_models import resolve_model
    from tppo_rl.experiment.checkpoints import find_newest_checkpoint
    from tppo_rl.experiment.export import options_of

    if model is None:
        checkpoint = find_newest_checkpoint(run)
        if checkpoint is None:
            raise OptionError(f"--model: {run} holds no checkpoint that names its model; give its folder or hub id")
        model = str(options_of(checkpoint).models.policy_model)
    return AutoTokenizer.from_pretrained(resolve_model(model))


def chosen(
    rollouts: Iterator[Kept],
    text: Callable[[Sequence[int]], str],
    *,
    finished: bool | None = None,
    correct: bool | None = None,
    search: str | None = None,
    sort: str = "iteration",
    descending: bool = True,
) -> list[Kept]:
    """Returns fragments that meet all conditions, sorted.

    Args:
        rollouts: From `read_rollouts`.
        text: Decodes tokens.
        finished: Whether the episode has ended; None: both.
        correct: Whether the answer is right; None: both, and unknown.
        search: Words that prompt or response contain, in any case.
        sort: A key of `SORTS`.
        descending: Largest first.
    """
    words = None if search is None else search.casefold()
    found = [
        kept
        for kept in rollouts
        if (finished is None or kept.fragment.finished == finished)
        and (correct is None or kept.fragment.correct is correct)
        and (words is None or words in text([*kept.fragment.context, *kept.fragment.tokens]).casefold())
    ]
    return sorted(found, key=SORTS[sort], reverse=descending)


def table_of(rollouts: Sequence[Kept], text: Callable[[Sequence[int]], str]) -> Table:
    """One row for each fragment."""
    table = Table("iteration", "episode", "window", "prompt", "window's text", "length", "reward", "staleness", "end")
    prompts = without_what_all_share(
        [text(kept.fragment.context[: kept.fragment.prompt_length].tolist()) for kept in rollouts]
    )
    for kept, prompt in zip(rollouts, prompts, strict=True):
        fragment = kept.fragment
        table.add_row(
            str(kept.iteration),
            str(fragment.episode_id),
            str(fragment.window_index),
            Text(_cell(prompt)),
            Text(_cell(text(fragment.tokens.tolist()))),
            str(kept.length),
            f"{kept.reward:.2f}",
            f"{kept.staleness:.1f}",
            _end(fragment),
        )
    return table


def without_what_all_share(prompts: Sequence[str]) -> list[str]:
    """Leaves out the words at the beginning and the end that different prompts share: system message and template."""
    words = [prompt.split() for prompt in prompts]
    if len({*map(tuple, words)}) < 2:
        return list(prompts)
    start = _shared(words)
    rest = [of_prompt[start:] for of_prompt in words]
    end = _shared([of_prompt[::-1] for of_prompt in rest])
    return [" ".join(of_prompt[: len(of_prompt) - end]) for of_prompt in rest]


def _shared(rows: Sequence[Sequence[str]]) -> int:
    """Words that all rows begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def whole(kept: Kept, tokenizer: Any) -> Text:
    """A fragment with all that came before it: prompt, earlier windows, and its window's tokens by their probability."""
    fragment = kept.fragment
    head = (
        f"iteration {kept.iteration}, episode {fragment.episode_id}, window {fragment.window_index}: {_end(fragment)}\n"
    )
    found = Text(head, style="bold")
    prompt, earlier = np.split(fragment.context, [fragment.prompt_length])
    found.append(tokenizer.decode(prompt.tolist()), style="dim")
    found.append(tokenizer.decode(earlier.tolist()), style="cyan")
    for token, sampled, log_prob in zip(fragment.tokens, fragment.sampled, fragment.behavior_log_probs, strict=True):
        style = _shade(float(np.exp(log_prob))) if sampled else "dim"
        found.append(tokenizer.decode([int(token)]), style=style)
    return found.append("\n")


def _shade(probability: float) -> str:
    return next(color for least, color in _SHADES if probability >= least)


def _end(fragment: Fragment) -> str:
    if not fragment.finished:
        return "open"
    verdict = {None: "ended", True: "right", False: "wrong"}[fragment.correct]
    return f"{verdict}, cut" if fragment.truncated else verdict


def _cell(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_CELL else f"{line[: _LONGEST_CELL // 2]} … {line[-_LONGEST_CELL // 2 :]}"
