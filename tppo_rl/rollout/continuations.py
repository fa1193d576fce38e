"""Episodes that begin with tokens of a response: the prompt and the prefix are the engine's prompt, the whole response is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.dialogs import Step
from tppo_rl.rollout.responses import Failure
from tppo_rl.rollout.sampler import Prompt, Sampler, Turn, evaluate_prompts
from tppo_rl.rollout.window_buffer import OpenEpisode


class ContinuationSampler(Sampler):
    """Goes on with responses from given prefixes, in environments of one turn.

    Its `limits` have no window. `num_tokens_sampled` counts the tokens after the prefixes.

    Args:
        *arguments: Of `Sampler`.
        environment: Name of the environment, for messages.
        **keywords: Of `Sampler`.
    """

    def __init__(self, *arguments: Any, environment: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        assert self._limits.window_length is None, "prefixes would be cut into windows"
        self._environment = environment
        self._prefixes: Mapping[int, Sequence[int]] = {}

    def go_on(
        self,
        tickets: Sequence[Ticket],
        prefixes: Mapping[int, Sequence[int]],
        answered: Callable[[int], None] | None = None,
    ) -> list[Fragment]:
        """Returns one whole episode for each ticket, in their order, prefix included.

        Args:
            tickets: Episodes to generate; ids differ.
            prefixes: First tokens of the responses by episode id, fewer than the cap; none where an id is missing.
            answered: Called with the number of episodes that are over, whenever one is.

        Raises:
            OptionError: the environment has a second turn.
        """
        self._prefixes = prefixes
        return evaluate_prompts(self, tickets, answered)

    def _episode(self, prompt: Prompt) -> OpenEpisode:
        episode = super()._episode(prompt)
        for token in self._prefixes.get(prompt.ticket.episode_id, ()):
            episode.add_sampled(int(token), 0.0, self._engine.version)
        return episode

    def _take_answer(self, turn: Turn, step: Step | Failure) -> None:
        if isinstance(step, Step) and turn.ended and not step.ended:
            raise several_turns(self._environment)
        super()._take_answer(turn, step)


def several_turns(environment: str) -> OptionError:
    """The error for an environment of more than one turn."""
    return OptionError(
        f"env={environment!r}: answers the model and lets it go on; continuations are sampled within one turn, so give an "
        "environment that ends with the first answer, such as tppo_rl/Dataset-v0"
    )
