"""Episodes that are over: they wait for their rewards, then their last windows are closed.

                                   ┌─ scored ───────────────────▶ its rewards
    slot ─▶ add ─▶ settle ─▶ parts ┼─ failed ──▶ dropped, or the reward of a wrong response
                                   └─ cut by the cap ──▶ scored, left out, or wrong without being scored

A window that is not trained is closed like any other, and the reason stands in `Scores.left_out`: the driver counts its tokens
as dropped. So every sampled token stays accounted for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.dialogs import Dialog, Step
from tppo_rl.rollout.responses import REWARD_FAILED, TRUNCATED, Failure, Response, Scores, Verdict
from tppo_rl.rollout.rewards import MASK, WRONG, Rewards
from tppo_rl.rollout.window_buffer import OpenEpisode


@dataclass(frozen=True)
class Ending:
    """An episode that is over and not scored yet."""

    episode: OpenEpisode
    dialog: Dialog
    terminated: bool
    cut: bool
    """Whether the cap ended it."""
    last: Step | None
    """Answer of the environment to the last turn; None where it was not asked, or failed."""
    failure: Failure | None
    """Of the environment."""

    @property
    def response(self) -> Response:
        """The response as rewards see it."""
        dialog = self.dialog
        return Response(
            prompt=dialog.prompt,
            completion="\n".join(dialog.turns),
            completion_ids=self.episode.sampled_tokens(),
            length=self.episode.response_length,
            environment_reward=dialog.reward,
            correct=self.correct,
            truncated=not self.terminated,
            columns=dialog.info,
            turns=tuple(dialog.turns),
            observations=tuple(dialog.observations),
        )

    @property
    def correct(self) -> bool | None:
        """Whether the environment calls the response right; None where it does not say."""
        return None if self.last is None else self.last.correct


class Endings:
    """Scores episodes that are over.

    Args:
        rewards: What scores them.
    """

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards
        self._waiting: list[Ending] = []
        self._scores = Scores()

    @property
    def waiting(self) -> Sequence[Ending]:
        """Episodes that wait for their rewards."""
        return self._waiting

    @property
    def num_tokens(self) -> int:
        """Sampled tokens of the windows that wait."""
        return sum(ending.episode.open_tokens for ending in self._waiting)

    def add(self, ending: Ending) -> None:
        """Adds an episode that is over."""
        self._waiting.append(ending)

    def settle(self, version: int) -> list[Fragment]:
        """Scores all that wait and returns their last windows.

        Args:
            version: Policy version, for reward functions that ask for it.

        Raises:
            OptionError: the options cannot work with the environment; the episodes wait on.
        """
        scored = [
            index for index, ending in enumerate(self._waiting) if ending.failure is None and not self._skips(ending)
        ]
        responses = [self._waiting[index].response for index in scored]
        verdicts = dict(zip(scored, self._rewards.verdicts(responses, self._scores, version=version), strict=True))
        endings, self._waiting = self._waiting, []
        return [self.close(ending, verdicts.get(index)) for index, ending in enumerate(endings)]

    def take(self) -> tuple[list[Fragment], list[Ending]]:
        """Closes the windows of those that nothing scores, and gives out the others: `close` gets their verdicts."""
        endings, self._waiting = self._waiting, []
        unscored = [ending for ending in endings if ending.failure is not None or self._skips(ending)]
        scored = [ending for ending in endings if ending.failure is None and not self._skips(ending)]
        return [self.close(ending, None) for ending in unscored], scored

    @property
    def oldest_version(self) -> int | None:
        """Oldest policy version in the windows that wait; None if there are none."""
        return min((v for e in self._waiting if (v := e.episode.oldest_open_version) is not None), default=None)

    def add_scores(self, scores: Scores) -> None:
        """Adds what was scored elsewhere."""
        self._scores.add(scores)

    def pop_scores(self) -> Scores:
        """Returns what scoring gave since the last call."""
        scores, self._scores = self._scores, Scores()
        return scores

    def clear(self) -> None:
        """Drops the episodes that wait, and what scoring gave."""
        self._waiting.clear()
        self._scores = Scores()

    def _skips(self, ending: Ending) -> bool:
        """Whether the episode counts as wrong without being scored."""
        return ending.cut and self._rewards.truncated == WRONG

    def close(self, ending: Ending, verdict: Verdict | None) -> Fragment:
        """Closes the last window of an episode that was scored; None: nothing scores it."""
        failures: Sequence[Failure] = verdict.failures if verdict is not None else ()
        failures = failures if ending.failure is None else (ending.failure,)
        # A truncated response is wrong if the environment does not say; the policy did not end it.
        correct = None if ending.correct is None and ending.terminated else bool(ending.correct)
        if failures:
            self._scores.failures += failures
            self._scores.failed_responses += 1
        masked = ending.cut and self._rewards.truncated == MASK
        if failures and (masked or self._rewards.on_failure != WRONG):
            self._leave_out(ending, REWARD_FAILED)
            correct = None
        elif failures or self._skips(ending):
            self._reward(ending, self._rewards.of_wrong(ending.dialog.wrong_reward))
            correct = False
        else:
            assert verdict is not None
            if ending.last is not None and ending.last.reward:
                ending.episode.add_reward(self._rewards.of_turn(ending.last.reward))
            self._reward(ending, verdict.reward)
            if masked:
                self._leave_out(ending, TRUNCATED)
        return ending.episode.close_window(
            terminated=ending.terminated, truncated=not ending.terminated, correct=correct
        )

    def _reward(self, ending: Ending, reward: float) -> None:
        """Puts the reward of the whole response, and the penalty for its length, on its last token."""
        if shaped := reward + self._rewards.penalty(ending.episode.response_length):
            ending.episode.add_reward(shaped)

    def _leave_out(self, ending: Ending, reason: str) -> None:
        self._scores.left_out[ending.episode.ticket.episode_id] = reason
