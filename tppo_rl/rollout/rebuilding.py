"""Whether an environment that is made again, for an episode that has begun elsewhere, is the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tppo_rl.core.begun_episodes import BegunEpisode
from tppo_rl.core.prompts import Ticket
from tppo_rl.core.reward_parts import ENVIRONMENT
from tppo_rl.rollout.dialogs import Step
from tppo_rl.rollout.responses import NOT_REBUILT, Failure, Scores


def why_not_rebuilt(
    begun: BegunEpisode, prompt: Sequence[int], step: Callable[[str], Step | Failure] | None
) -> str | None:
    """Says why an episode cannot go on; None if it can.

    Args:
        begun: The episode so far.
        prompt: Token ids of the prompt that the environment gives for the episode's seed now.
        step: Gives the environment the turns again; None: that is done with the next turn.
    """
    if list(prompt) != begun.window.context[: begun.window.prompt_length].tolist():
        return "reset gave another prompt for the same seed"
    if step is None:
        return None
    for said, answer in zip(begun.turns, begun.observations, strict=True):
        again = step(said)
        if isinstance(again, Failure):
            return f"a turn that it had answered failed: {again.message}"
        if again.text != answer:
            return "step gave another answer to the same turn"
    return None


def scores_of_given_up(ticket: Ticket, reason: str) -> Scores:
    """Returns what scoring says of an episode that cannot go on: its open tokens are dropped.

    Args:
        ticket: Of the episode.
        reason: From `why_not_rebuilt`.
    """
    failure = Failure(ENVIRONMENT, NOT_REBUILT, f"an episode could not go on after a restart: {reason}")
    scores = Scores(failures=[failure], failed_responses=1)
    if ticket.open_tokens:
        scores.left_out[ticket.episode_id] = NOT_REBUILT
    else:
        scores.failed_prompts[ticket.episode_id] = ticket.prompt_index
    return scores
