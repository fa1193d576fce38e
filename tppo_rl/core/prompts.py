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
    """Seed of the environment's reset; a pure function of the run's seed and the prompt index."""


def prompt_seed(run_seed: int, prompt_index: int) -> int:
    """Seed of the environment reset for a prompt index: the same for every layout of env-runners."""
    return int(np.random.SeedSequence([run_seed, prompt_index]).generate_state(1, np.uint32)[0] >> 1)


def heldout_tickets(count: int) -> Iterable[Ticket]:
    """Tickets of the fixed evaluation prompts: the same for every run, whatever its seed."""
    return [Ticket(index, index, index) for index in range(count)]
