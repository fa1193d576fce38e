"""The driver's copies of all open episodes, as their env-runners last told. Plain Python, tested without Ray.

A fragment brings its whole context along, so an answer holds no context of an episode whose last window the driver has seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tppo_rl.core.begun_episodes import BegunEpisode, next_window
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket


class ToldEpisodes:
    """Open episodes by env-runner."""

    def __init__(self) -> None:
        self._of: defaultdict[int, dict[int, BegunEpisode]] = defaultdict(dict)

    def take(
        self, env_runner: int, told: Iterable[BegunEpisode], fragments: Sequence[Fragment], given: Iterable[Ticket]
    ) -> None:
        """Takes one answer of an env-runner.

        Args:
            env_runner: Its index.
            told: All of its open episodes, in the form of `BegunEpisode.told`.
            fragments: Fragments of the same answer.
            given: Tickets that the answered request brought.
        """
        begins = {ticket.episode_id: ticket.begun.window for ticket in given if ticket.begun is not None}
        begins |= {number: episode.window for number, episode in self._of[env_runner].items()}
        begins |= {one.episode_id: next_window(one) for one in fragments if not one.finished}
        self._of[env_runner] = {one.episode_id: _joined(one, begins.get(one.episode_id)) for one in told}

    def of(self, env_runner: int) -> list[BegunEpisode]:
        """Returns the open episodes of an env-runner, in the order of its slots."""
        return list(self._of[env_runner].values())

    def pop(self, env_runner: int) -> list[BegunEpisode]:
        """Returns the open episodes of an env-runner and forgets them."""
        return list(self._of.pop(env_runner, {}).values())

    def all(self) -> list[BegunEpisode]:
        """Returns the open episodes of all env-runners."""
        return [episode for env_runner in sorted(self._of) for episode in self.of(env_runner)]

    def clear(self) -> None:
        """Forgets all episodes."""
        self._of.clear()


def _joined(told: BegunEpisode, begin: Fragment | None) -> BegunEpisode:
    if told.window.window_index == 0:
        return told.owned()
    index = told.window.window_index
    assert begin is not None, f"window {index} of episode {told.episode_id} came without the one before it"
    assert begin.window_index == index, (
        f"window {index} of episode {told.episode_id} follows window {begin.window_index - 1}"
    )
    # The context is ours already, and may be long.
    return told.owned().with_context(begin)
