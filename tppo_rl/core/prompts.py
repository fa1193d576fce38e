"""The prompt stream: a ticket is the right to start one episode, and its seed follows from the prompt's index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tppo_rl.core.begun_episodes import BegunEpisode


@dataclass(frozen=True)
class Ticket:
    """The right to start one episode, or to go on with it, given out by the ledger."""

    episode_id: int
    prompt_index: int
    seed: int
    """Seed of the environment's reset; a pure function of the run's seed, the prompt index and the number of problems."""
    begun: BegunEpisode | None = field(default=None, compare=False)
    """The episode so far, where it goes on from a lost env-runner or a checkpoint."""

    @property
    def open_tokens(self) -> int:
        """Sampled tokens that no fragment holds yet."""
        return 0 if self.begun is None else self.begun.open_tokens

    @property
    def oldest_open_version(self) -> int | None:
        """Oldest policy version among these; None if there are none."""
        return None if self.begun is None else self.begun.oldest_version


def prompt_seed(run_seed: int, prompt_index: int, num_problems: int | None = None) -> int:
    """Seed of the environment reset for a prompt index: the same for every layout of env-runners.

    Args:
        run_seed: Seed of the run.
        prompt_index: Position in the run's prompt stream.
        num_problems: Number of problems of the environment. The stream then goes through them epoch by epoch, beginning with
            an epoch that follows from the run's seed, so that runs see the problems in orders of their own. None: the
            environment draws problems without end, and every prompt has a random one.
    """
    if num_problems is None:
        return seed_of(run_seed, prompt_index)
    return seed_of(run_seed) * num_problems + prompt_index


def seed_of(*numbers: int) -> int:
    """A seed below 2^31 that follows from the numbers given, all of which are at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0] >> 1)


def heldout_tickets(count: int) -> Iterable[Ticket]:
    """Tickets of the fixed evaluation prompts: the same for every run, whatever its seed."""
    return [Ticket(index, index, index) for index in range(count)]
