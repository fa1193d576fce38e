"""Sampling of a policy for the laboratory: responses, states on their way, and pairs of continuations from each.

    problems ─▶ responses ─▶ states, spread over each response ─▶ rounds of continuations: a pair from every state
                  │                                                  │
                  └─ at most a quarter of the budget                 └─ until all are there, or the budget is spent

The budget ends a round only between two parts of it, and states stand in it in random order: a state has a continuation or has
none whatever the continuation says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.core.waiting import Stage, stage
from tppo_rl.lab.samples import Continuation, Place, Response, Samples
from tppo_rl.rollout.continuations import ContinuationSampler, several_turns
from tppo_rl.rollout.dialogs import Step, take_step

Split = Literal["train", "heldout"]
_CHUNK_OF_SLOTS = 16
"""Episodes of one request to the sampler, in slots: all slots but those of the last episodes are always full."""
_SHARE_OF_RESPONSES = 0.25


@dataclass(frozen=True)
class Plan:
    """How much is sampled."""

    tokens: int
    """Budget, of responses and continuations together."""
    responses: int
    prefixes: int
    """Most states of a response."""
    continuations: int
    """From each state, an even number."""
    split: Split
    seed: int

    def __post_init__(self) -> None:
        if self.continuations % 2:
            raise OptionError(f"--continuations={self.continuations}: must be even, so that there are two halves")


def check_one_turn(options: Options, split: Split) -> None:
    """Takes one step of the environment, before an engine starts.

    Raises:
        OptionError: it goes on after the first turn.
    """
    env = make_text_env(options.environment, split)
    try:
        env.reset(seed=0)
        answer = take_step(env, "")
    finally:
        env.close()
    if isinstance(answer, Step) and not answer.ended:
        raise several_turns(str(options.environment.env))


def spread_over(length: int, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Returns positions on the way of a response, and for how many of its tokens each stands.

    Position 0 is the prompt and stands for itself. The others are drawn one from each of `number - 1` equal parts of the
    rest, so that the weighted sum over them is without bias for the sum over all tokens.

    Args:
        length: Tokens of the response, 1 or more.
        number: Most positions, 1 or more.
        rng: Draws them.
    """
    parts = min(number - 1, length - 1)
    if not parts:
        return [(0, length if number == 1 else 1)]
    edges = 1 + np.arange(parts + 1) * (length - 1) // parts
    return [(0, 1)] + [(int(rng.integers(low, high)), int(high - low)) for low, high in pairwise(edges)]


class Draw:
    """Draws samples by one sampler.

    Args:
        sampler: Without open episodes.
        plan: How much.
        num_problems: Of the split; None: without end.
    """

    def __init__(self, sampler: ContinuationSampler, plan: Plan, num_problems: int | None) -> None:
        self._sampler = sampler
        self._plan = plan
        self._num_problems = num_problems
        self._rng = np.random.default_rng(plan.seed)
        self._spent_earlier = 0
        self._chunk = _CHUNK_OF_SLOTS * sampler.num_slots

    def samples(
        self, earlier: Samples | None = None, keep: Callable[[Samples], None] = lambda samples: None
    ) -> Samples:
        """Draws everything.

        Args:
            earlier: What a draw by the same plan had when it was stopped; it is completed.
            keep: Gets all samples so far, whenever a part of a round is there.

        Raises:
            OptionError: the environment has a second turn, nothing could be scored, or the budget is too small for a
                continuation.
        """
        if earlier is None:
            responses = self._responses()
            places = [
                Place(index, position, float(weight))
                for index, response in enumerate(responses)
                for position, weight in spread_over(len(response), self._plan.prefixes, self._rng)
            ]
            earlier = Samples(responses, places, [])
        else:
            self._spent_earlier = earlier.num_tokens
        samples = self._complete(earlier, keep)
        if not samples.continuations:
            raise OptionError(
                f"--tokens={self._plan.tokens}: {len(samples.responses)} responses leave nothing for continuations; give more, or "
                "fewer --responses"
            )
        return samples

    @property
    def _spent(self) -> int:
        return self._spent_earlier + self._sampler.num_tokens_sampled

    def _problem(self, response: int) -> int:
        return response if self._num_problems is None else response % self._num_problems

    def _responses(self) -> list[Response]:
        found: list[Response] = []
        with stage("responses", total=self._plan.responses, unit="sampled", part="evaluation") as progress:
            for start in range(0, self._plan.responses, self._chunk):
                if self._spent >= _SHARE_OF_RESPONSES * self._plan.tokens:
                    break
                numbers = range(start, min(start + self._chunk, self._plan.responses))
                tickets = [Ticket(number, self._problem(number), self._problem(number)) for number in numbers]
                for episode in self._go_on(tickets, {}, progress, start):
                    found.append(_response(episode, self._problem(episode.episode_id)))
        if not found:
            raise OptionError("no response could be scored; look at the environment with `tppo-rl check-env`")
        return found

    def _complete(self, samples: Samples, keep: Callable[[Samples], None]) -> Samples:
        """Adds pairs of continuations, round by round."""
        rounds, size = self._plan.continuations // 2, max(1, self._chunk // 2)
        rows = [one.state for one in samples.continuations if one.half == 0]
        there = np.bincount(rows, minlength=len(samples.places))
        began = self._spent - sum(len(one.tokens) for one in samples.continuations)
        with stage("continuations", total=2 * rounds * len(there), unit="sampled", part="evaluation") as progress:
            for number in range(rounds):
                order = self._rng.permutation(np.flatnonzero(there <= number))
                for chunk in (order[start : start + size] for start in range(0, len(order), size)):
                    pairs = int(there.sum())
                    expected = len(chunk) * (self._spent - began) / pairs if pairs else 0
                    if self._spent + expected > self._plan.tokens:
                        return samples
                    samples.continuations.extend(
                        self._pairs(chunk, samples.responses, samples.places, progress, 2 * pairs)
                    )
                    there[chunk] += 1
                    keep(samples)
        return samples

    def _pairs(
        self,
        chunk: np.ndarray,
        responses: Sequence[Response],
        places: Sequence[Place],
        progress: Stage,
        before: int,
    ) -> list[Continuation]:
        """A continuation of each half from some states."""
        asked = [(int(state), half) for state in chunk for half in (0, 1)]
        tickets, prefixes = [], {}
        for number, (state, _) in enumerate(asked):
            response = responses[places[state].response]
            tickets.append(Ticket(number, response.problem, response.problem))
            prefixes[number] = response.tokens[: places[state].position].tolist()
        episodes = self._go_on(tickets, prefixes, progress, before)
        return [
            _continuation(episode, *asked[episode.episode_id], prefixes[episode.episode_id]) for episode in episodes
        ]

    def _go_on(
        self, tickets: Sequence[Ticket], prefixes: dict[int, list[int]], progress: Stage, before: int
    ) -> list[Fragment]:
        """Whole episodes, but for those that could not be scored or that are not trained."""
        episodes = self._sampler.go_on(tickets, prefixes, lambda answered: progress.advance(before + answered))
        left_out = self._sampler.pop_scores().left_out
        return [episode for episode in episodes if episode.episode_id not in left_out]


def _response(episode: Fragment, problem: int) -> Response:
    return Response(
        episode.episode_id,
        problem,
        episode.context.copy(),
        episode.tokens.copy(),
        float(episode.rewards.sum()),
        episode.correct,
        episode.truncated,
    )


def _continuation(episode: Fragment, state: int, half: int, prefix: Sequence[int]) -> Continuation:
    assert episode.tokens[: len(prefix)].tolist() == list(prefix), "an episode does not begin with its prefix"
    return Continuation(state, half, episode.tokens[len(prefix) :].copy(), float(episode.rewards.sum()))
