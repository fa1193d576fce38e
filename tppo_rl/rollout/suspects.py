"""Prompts with which env-runners die again and again. Plain Python, tested without Ray.

A prompt can kill what samples it: its environment, or the engine's process. Its episode goes on in the next env-runner from the last
token that was told, and kills that one too. So prompts are suspected that were twice with an env-runner when it died and have not
ended in between. They wait, and one env-runner tries half of them with nothing else. If it dies, the killer is in this half, and the
others are cleared; if they end, they are. So n suspects cost at most log2(n) + 2 further deaths, and more where that env-runner is gone and
another one begins anew, or where one dies of something else meanwhile.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from tppo_rl.core.errors import RunError

logger = logging.getLogger(__name__)

_DEATHS = 2
"""Env-runners that died with a prompt before it is suspected."""
_DEATHS_ALONE = 2
"""Env-runners that died with a suspect alone before it is set aside: one may have died of something else."""
_LOSSES, _LOSSES_AT_START = 20, 10
"""Losses of one env-runner without a token in between that end a run, also before its first token: it is not a prompt that kills it."""


class EnvRunnerKeepsDying(RunError):
    """An env-runner dies as often as it is started."""


class Suspects:
    """What is known about deaths of env-runners, by env-runner and by prompt."""

    def __init__(self) -> None:
        self._losses = Counter[int]()
        self._have_sampled: set[int] = set()
        self._deaths = Counter[int]()
        self._tries: int | None = None
        self.trial: set[int] = set()
        """Prompts that are tried now and have not ended."""

    def lost(self, env_runner: int, prompts: Collection[int]) -> int | None:
        """Takes the loss of an env-runner.

        Args:
            env_runner: Its index.
            prompts: Indices of the prompts that were with it.

        Returns:
            The prompt that is to be set aside, if there is one.

        Raises:
            EnvRunnerKeepsDying: it has been lost too often without a token.
        """
        self._losses[env_runner] += 1
        losses, most = self._losses[env_runner], _LOSSES if env_runner in self._have_sampled else _LOSSES_AT_START
        if losses >= most:
            raise EnvRunnerKeepsDying(
                f"env-runner {env_runner} was lost {losses} times without a token in between: its engine or the environment ends the "
                "process, whatever the prompt; the actors' logs have the reason"
            )
        if losses > 1:
            logger.warning(
                "env-runner %d was lost %d times without a token in between, of %d", env_runner, losses, most
            )
        if not (self._tries == env_runner and prompts and self.trial.issuperset(prompts)):
            self._deaths.update(set(prompts))
            return None
        self.trial = set()
        if len(prompts) > 1:
            self._deaths = Counter(dict.fromkeys(prompts, _DEATHS))
            return None
        (alone,) = prompts
        self._deaths = Counter({alone: self._deaths[alone] + 1})
        if self._deaths[alone] < _DEATHS + _DEATHS_ALONE:
            return None
        self._deaths.clear()
        return alone

    def sampled(self, env_runner: int) -> None:
        """Is told that an env-runner has sampled tokens."""
        del self._losses[env_runner]
        self._have_sampled.add(env_runner)

    def ended(self, prompts: Iterable[int]) -> None:
        """Is told that a response to each of these prompts has ended, or that it cannot begin."""
        if self._deaths:
            for prompt in prompts:
                self._deaths.pop(prompt, None)
                self.trial.discard(prompt)

    def forget(self) -> None:
        """Clears all prompts."""
        self._deaths.clear()
        self.trial = set()

    def try_half(self, prompts: Sequence[int]) -> None:
        """Begins to try the first half of these prompts."""
        self.trial = set(prompts[: (len(prompts) + 1) // 2])

    @property
    def exist(self) -> bool:
        """Whether any prompt is suspected."""
        return any(map(self.is_suspect, self._deaths))

    def is_suspect(self, prompt: int) -> bool:
        """Whether a prompt is given out only to be tried."""
        return self._deaths[prompt] >= _DEATHS

    def tries(self, env_runner: int) -> bool:
        """Whether an env-runner is the one that tries suspects: the first that asks."""
        if self._tries is None:
            self._tries = env_runner
        return self._tries == env_runner

    def keep(self, env_runners: Collection[int]) -> None:
        """Is told of the env-runners that there are: another one tries suspects if the one that does is not among them."""
        if self._tries not in env_runners:
            self._tries = None
            self.trial = set()

    def is_unproven(self, env_runner: int, prompts: Iterable[int]) -> bool:
        """Whether an env-runner was lost and has sampled nothing since, or has a prompt with which one has died."""
        return self._losses[env_runner] > 0 or any(prompt in self._deaths for prompt in prompts)
