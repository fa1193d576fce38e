"""Slots on one engine: they generate episodes and cut them into fragments of fixed windows.

    tickets ─▶ prompts ─▶ slot: submit ─▶ step ─▶ token ─▶ window ─┬─ full ────────▶ unfinished fragment
                            ▲                                      └─ episode over ▶ finished fragment ─┐
                            └───────────────────── next prompt, at the very next engine step ◀──────────┘

An episode that is over gives up its slot at once. Where functions score responses, all that ended in one `run` wait for its end
and are scored together, so that no engine step waits for a function.

Prompts are made in batches of as many as there are slots. A prompt that is made alone, between engine steps, takes some
five times as long, because the processor's caches then hold the engine.

Plain Python, no Ray: an env-runner hosts one `Sampler` for training; an evaluation runs a second one on the same engine
while the first is suspended.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tppo_rl.core.begun_episodes import BegunEpisode
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.dialogs import Dialog, Step, take_step, wrong_reward_of
from tppo_rl.rollout.endings import Ending, Endings
from tppo_rl.rollout.engine import Engine, Output, Request, Sampling
from tppo_rl.rollout.known_answers import answer_tokens
from tppo_rl.rollout.rebuilding import scores_of_given_up, why_not_rebuilt
from tppo_rl.rollout.responses import Failure, Scores
from tppo_rl.rollout.rewards import RETRY, WRONG, Rewards
from tppo_rl.rollout.tool_texts import turns_and_tools
from tppo_rl.rollout.window_buffer import OpenEpisode


@dataclass(frozen=True)
class Prompt:
    """An episode that can begin."""

    ticket: Ticket
    env: Any
    text: str
    tokens: list[int]
    info: Mapping[str, Any]
    """Info that the environment's reset returned with the text."""
    wrong_reward: float = 0.0
    """What the environment gives a wrong answer."""


@dataclass(frozen=True)
class Turn:
    """A turn of the model that has ended."""

    request_id: str
    episode: OpenEpisode
    dialog: Dialog
    ended: bool
    """Whether the model ended it, and not the cap."""


@dataclass(frozen=True)
class EpisodeLimits:
    """Lengths in tokens."""

    max_prompt_length: int
    max_response_length: int
    """Cap on everything after the prompt: sampled tokens and environment text between turns."""
    window_length: int | None
    """Most sampled tokens of a fragment; None keeps every episode whole."""


class Sampler:
    """Generates episodes in a fixed number of slots.

    Args:
        engine: samples the tokens; shared with other samplers only while this one is suspended.
        make_env: makes one environment, for each episode in generation or about to begin: less than two for each slot. None:
            environments are elsewhere.
        chat: formats prompts and turns.
        num_slots: number of episodes in generation at a time.
        limits: window and caps.
        sampling: temperature of sampling.
        rewards: rewards of responses; None: the environment's.
        env_runner: index of the env-runner, written into fragments.
        name: prefix of request ids; distinct for samplers that share an engine.
        alive: called whenever something was done.
        tells_answers: whether fragments hold the known answers of their problems.
    """

    def __init__(
        self,
        engine: Engine,
        make_env: Callable[[], Any] | None,
        chat: Chat,
        *,
        num_slots: int,
        limits: EpisodeLimits,
        sampling: Sampling,
        rewards: Rewards | None = None,
        env_runner: int = 0,
        name: str = "train",
        alive: Callable[[], None] = lambda: None,
        tells_answers: bool = False,
    ) -> None:
        self.tickets: deque[Ticket] = deque()
        self.num_tokens_sampled = 0
        self.num_slot_steps = 0
        self.num_productive_slot_steps = 0
        self.num_refills = 0
        self.on_end: Callable[[], None] | None = None
        """Called whenever an episode is over."""
        self._engine = engine
        self._chat = chat
        self._limits = limits
        self._sampling = sampling
        self._rewards = rewards or Rewards()
        self._endings = Endings(self._rewards)
        self._env_runner = env_runner
        self._name = name
        self._alive = alive
        self._tells_answers = tells_answers
        self._make_env = make_env
        self._unused_envs = [] if make_env is None else [self._new_env() for _ in range(num_slots)]
        self._prompts: deque[Prompt] = deque()
        self._open: dict[str, OpenEpisode] = {}
        self._dialogs: dict[str, Dialog] = {}
        self._closed: list[Fragment] = []
        self.num_slots = num_slots

    def add_tickets(self, tickets: Iterable[Ticket]) -> None:
        """Adds further episodes; those that have begun elsewhere go on before others begin."""
        tickets = list(tickets)
        self.tickets.extendleft(ticket for ticket in reversed(tickets) if ticket.begun is not None)
        self.tickets.extend(ticket for ticket in tickets if ticket.begun is None)

    @property
    def num_waiting_tickets(self) -> int:
        """Number of tickets whose episodes have no slot yet."""
        return len(self.tickets) + len(self._prompts)

    @property
    def episode_ids(self) -> list[int]:
        """Ids of the episodes that are open or have no slot yet."""
        tickets = [episode.ticket for episode in self._open.values()]
        return [ticket.episode_id for ticket in (*tickets, *self._waiting_tickets())]

    @property
    def num_open_tokens(self) -> int:
        """Sampled tokens that no fragment holds yet."""
        in_slots = sum(episode.open_tokens for episode in self._open.values())
        return in_slots + self._endings.num_tokens + sum(ticket.open_tokens for ticket in self._waiting_tickets())

    @property
    def oldest_open_version(self) -> int | None:
        """Oldest policy version among the open tokens; None if there are none."""
        versions = [episode.oldest_open_version for episode in self._open.values()]
        versions += [ticket.oldest_open_version for ticket in self._waiting_tickets()]
        return min((version for version in versions if version is not None), default=None)

    def begun(self) -> list[BegunEpisode]:
        """Returns the episodes that have begun and not ended, as far as they are; they go on."""
        shown = [(episode, self._dialogs[request_id]) for request_id, episode in self._open.items()]
        shown += self._without_slot()
        episodes = [dialog.begun(episode.window_so_far()) for episode, dialog in shown]
        return [*episodes, *(ticket.begun for ticket in self._waiting_tickets() if ticket.begun is not None)]

    def _waiting_tickets(self) -> Iterator[Ticket]:
        """Tickets whose episodes have no slot yet, the next one first."""
        yield from (prompt.ticket for prompt in self._prompts)
        yield from self.tickets

    def _without_slot(self) -> Iterator[tuple[OpenEpisode, Dialog]]:
        """Episodes that have no slot, because their answers or rewards are not there."""
        yield from ((ending.episode, ending.dialog) for ending in self._endings.waiting)

    def run(self, num_engine_steps: int, *, patient: bool = False) -> list[Fragment]:
        """Takes engine steps and returns the fragments that were closed meanwhile.

        Stops early only if there is nothing to generate: no open episode and no ticket.

        Args:
            num_engine_steps: Number of engine steps.
            patient: Whether to wait for prompts and answers that come from elsewhere; here they never do.
        """
        for _ in range(num_engine_steps):
            self._fill_free_slots()
            if not self._open:
                break
            self._step()
        self._closed += self._endings.settle(self._engine.version)
        self._hand_over_waiting()
        return self._hand_over()

    def run_until_empty(self) -> list[Fragment]:
        """Generates until every ticket's episode has ended."""
        fragments: list[Fragment] = []
        while self._has_work:
            fragments += self.run(self._limits.max_response_length)
        return fragments

    def cut_windows(self) -> list[Fragment]:
        """Closes every window that holds a token, at whatever length; the episodes stay open."""
        for episode in self._open.values():
            if episode.open_tokens:
                self._closed.append(episode.close_window())
        self._hand_over_waiting()
        return self._hand_over()

    def pop_scores(self) -> Scores:
        """Returns what scoring gave since the last call; it says which of the returned fragments are not to be trained."""
        return self._endings.pop_scores()

    def suspend(self) -> None:
        """Takes the open episodes off the engine; the episodes stay as they are."""
        self._engine.cut(list(self._open))

    def resume(self) -> None:
        """Puts the open episodes back on the engine; each goes on where it was."""
        for request_id in self._open:
            self._submit(request_id)

    def abandon(self) -> None:
        """Drops all open episodes and tickets."""
        self.suspend()
        self._unused_envs += [*self._envs_in_use()]
        self._open.clear()
        self._dialogs.clear()
        self._prompts.clear()
        self._closed.clear()
        self._endings.clear()
        self.tickets.clear()

    def close(self) -> None:
        """Closes the environments."""
        for env in (*self._unused_envs, *self._envs_in_use()):
            env.close()

    @property
    def _has_work(self) -> bool:
        return bool(self.num_waiting_tickets or self._open)

    def _envs_in_use(self) -> Iterator[Any]:
        yield from (dialog.env for dialog in self._dialogs.values())
        yield from (prompt.env for prompt in self._prompts)

    def _step(self) -> None:
        """Takes one engine step."""
        outputs = self._engine.step()
        self._alive()
        self.num_slot_steps += self.num_slots
        self.num_productive_slot_steps += len(outputs)
        for output in outputs:
            self._take(output)
            self._alive()

    def _fill_free_slots(self) -> None:
        self._take_begun()
        while len(self._open) < self.num_slots and self.num_waiting_tickets:
            if not self._prompts:
                self._make_prompts()
            self._start_episode(self._prompts.popleft())

    def _make_prompts(self) -> None:
        for _ in range(min(self.num_slots, len(self.tickets))):
            self._prompts.append(self._make_prompt())

    def _take_begun(self) -> None:
        """Puts the episodes that have begun elsewhere before all others; one whose turn is over needs no slot."""
        going_on = []
        while self.tickets and (begun := self.tickets[0].begun) is not None:
            prompt = self._make_prompt()
            wrong = why_not_rebuilt(begun, prompt.tokens, partial(self._take_step_again, prompt.env))
            if wrong is not None:
                self._give_up(prompt.ticket, wrong)
                # What it is worth, nobody knows.
                prompt.env.close()
            elif self._is_turn_over(prompt):
                self._start_episode(prompt)
            else:
                going_on.append(prompt)
        self._prompts.extendleft(reversed(going_on))

    def _take_step_again(self, env: Any, said: str) -> Step | Failure:
        answer = take_step(env, said)
        self._alive()
        return answer

    def _new_env(self) -> Any:
        assert self._make_env is not None
        env = self._make_env()
        self._alive()
        return env

    def _make_prompt(self) -> Prompt:
        ticket = self.tickets[0]
        if not self._unused_envs:
            self._unused_envs.append(self._new_env())
        env = self._unused_envs[-1]
        text, info = env.reset(seed=ticket.seed)
        self._alive()
        tokens = self._prompt_tokens(ticket, text, info)
        # Ticket and environment are taken last, so that an error loses neither.
        return Prompt(self.tickets.popleft(), self._unused_envs.pop(), text, tokens, info, wrong_reward_of(env))

    def _give_up(self, ticket: Ticket, reason: str) -> None:
        """Ends an episode that has begun elsewhere and cannot go on."""
        assert ticket.begun is not None
        self._endings.add_scores(scores_of_given_up(ticket, reason))
        if ticket.open_tokens:
            self._closed.append(self._going_on(ticket, ticket.begun).close_window(truncated=True))

    def _is_turn_over(self, prompt: Prompt) -> bool:
        episode = self._episode(prompt)
        return bool(episode.turn_tokens) and (self._is_ended(episode) or self._room(episode) <= 0)

    def _is_ended(self, episode: OpenEpisode) -> bool:
        """Whether the model has ended its turn."""
        said = episode.turn_tokens
        if not said:
            return False
        return said[-1] in self._chat.end_of_turn or (self._chat.has_stops and self._chat.is_stopped((), said))

    def _room(self, episode: OpenEpisode) -> int:
        return self._limits.max_response_length - episode.response_length

    def _hand_over_waiting(self) -> None:
        """Closes the windows of begun episodes that have found no slot, so that none waits for the turns of others."""
        if self._limits.window_length is None:
            return
        for place, prompt in enumerate(self._prompts):
            begun = prompt.ticket.begun
            if begun is not None and begun.open_tokens:
                self._closed.append(self._episode(prompt).close_window())
                self._prompts[place] = replace(prompt, ticket=replace(prompt.ticket, begun=begun.without_window()))

    def _prompt_tokens(self, ticket: Ticket, text: str, info: Mapping[str, Any]) -> list[int]:
        tokens = self._chat.prompt(text, *turns_and_tools(info))
        if len(tokens) > self._limits.max_prompt_length:
            raise ValueError(
                f"max_prompt_length={self._limits.max_prompt_length}: the prompt with index {ticket.prompt_index} has "
                f"{len(tokens)} tokens; raise max_prompt_length or make the environment's prompts shorter"
            )
        return tokens

    def _start_episode(self, prompt: Prompt) -> None:
        request_id = f"{self._name}-{prompt.ticket.episode_id}"
        assert request_id not in self._open, f"two tickets for episode {prompt.ticket.episode_id}"
        self._open[request_id] = episode = self._episode(prompt)
        self._dialogs[request_id] = self._dialog(prompt)
        self.num_refills += prompt.ticket.begun is None
        if self._is_turn_over(prompt):
            self._end_turn(request_id, episode, self._is_ended(episode))
        else:
            self._submit(request_id)

    def _episode(self, prompt: Prompt) -> OpenEpisode:
        if prompt.ticket.begun is not None:
            return self._going_on(prompt.ticket, prompt.ticket.begun)
        answer = answer_tokens(self._chat, prompt.info) if self._tells_answers else ()
        return OpenEpisode(prompt.ticket, prompt.tokens, self._env_runner, self._engine.version, answer)

    def _going_on(self, ticket: Ticket, begun: BegunEpisode) -> OpenEpisode:
        return OpenEpisode.going_on(ticket, begun, self._env_runner, self._engine.version)

    def _dialog(self, prompt: Prompt) -> Dialog:
        dialog = Dialog(prompt.env, prompt.text, prompt.info, wrong_reward=prompt.wrong_reward)
        if (begun := prompt.ticket.begun) is not None:
            dialog.turns, dialog.observations = list(begun.turns), list(begun.observations)
            dialog.turn_rewards = list(begun.turn_rewards)
        return dialog

    def _submit(self, request_id: str) -> None:
        episode = self._open[request_id]
        request = Request(request_id, episode.all_tokens(), self._room(episode), self._sampling, episode.first_version)
        self._engine.submit(request)

    def _take(self, output: Output) -> None:
        request_id, tokens, log_probs, version, turn_ended, request_ended = output
        episode, window_length = self._open[request_id], self._limits.window_length
        if self._chat.has_stops and not turn_ended and self._chat.is_stopped(episode.turn_tokens, tokens):
            if not request_ended:
                self._engine.cut([request_id])
            turn_ended = request_ended = True
        # The window that holds the last token of a request is closed later, together with its reward.
        last = len(tokens) - 1 if request_ended else None
        for index, token in enumerate(tokens):
            if episode.add_sampled(token, log_probs[index], version) == window_length and index != last:
                self._closed.append(episode.close_window())
        self.num_tokens_sampled += len(tokens)
        if request_ended:
            self._end_turn(request_id, episode, turn_ended)

    def _end_turn(self, request_id: str, episode: OpenEpisode, turn_ended: bool) -> None:
        turn = Turn(request_id, episode, self._dialogs[request_id], turn_ended)
        said = self._chat.text(episode.turn_tokens)
        if not turn_ended and self._rewards.truncated == WRONG:
            turn.dialog.turns.append(said)
            self._finish(turn, terminated=False, cut=True)
        else:
            self._ask(turn, said, attempts=2 if self._rewards.on_failure == RETRY else 1)

    def _ask(self, turn: Turn, said: str, attempts: int) -> None:
        """Gives the environment the turn; its answer goes to `_take_answer`."""
        self._take_answer(turn, turn.dialog.say(said, attempts=attempts))

    def _take_answer(self, turn: Turn, step: Step | Failure) -> None:
        episode = turn.episode
        if isinstance(step, Failure):
            self._finish(turn, terminated=turn.ended, cut=not turn.ended, failure=step)
            return
        if step.ended or not turn.ended:
            # A response that the cap stopped is scored like any other, but it is not terminated: the policy did not end it.
            self._finish(turn, terminated=step.terminated and turn.ended, cut=not turn.ended, last=step)
            return
        is_closed = episode.turn_tokens[-1] in self._chat.end_of_turn
        next_turn = self._chat.user_turn(step.text, is_closed=is_closed)
        if episode.response_length + len(next_turn) >= self._limits.max_response_length:
            self._finish(turn, terminated=False, cut=True, last=step)
            return
        if step.reward:
            episode.add_reward(self._rewards.of_turn(step.reward))
        turn.dialog.observations.append(step.text)
        if episode.open_tokens == self._limits.window_length:
            self._closed.append(episode.close_window())
        episode.add_environment_text(next_turn)
        self._go_on(turn)

    def _go_on(self, turn: Turn) -> None:
        """Lets the model take its next turn."""
        self._submit(turn.request_id)

    def _finish(
        self, turn: Turn, *, terminated: bool, cut: bool, last: Step | None = None, failure: Failure | None = None
    ) -> None:
        """Frees the slot; the window that holds the last token stays open until the episode is scored."""
        self._open.pop(turn.request_id, None)
        dialog = self._dialogs.pop(turn.request_id)
        self._endings.add(Ending(turn.episode, dialog, terminated, cut, last, failure))
        self._give_back(dialog, failure)
        if self.on_end is not None:
            self.on_end()
        if not self._rewards.calls_functions:
            self._closed += self._endings.settle(self._engine.version)

    def _give_back(self, dialog: Dialog, failure: Failure | None) -> None:
        """Takes back the environment of an episode that is over."""
        self._unused_envs += dialog.give_back(failure)

    def _hand_over(self) -> list[Fragment]:
        closed, self._closed = self._closed, []
        return closed


def evaluate_prompts(
    sampler: Sampler, tickets: Iterable[Ticket], answered: Callable[[int], None] | None = None
) -> list[Fragment]:
    """Generates one whole episode for each ticket and returns them as finished fragments, in ticket order.

    Args:
        sampler: Has no open episodes.
        tickets: Prompts to answer.
        answered: Called with the number of episodes that are over, whenever one is.
    """
    if answered is not None:
        numbers = itertools.count(1)
        sampler.on_end = lambda: answered(next(numbers))
    tickets = list(tickets)
    order = {ticket.episode_id: position for position, ticket in enumerate(tickets)}
    sampler.tickets.extend(tickets)
    try:
        episodes = sampler.run_until_empty()
    finally:
        sampler.on_end = None
    return sorted(episodes, key=lambda fragment: order[fragment.episode_id])
