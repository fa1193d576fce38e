"""Episodes of a run, put together from its kept fragments and from the windows of episodes that it recorded whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tppo_rl.core.fragments import NO_VERSION, Fragment
from tppo_rl.core.paths import EPISODES, ROLLOUTS
from tppo_rl.core.recorded_windows import RecordedWindow, windows_from_table
from tppo_rl.experiment.rollout_view import Kept, read_rollouts

_PREFIX = "iteration_"
_HELDOUT = "heldout_"


@dataclass(frozen=True, eq=False)
class Window:
    """A window of which everything is known, and the iteration that kept it."""

    iteration: int
    recorded: RecordedWindow
    heldout: bool = False
    """Whether it answers a held-out prompt; the iteration is then that before the evaluation, 0 before all updates."""

    @property
    def fragment(self) -> Fragment:
        """Tokens, log-probs, versions and ends."""
        return self.recorded.fragment

    @property
    def stop(self) -> int:
        """Tokens of the response up to the window's end."""
        return self.recorded.start + len(self.fragment.tokens)


@dataclass(eq=False)
class Episode:
    """A prompt and a response with the windows of it that were kept."""

    prompt: np.ndarray
    """int32: tokens of the prompt."""
    tokens: np.ndarray
    """int32 [n]: tokens of the response, as far as they are known."""
    sampled: np.ndarray
    """uint8 [n]: 1 where a policy sampled the token."""
    rewards: np.ndarray
    """float32 [n]"""
    windows: list[Window] = field(default_factory=list)
    """By their start."""

    @property
    def last(self) -> Fragment:
        """The last window that was kept."""
        return self.windows[-1].fragment

    @property
    def iteration(self) -> int:
        """That of the last window."""
        return self.windows[-1].iteration

    @property
    def reward(self) -> float:
        """Of the episode so far."""
        return float(self.rewards.sum())

    @property
    def length(self) -> int:
        """Sampled tokens of the episode so far."""
        return int(np.count_nonzero(self.sampled))

    @property
    def has_estimates(self) -> bool:
        """Whether values or advantages were recorded."""
        return any(window.recorded.advantages is not None for window in self.windows)

    @property
    def is_whole(self) -> bool:
        """Whether it was recorded for its own sake, and not as a part of a sample."""
        return self.has_estimates or self.heldout

    @property
    def heldout(self) -> bool:
        """Whether it answers a held-out prompt."""
        return self.windows[-1].heldout

    @property
    def staleness(self) -> float | None:
        """Mean over the kept windows' tokens; None where no version is known, or nothing was trained."""
        if self.heldout:
            return None
        ages = [
            window.iteration - 1 - window.fragment.versions[window.fragment.versions != NO_VERSION]
            for window in self.windows
        ]
        known = np.concatenate(ages)
        return float(known.mean()) if len(known) else None


def read_windows(run: Path, first: int, last: int | None) -> Iterator[Window]:
    """Gives the windows of the episodes that a run recorded whole, of iterations from `first` to `last`; maybe none.

    An evaluation belongs to the iteration before it, and that before all updates to the first one.
    """
    for prefix in (_PREFIX, _HELDOUT):
        for file in sorted((run / EPISODES).glob(f"{prefix}*.parquet")):
            iteration = int(file.stem.removeprefix(prefix))
            if first <= max(1, iteration) and (last is None or iteration <= last):
                windows = windows_from_table(pq.read_table(file))
                yield from (Window(iteration, window, heldout=prefix == _HELDOUT) for window in windows)


def read_episodes(run: Path, first: int, last: int | None) -> list[Episode]:
    """Returns all episodes of which a run has kept something in its iterations from `first` to `last`.

    Raises:
        OptionError: the run has kept nothing.
    """
    # An episode that ends in these iterations may have begun before them.
    windows = list(read_windows(run, 1, last))
    has_sample = any((run / ROLLOUTS).glob("*.parquet")) or not windows
    episodes = episodes_of(read_rollouts(run, first, last) if has_sample else (), windows)
    return [episode for episode in episodes if max(1, episode.iteration) >= first]


def matching(
    episodes: Iterable[Episode],
    text: Callable[[Sequence[int]], str],
    *,
    finished: bool | None = None,
    correct: bool | None = None,
    search: str | None = None,
) -> list[Episode]:
    """Returns the episodes that meet all conditions.

    Args:
        episodes: From `read_episodes`.
        text: Decodes tokens.
        finished: Whether the episode has ended; None: both.
        correct: Whether the answer is right; None: both, and unknown.
        search: Words that prompt or response contain, in any case.
    """
    words = None if search is None else search.casefold()
    return [
        episode
        for episode in episodes
        if (finished is None or episode.last.finished == finished)
        and (correct is None or episode.last.correct is correct)
        and (words is None or words in text([*episode.prompt, *episode.tokens]).casefold())
    ]


def episodes_of(kept: Iterable[Kept], windows: Iterable[Window] = ()) -> list[Episode]:
    """Returns episodes by iteration and number.

    Windows of one episode come together if one begins as the other does: after a crash a run may give a number twice.

    Args:
        kept: Sampled fragments; each has all of its context.
        windows: Windows of recorded episodes, which come with values.
    """
    recorded: defaultdict[int, list[Window]] = defaultdict(list)
    heldout: list[Episode] = []
    for window in windows:
        # Held-out episodes are single windows, and have their own numbers.
        if window.heldout:
            heldout += _runs([window])
        else:
            recorded[window.fragment.episode_id].append(window)
    found: defaultdict[int, list[Episode]] = defaultdict(list)
    for number, of_episode in recorded.items():
        found[number] += _runs(of_episode)
    sampled = [_of_fragment(one) for one in kept]
    # The longest first: the others are its beginnings.
    for episode in sorted(sampled, key=lambda one: len(one.tokens), reverse=True):
        others = found[episode.last.episode_id]
        home = next((other for other in others if _add(other, episode)), None)
        if home is None:
            others.append(episode)
    episodes = [*heldout, *(episode for same in found.values() for episode in same)]
    return sorted(episodes, key=lambda one: (one.iteration, one.last.prompt_index, one.last.episode_id))


def thinned(episodes: Sequence[Episode], most: int, most_tokens: int | None = None) -> list[Episode]:
    """Returns at most so many episodes and tokens, all answers to a prompt or none where that will do.

    Prompts with a response that was recorded whole come first. Of a prompt whose answers are too many, some are taken, evenly
    over the run. The choice is always the same.
    """
    by_prompt: defaultdict[bytes, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_prompt[episode.prompt.tobytes()].append(episode)
    taken: list[Episode] = []
    left, tokens_left = most, float("inf") if most_tokens is None else float(most_tokens)
    prompts = list(by_prompt.values())
    drawn = (prompts[place] for place in np.random.default_rng(0).permutation(len(prompts)))
    for answers in sorted(drawn, key=lambda of_prompt: not any(one.is_whole for one in of_prompt)):
        mean = max(1.0, float(np.mean([len(one.tokens) + 1 for one in answers])))
        count = int(min(len(answers), left, tokens_left // mean))
        if count > 0:
            chosen = [answers[at] for at in np.linspace(0, len(answers) - 1, count).round().astype(int)]
            taken += chosen
            left -= count
            tokens_left -= sum(len(one.tokens) for one in chosen)
    places = {id(episode): place for place, episode in enumerate(episodes)}
    return sorted(taken, key=lambda one: places[id(one)])


def _of_fragment(kept: Kept) -> Episode:
    fragment = kept.fragment
    prompt, context = np.split(fragment.context, [fragment.prompt_length])
    after = slice(fragment.prompt_length, None)
    return Episode(
        prompt,
        np.concatenate([context, fragment.tokens]),
        np.concatenate([fragment.context_sampled[after], fragment.sampled]),
        np.concatenate([fragment.context_rewards[after], fragment.rewards]),
        [Window(kept.iteration, RecordedWindow(fragment, len(context)))],
    )


def _runs(windows: list[Window]) -> list[Episode]:
    """Episodes out of windows that follow upon one another; one whose beginning is missing has no prompt and is left out."""
    episodes: list[Episode] = []
    for window in sorted(windows, key=lambda one: (one.iteration, one.recorded.start)):
        fragment = window.fragment
        if window.recorded.start == 0:
            arrays = (fragment.tokens, fragment.sampled, fragment.rewards)
            episodes.append(Episode(fragment.context[: fragment.prompt_length], *arrays, [window]))
            continue
        home = next((one for one in reversed(episodes) if len(one.tokens) == window.recorded.start), None)
        if home is not None:
            home.tokens = np.concatenate([home.tokens, fragment.tokens])
            home.sampled = np.concatenate([home.sampled, fragment.sampled])
            home.rewards = np.concatenate([home.rewards, fragment.rewards])
            home.windows.append(window)
    return episodes


def _add(home: Episode, more: Episode) -> bool:
    """Adds an episode's only window to a longer one, or continues it, if they are the same; says whether they are."""
    shared = min(len(home.tokens), len(more.tokens))
    if not np.array_equal(home.prompt, more.prompt) or not np.array_equal(home.tokens[:shared], more.tokens[:shared]):
        return False
    (window,) = more.windows
    if len(more.tokens) > len(home.tokens):
        home.tokens, home.sampled, home.rewards = more.tokens, more.sampled, more.rewards
    if all(other.stop <= window.recorded.start or window.stop <= other.recorded.start for other in home.windows):
        home.windows = sorted([*home.windows, window], key=lambda one: one.recorded.start)
    return True
