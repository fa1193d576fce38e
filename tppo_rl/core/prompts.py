"""The prompt stream: a ticket is the right to start one episode, and its seed follows from the prompt's index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ticket:
    """The right to start one episode, given out by the ledger."""

    episode_id: int
    prompt_index: int
    seed: int
    """Seed of the environment's reset; a pure function of the run's seed, the prompt index and the number of problems."""


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
        return _hash(run_seed, prompt_index)
    return _hash(run_seed) * num_problems + prompt_index


def _hash(*numbers: int) -> int:
    """A number below 2^31 that follows from the numbers given."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0] >> 1)


def heldout_tickets(count: int) -> Iterable[Ticket]:
    """Tickets of the fixed evaluation prompts: the same for every run, whatever its seed."""
    return [Ticket(index, index, index) for index in range(count)]
