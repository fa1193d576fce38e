"""The ledger, which accounts for every sampled token and every prompt.

Each party counts the tokens that it holds, so the identity

    sampled = trained + queued + in flight + dropped

is a check and not a definition. Env-runners count `sampled` and `in flight`, the train queue `queued`, and learners
`trained`. Each place that drops tokens counts them as `dropped`, by reason.

Prompts are given out as tickets. A ticket is either unused, leased to an env-runner, or its episode has ended. The
tickets of a lost env-runner go out again first, so no prompt is ever skipped. Episodes that had begun go on from the last token
that the env-runner has told of: the ledger holds them, with their open tokens in flight, until another env-runner has them. The
episodes of a prompt that kills env-runners are set aside (`suspects`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.core.begun_episodes import BegunEpisode, begun_from_table, table_from_begun
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket, prompt_seed
from tppo_rl.rollout.suspects import Suspects


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of the whole run by their state."""

    sampled: int
    trained: int
    queued: int
    in_flight: int
    dropped: dict[str, int]

    @property
    def unaccounted(self) -> int:
        """0 as long as the ledger's identity holds."""
        return self.sampled - self.trained - self.queued - self.in_flight - sum(self.dropped.values())


class LedgerError(AssertionError):
    """The identity of the ledger is broken: tokens were lost or counted twice."""


@dataclass
class _RunnerAccount:
    sampled: int = 0
    in_flight: int = 0
    leased: set[int] = field(default_factory=set)


class Ledger:
    """Accounts of tokens and prompts; plain Python, owned by the algorithm.

    Args:
        seed: seed of the run; with the prompt index it gives the seed of each environment reset.
        group_size: number of episodes for each prompt.
        num_problems: number of problems of the environment, through which the prompts go epoch by epoch; None: no end.
    """

    def __init__(self, *, seed: int, group_size: int = 1, num_problems: int | None = None) -> None:
        self.seed = seed
        self.num_problems = num_problems
        self._group_size = group_size
        self._next_episode = 0
        self._next_draw = 0
        self._returned: deque[int] = deque()
        self._begun: dict[int, BegunEpisode] = {}
        """Episodes that go on elsewhere, until an env-runner has answered that it has them."""
        self._reserved: dict[int, deque[int]] = {}
        """Episodes that an env-runner had before a restore."""
        self._runners: dict[int, _RunnerAccount] = {}
        self._sampled_by_lost_runners = 0
        self._trained = 0
        self._queued = 0
        self._dropped: Counter[str] = Counter()
        self._suspects = Suspects()
        self._set_aside: set[int] = set()
        """Episodes that are not given out, or not again, because env-runners died of their prompts."""
        self.num_failed_prompts = 0
        """Episodes that never began, because their prompts could not be made (`prompt_failed`); they have no tokens."""

    # Prompts

    def lease(self, env_runner: int, count: int) -> list[Ticket]:
        """Gives `count` tickets to an env-runner, those of lost env-runners first; fewer where it tries prompts that are suspected."""
        suspects = self._suspects.exist
        if suspects and self._suspects.tries(env_runner):
            episode_ids = self._suspects_to_try(env_runner, count)
        else:
            episode_ids = [self._take_episode_id(env_runner, suspects) for _ in range(count)]
        self._account(env_runner).leased.update(episode_ids)
        return [self._ticket(episode_id) for episode_id in episode_ids]

    def draw(self) -> int:
        """Returns the number of the next request for samples, from which its noise follows."""
        self._next_draw += 1
        return self._next_draw - 1

    def take_back_draw(self) -> None:
        """Is told that the last request was not sent."""
        self._next_draw -= 1

    def seed_of(self, prompt_index: int) -> int:
        """Returns the seed with which the environment makes a prompt."""
        return prompt_seed(self.seed, prompt_index, self.num_problems)

    def num_begun_for(self, env_runner: int) -> int:
        """Number of episodes that have begun and would go to an env-runner before others."""
        waiting = (*self._reserved.get(env_runner, ()), *self._returned)
        return sum(number in self._begun and not self._is_suspect(number) for number in waiting)

    def num_leased(self, env_runner: int) -> int:
        """Number of tickets that an env-runner has whose episodes have not ended."""
        return len(self._leased(env_runner))

    def is_unproven(self, env_runner: int) -> bool:
        """Whether what an env-runner has when it dies may be suspected, so that it should have little."""
        return self._suspects.is_unproven(env_runner, map(self._prompt_of, self._leased(env_runner)))

    @property
    def num_set_aside(self) -> int:
        """Number of episodes that will not be sampled, or not to their end, because env-runners died of their prompts."""
        return len(self._set_aside)

    @property
    def held(self) -> list[BegunEpisode]:
        """Episodes that have begun and that no env-runner is known to have."""
        return list(self._begun.values())

    @property
    def epochs(self) -> float | None:
        """Passes over the environment's problems so far, by episodes that ended; None where problems have no end."""
        if self.num_problems is None:
            return None
        open_episodes = len(self._returned) + sum(map(len, self._reserved.values()))
        open_episodes += sum(len(account.leased) for account in self._runners.values())
        return (self._next_episode - open_episodes) / (self._group_size * self.num_problems)

    def return_tickets(self, env_runner: int, tickets: Sequence[Ticket]) -> None:
        """Takes back tickets that did not reach the env-runner; they go out again first."""
        account = self._account(env_runner)
        for ticket in tickets:
            account.leased.discard(ticket.episode_id)
        self._take_back(ticket.episode_id for ticket in tickets)

    def free_reserved(self, env_runners: Collection[int]) -> None:
        """Lets all others have what was reserved for an env-runner, unless it is one of those that there are."""
        self._suspects.keep(env_runners)
        for env_runner in set(self._reserved).difference(env_runners):
            self._take_back(self._reserved.pop(env_runner))

    def drop_prompts(self, env_runner: int, episode_ids: Iterable[int]) -> None:
        """Records episodes that never began, because the environment could not be reset: they do not go out again."""
        for episode_id in episode_ids:
            self._account(env_runner).leased.discard(episode_id)
            self._suspects.ended([self._prompt_of(episode_id)])
            self.num_failed_prompts += 1

    # Tokens

    def report(
        self,
        env_runner: int,
        fragments: Sequence[Fragment],
        *,
        num_tokens_sampled: int,
        num_open_tokens: int,
        given: Iterable[Ticket] = (),
    ) -> None:
        """Records one answer of an env-runner: its fragments, and its counts at that moment.

        Args:
            env_runner: index of the env-runner.
            fragments: fragments that it emitted since its last report; from here on they count as queued.
            num_tokens_sampled: all tokens that it sampled since it started.
            num_open_tokens: sampled tokens that no emitted fragment holds.
            given: tickets that the answered request brought; from here on the env-runner counts their open tokens.
        """
        for ticket in given:
            self._begun.pop(ticket.episode_id, None)
        account = self._account(env_runner)
        if num_tokens_sampled > account.sampled:
            self._suspects.sampled(env_runner)
        self._suspects.ended(fragment.prompt_index for fragment in fragments if fragment.finished)
        account.sampled = num_tokens_sampled
        account.in_flight = num_open_tokens
        for fragment in fragments:
            self._queued += len(fragment)
            if fragment.finished:
                account.leased.discard(fragment.episode_id)

    def record_trained(self, num_tokens: int) -> None:
        """Records the tokens that learners report as trained."""
        self._trained += num_tokens
        self._queued -= num_tokens

    def record_dropped(self, reason: str, num_tokens: int) -> None:
        """Records queued tokens that will not be trained."""
        self._dropped[reason] += num_tokens
        self._queued -= num_tokens

    def lose_env_runner(
        self, env_runner: int, *, begun: Iterable[BegunEpisode] = (), keep: Iterable[Ticket] = ()
    ) -> list[int]:
        """Takes back the prompts of a lost env-runner; its episodes go on elsewhere.

        Args:
            env_runner: Index of the env-runner.
            begun: Its open episodes, as it last told. Open tokens that are not among them are dropped (`env_runner_lost`).
            keep: Tickets that its next incarnation has or will get.

        Returns:
            Index of the prompt of each episode that is set aside.

        Raises:
            EnvRunnerKeepsDying: it has been lost too often without a token in between.
        """
        account = self._runners.pop(env_runner, _RunnerAccount())
        self._sampled_by_lost_runners += account.sampled
        kept = account.leased & {ticket.episode_id for ticket in keep}
        gone = account.leased - kept
        held = {episode.episode_id: episode for episode in begun if episode.episode_id in gone}
        self._begun |= held
        if unknown := account.in_flight - sum(episode.open_tokens for episode in held.values()):
            self._dropped["env_runner_lost"] += unknown
        self._take_back([*held, *sorted(gone - held.keys())])
        if kept:
            self._account(env_runner).leased |= kept
        guilty = self._suspects.lost(env_runner, self._prompts_of(gone))
        self._take_back(self._rest_of_suspected_group())
        return [] if guilty is None else self._set_prompt_aside(guilty)

    def _set_prompt_aside(self, prompt: int) -> list[int]:
        """Gives the episodes of a prompt out no more, and drops their open tokens (`killed_env_runner`); returns the prompt for each."""
        aside = [number for number in self._returned if self._prompt_of(number) == prompt]
        for number in aside:
            self._returned.remove(number)
            if (episode := self._begun.pop(number, None)) is not None:
                self._dropped["killed_env_runner"] += episode.open_tokens
        self._set_aside.update(aside)
        return [prompt] * len(aside)

    def counts(self) -> TokenCounts:
        """The tokens of the whole run so far."""
        accounts = self._runners.values()
        return TokenCounts(
            sampled=self._sampled_by_lost_runners + sum(account.sampled for account in accounts),
            trained=self._trained,
            queued=self._queued,
            in_flight=sum(account.in_flight for account in accounts)
            + sum(episode.open_tokens for episode in self._begun.values()),
            dropped=dict(self._dropped),
        )

    def check(self, *, queue_tokens: int) -> TokenCounts:
        """Checks the identity.

        Args:
            queue_tokens: tokens that wait for an update, counted by the train queue and the group buffer themselves.

        Raises:
            LedgerError: tokens were lost or counted twice.
        """
        counts = self.counts()
        if counts.unaccounted or counts.queued != queue_tokens:
            raise LedgerError(f"ledger does not add up: {counts}, the train queue holds {queue_tokens} tokens")
        return counts

    # Checkpoints

    def state(self, told: Sequence[BegunEpisode] = ()) -> dict[str, Any]:
        """Returns the state for a checkpoint; the train queue is saved beside it.

        Args:
            told: Open episodes of all env-runners, as they last told. They go on after a restore; open tokens that are not
                among them count as dropped then (`resume`), and all other prompts go out again.
        """
        counts = self.counts()
        begun = {episode.episode_id: episode for episode in (*self.held, *told)}
        dropped = Counter(counts.dropped)
        dropped["resume"] += counts.in_flight - sum(episode.open_tokens for episode in begun.values())
        # What an env-runner had before the last restore, and has not been given again, is still its own.
        env_runners = sorted({*self._runners, *self._reserved})
        leased = {str(one): [*_in_order(self._leased(one), begun), *self._reserved.get(one, ())] for one in env_runners}
        return {
            "seed": self.seed,
            "group_size": self._group_size,
            "num_problems": self.num_problems,
            "next_episode": self._next_episode,
            "next_draw": self._next_draw,
            "returned": list(self._returned),
            "leased": leased,
            "begun": table_from_begun(list(begun.values())),
            "sampled": counts.sampled,
            "trained": counts.trained,
            "queued": counts.queued,
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "prompt_failed": self.num_failed_prompts,
            "set_aside": sorted(self._set_aside),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], env_runners: Collection[int] = ()) -> Ledger:
        """Returns a ledger that goes on from `state`.

        Args:
            state: From `state`.
            env_runners: Env-runners that there are now. Each gets what it had before; what others had goes to whoever asks
                first.
        """
        ledger = cls(seed=state["seed"], group_size=state["group_size"], num_problems=state.get("num_problems"))
        ledger._next_episode = state["next_episode"]
        ledger._next_draw = state.get("next_draw", 0)
        begun = begun_from_table(state["begun"]) if "begun" in state else ()
        ledger._begun = {episode.episode_id: episode.owned() for episode in begun}
        ledger._take_back(state["returned"])
        for name, episode_ids in state.get("leased", {}).items():
            if int(name) in env_runners:
                ledger._reserved[int(name)] = deque(episode_ids)
            else:
                ledger._take_back(episode_ids)
        ledger._sampled_by_lost_runners = state["sampled"]
        ledger._trained = state["trained"]
        ledger._queued = state["queued"]
        ledger._dropped = Counter(state["dropped"])
        ledger.num_failed_prompts = state.get("prompt_failed", 0)
        ledger._set_aside = set(state.get("set_aside", ()))
        return ledger

    def _take_back(self, episode_ids: Iterable[int]) -> None:
        """Puts episodes that go on before all others that were returned."""
        episode_ids = list(episode_ids)
        self._returned.extendleft(number for number in reversed(episode_ids) if number in self._begun)
        self._returned.extend(number for number in episode_ids if number not in self._begun)

    def _take_episode_id(self, env_runner: int, suspects: bool) -> int:
        """Takes the next episode that is no suspect's; `suspects` says whether there are any."""
        for waiting in (self._reserved.get(env_runner), self._returned):
            found = next((number for number in waiting or () if not (suspects and self._is_suspect(number))), None)
            if waiting and found is not None:
                waiting.remove(found)
                return found
        self._next_episode += 1
        return self._next_episode - 1

    def _suspects_to_try(self, env_runner: int, count: int) -> list[int]:
        """Returns episodes of the suspects that are tried; none while the env-runner has others."""
        leased, trial = self._leased(env_runner), self._suspects.trial
        if any(self._prompt_of(number) not in trial for number in leased):
            return []
        lists = (*self._reserved.values(), self._returned)
        if not trial:
            waiting = dict.fromkeys(
                self._prompt_of(number) for one in lists for number in one if self._is_suspect(number)
            )
            if not waiting and not any(
                self._is_suspect(number) for one in self._runners.values() for number in one.leased
            ):
                self._suspects.forget()
            self._suspects.try_half(list(waiting))
            trial = self._suspects.trial
        found = [(one, number) for one in lists for number in one if self._prompt_of(number) in trial][:count]
        for one, number in found:
            one.remove(number)
        return [number for _, number in found]

    def _rest_of_suspected_group(self) -> range:
        """Takes the episodes that have not been given out of a prompt that is suspected, and returns them."""
        first = self._next_episode
        if first % self._group_size and self._is_suspect(first):
            self._next_episode += -first % self._group_size
        return range(first, self._next_episode)

    def _is_suspect(self, episode_id: int) -> bool:
        return self._suspects.is_suspect(self._prompt_of(episode_id))

    def _prompt_of(self, episode_id: int) -> int:
        return episode_id // self._group_size

    def _prompts_of(self, episode_ids: Iterable[int]) -> set[int]:
        return {self._prompt_of(number) for number in episode_ids}

    def _ticket(self, episode_id: int) -> Ticket:
        prompt_index = self._prompt_of(episode_id)
        return Ticket(episode_id, prompt_index, self.seed_of(prompt_index), self._begun.get(episode_id))

    def _leased(self, env_runner: int) -> set[int]:
        account = self._runners.get(env_runner)
        return set() if account is None else account.leased

    def _account(self, env_runner: int) -> _RunnerAccount:
        return self._runners.setdefault(env_runner, _RunnerAccount())


def _in_order(leased: set[int], begun: Mapping[int, BegunEpisode]) -> list[int]:
    """Returns the episodes of an env-runner as it has them: in its slots first, then those that wait."""
    in_slots = [number for number in begun if number in leased]
    return [*in_slots, *sorted(leased.difference(in_slots))]
