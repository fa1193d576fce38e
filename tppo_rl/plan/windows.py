"""What an update processes for a response that was cut into fragments: context is what windows cost.

A fragment that ends after t response tokens is read by a forward pass over P + t positions, P those of the prompt.
The last token itself predicts nothing that is trained, so the policy's pass and the critic's training leave it out; the
critic's values before the update do not, they are wanted after the last token too. Per response of L tokens:

    async     ends at l, 2l, … below L, and at L
    sync      ends wherever the step was cut below L, and at L. Responses begin at any step of a window, each as likely,
              so every position is a cut with probability 1 / l (d / l for multiples of d, where all lengths and l are)
    ppo       ends at L

    policy, values    sum over its fragments
    critic training   once, over the whole response

Where contexts are cached, a fragment's pass reads what is new in it alone, beside keys and values that are kept: the
fragments of a response cost together what one pass over the response does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tppo_rl.plan.lengths import ResponseLengths

Mode = Literal["async", "sync", "ppo"]
MODES: dict[Mode, str] = {"async": "T-PPO async", "sync": "T-PPO sync", "ppo": "PPO"}
"""How each is called in tables and figures."""


@dataclass(frozen=True)
class PassWork:
    """Work of one pass over sequences."""

    sequences: float
    positions: float
    """Sum of their lengths."""
    pairs: float
    """Sum of their squared lengths: what attention costs."""

    def times(self, factor: float) -> PassWork:
        """Returns so many times the work."""
        return PassWork(factor * self.sequences, factor * self.positions, factor * self.pairs)


@dataclass(frozen=True)
class LearnerWork:
    """Work of all passes of an update."""

    values: PassWork
    """The critic's forward pass over every fragment and its context."""
    policy: PassWork
    """The policy's forward and backward pass over the same."""
    critic: PassWork
    """The critic's forward and backward pass over responses that ended."""

    def times(self, factor: float) -> LearnerWork:
        """Returns so many times the work."""
        return LearnerWork(self.values.times(factor), self.policy.times(factor), self.critic.times(factor))


def cuts(lengths: ResponseLengths, mode: Mode, window: int | None) -> np.ndarray:
    """Returns the mean number of unfinished fragments of a response that end after t tokens, float64 [longest + 1].

    Args:
        lengths: Of responses.
        mode: Key of `MODES`.
        window: Tokens; None with "ppo" only.
    """
    ends = np.zeros(lengths.longest + 1)
    if mode == "async":
        assert window is not None
        ends[window::window] = 1.0
    elif mode == "sync":
        assert window is not None
        step = math.gcd(lengths.step, window)
        ends[step::step] = step / window
    return ends * lengths.survival


def work_per_token(
    lengths: ResponseLengths, mode: Mode, window: int | None, prompt_length: float, *, cached_contexts: bool = False
) -> LearnerWork:
    """Returns the learner's work for one trained token, in a run that has gone on for long.

    Args:
        lengths: Of responses.
        mode: Key of `MODES`.
        window: Tokens; None with "ppo" only.
        prompt_length: Mean, tokens.
        cached_contexts: Whether learners keep keys and values of open episodes.
    """
    ends = cuts(lengths, mode, window)
    positions = prompt_length + np.arange(lengths.longest + 1)
    fragments = ends + lengths.probabilities
    whole = _work(lengths.probabilities, positions - 1)
    if cached_contexts:
        sequences, unfinished = float(fragments.sum()), float(ends.sum())
        values = _work(lengths.probabilities, positions)
        # The last state of a fragment is read for its value, and once more with the next fragment.
        values = replace(values, sequences=sequences, positions=values.positions + unfinished)
        per_response = LearnerWork(values, replace(whole, sequences=sequences), whole)
    else:
        per_response = LearnerWork(_work(fragments, positions), _work(fragments, positions - 1), whole)
    return per_response.times(1 / lengths.mean)


def work_of_fragments(positions: np.ndarray, finished: np.ndarray) -> LearnerWork:
    """Returns the work that an update makes of given fragments.

    Args:
        positions: int64 [F]: tokens of each with its context.
        finished: bool [F]: whether the response ended there.
    """
    one = np.ones(len(positions))
    return LearnerWork(
        values=_work(one, positions),
        policy=_work(one, positions - 1),
        critic=_work(finished.astype(np.float64), positions - 1),
    )


def _work(count: np.ndarray, positions: np.ndarray) -> PassWork:
    return PassWork(float(count.sum()), float(count @ positions), float(count @ positions**2))
