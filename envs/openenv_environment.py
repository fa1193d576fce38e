"""OpenEnv: an environment behind a websocket, in a server of its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tppo_rl.envs.data_rows import look_up
from tppo_rl.envs.openenv_client import Answer, OpenEnvError, Session, schemas_of
from tppo_rl.envs.text_env import Problem, Reply, TextEnv, is_finite, require, split_of

_DRAWS = 200
"""Prompts that are asked for until one belongs to the split; 0.9^200 is less than 10^-9."""
_NO_TEXT = frozenset({"metadata", "done", "reward"})
_SCHEMES = ("http://", "https://", "ws://", "wss://")


@dataclass(frozen=True)
class Episode(Problem):
    """An episode of a server: `number` is the seed of its reset."""

    number: int = 0


class OpenEnv(TextEnv[Episode]):
    """An environment of an OpenEnv server. Registered as ``tppo_rl/OpenEnv-v0``.

    The first observation's text is the prompt. The text of a turn goes to a field of the action, and the text of the observation that
    comes back is the next user turn. Rewards stand where the server gives them.

    Problem k is what the server's ``reset(seed=…)`` gives for the k-th seed of a fixed sequence that belongs to the split, so a server
    must give the same episode for the same seed. Sessions are short: one is opened for a reset, and for a turn, which takes the
    earlier turns once more. So any number of environments can take turns at a server that serves one session at a time.

    What the server refuses, a lost connection, and an answer that does not come are errors and never a reward of 0.

    Args:
        url: Server, as http://host:port.
        urls: Several servers of the same environment, of which any will do.
        action_field: Field of the action that takes the text; by default its only one that takes a text.
        observation_field: Field of the observation that is shown, dotted where nested; what is no text is shown as JSON. By default its
            only text.
        truncated_field: Field of the observation that says, where the episode is done, whether a limit ended it. Without it a done
            episode is terminated, and the last step's info counts such ends in ``unspecified_ends``.
        correct_from: Reward of the last step from which a response counts as correct. None: it is not known what is correct.
        keep_session: Whether an episode keeps its session to its end, so that no turn is taken twice. Servers must then serve as many
            sessions at once as there are episodes, those whose prompts are made ahead included.
        split_by: "prompt" for splits that share no prompt; "seed" where all episodes begin with the same text, or a reset is costly.
            Then they share no seed.
        connect_timeout_s: Longest wait for a session.
        step_timeout_s: Longest wait for an answer.
        **common: Options of every environment, see `TextEnv`; without `correct_reward` and `wrong_reward`.

    Raises:
        ValueError: On a bad option, or a server that cannot be asked for its schemas; names the option, its value and what is allowed.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        urls: Sequence[str] | None = None,
        action_field: str | None = None,
        observation_field: str | None = None,
        truncated_field: str | None = None,
        correct_from: float | None = None,
        keep_session: bool = False,
        split_by: Literal["prompt", "seed"] = "prompt",
        connect_timeout_s: float = 4.0,
        step_timeout_s: float = 5.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require((url is None) != (urls is None), "url", url, "give either url or urls")
        places = [url] if urls is None else urls
        for place in places if isinstance(places, list | tuple) and places else [places]:
            known = isinstance(place, str) and place.startswith(_SCHEMES)
            require(known, "url" if urls is None else "urls", place, "give the place of a server as http://host:port")
        for key, value in (("connect_timeout_s", connect_timeout_s), ("step_timeout_s", step_timeout_s)):
            require(is_finite(value) and value > 0, key, value, "give a number of seconds above 0")
        for key, name in (("observation_field", observation_field), ("truncated_field", truncated_field)):
            require(name is None or (isinstance(name, str) and name != ""), key, name, "give the name of a field")
        require(
            correct_from is None or is_finite(correct_from),
            "correct_from",
            correct_from,
            "give a finite number, or None",
        )
        require(split_by in ("prompt", "seed"), "split_by", split_by, 'choose "prompt" or "seed"')
        require(isinstance(keep_session, bool), "keep_session", keep_session, "give true or false")
        self.urls = tuple(str(place).rstrip("/") for place in places)
        self.truncated_field = truncated_field
        self.correct_from = correct_from
        self.keep_session = keep_session
        self.split_by = split_by
        self.gives_correct = correct_from is not None
        self.without_correct = "the server gives numbers, and not what is correct; set env_config.correct_from to the reward of a right response"
        self._timeouts = {"connect_timeout_s": float(connect_timeout_s), "step_timeout_s": float(step_timeout_s)}
        self.action_field = self._field("action", action_field)
        self.observation_field = self._field("observation", observation_field)
        self._session: Session | None = None
        self._said: list[str] = []
        self._unspecified_ends = 0

    @property
    def gives_rewards(self) -> bool:
        """The server's rewards."""
        return True

    def candidates(self, rng: np.random.Generator) -> Iterator[Episode]:
        """Episodes of both splits in the order of their seeds, begun one after the other at the server."""
        while True:
            number = int(rng.integers(2**31))
            yield Episode(self._text(self._begin(number)), None, {}, number)

    def problem(self, seed: int) -> Episode:
        """Problem number `seed` of this split; the session, if one is kept, is at its beginning.

        Raises:
            OpenEnvError: The server failed.
            ValueError: No prompt of this split turns up.
        """
        numbers = _numbers(seed)
        if self.split_by == "seed":
            number = next(one for one in numbers if split_of(str(one), self.split_seed) == self.split)
            return Episode(self._text(self._begin(number)), None, {}, number)
        for number in itertools.islice(numbers, _DRAWS):
            episode = Episode(self._text(self._begin(number)), None, {}, number)
            if split_of(episode.prompt, self.split_seed) == self.split:
                return episode
        raise ValueError(
            f"split={self.split!r}: none of {_DRAWS} first observations belongs to it, so there are too few different ones; set "
            "split_by to 'seed'"
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, see `TextEnv.reset`.

        Raises:
            OpenEnvError: The server failed.
        """
        self._end_session()
        try:
            prompt, info = super().reset(seed=seed, options=options)
        except BaseException:
            self._end_session()
            raise
        if not self.keep_session:
            self._end_session()
        self._said = []
        return prompt, info

    def respond(self, problem: Episode, text: str, turn: int) -> Reply:
        """Let the server take the turn.

        Raises:
            OpenEnvError: The server failed.
        """
        del self._said[turn:]
        self._said.append(text)
        try:
            answer = self._answer(problem)
        except BaseException:
            self._end_session()
            raise
        if answer.done or not self.keep_session:
            self._end_session()
        if not answer.done:
            return Reply(self._text(answer), reward=answer.reward)
        correct = None if self.correct_from is None else answer.reward >= self.correct_from
        if self.truncated_field is not None:
            truncated = look_up(answer.observation, self.truncated_field)
            if not isinstance(truncated, bool):
                raise OpenEnvError(
                    f"truncated_field={self.truncated_field!r}: must be true or false, got {truncated!r:.80}"
                )
            return Reply(ends=True, reward=answer.reward, correct=correct, truncated=truncated)
        self._unspecified_ends += 1
        return Reply(
            ends=True, reward=answer.reward, correct=correct, info={"unspecified_ends": self._unspecified_ends}
        )

    def close(self) -> None:
        """End the session."""
        self._end_session()

    def _begin(self, number: int) -> Answer:
        """Begins an episode, in the session that is open or in a new one."""
        if self._session is None:
            self._session = Session(self.urls, seed=number, **self._timeouts)
            answer = self._session.first
        else:
            answer = self._session.reset(number)
        if answer.done:
            raise OpenEnvError(f"{self._session.url}: reset(seed={number}) is done before the first turn")
        return answer

    def _answer(self, problem: Episode) -> Answer:
        *earlier, said = self._said
        if self._session is None:
            if self.keep_session:
                raise OpenEnvError("the session is lost; reset begins another one")
            if self._text(self._begin(problem.number)) != problem.prompt:
                raise OpenEnvError(
                    f"{', '.join(self.urls)}: reset(seed={problem.number}) gave another episode the second time; set keep_session"
                )
            assert self._session is not None
            for text in earlier:
                if self._take(self._session, text).done:
                    raise OpenEnvError(
                        f"{self._session.url}: the same turns ended the episode earlier; set keep_session"
                    )
        return self._take(self._session, said)

    def _take(self, session: Session, text: str) -> Answer:
        # Half a surrogate pair, which no server can read, becomes a question mark.
        return session.step({self.action_field: text.encode(errors="replace").decode()})

    def _text(self, answer: Answer) -> str:
        value = look_up(answer.observation, self.observation_field)
        if isinstance(value, str):
            return value
        try:
            return json.dumps(value, ensure_ascii=False)
        except TypeError:
            raise OpenEnvError(
                f"observation_field={self.observation_field!r}: the observation has {', '.join(answer.observation)}"
            ) from None

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _field(self, part: str, name: str | None) -> str:
        key = f"{part}_field"
        if name is not None:
            require(isinstance(name, str) and name != "", key, name, "give the name of a field")
            return name
        try:
            schema = schemas_of(self.urls[0])[part]
        except (OSError, ValueError) as error:
            raise ValueError(
                f"url={self.urls[0]!r}: its /schema cannot be read ({error}); start the server first"
            ) from error
        fields = [
            name for name, form in schema.get("properties", {}).items() if _is_text(form) and name not in _NO_TEXT
        ]
        required = [name for name in schema.get("required", []) if name not in fields and name not in _NO_TEXT]
        choose = f"name the field that is {'the text of a turn' if part == 'action' else 'shown'}"
        there = ", ".join(sorted(set(schema.get("properties", {})) - _NO_TEXT)) or "no field"
        require(
            len(fields) == 1,
            key,
            name,
            f"{self.urls[0]} has {len(fields)} text fields in its {part} ({there}); {choose}",
        )
        require(
            part != "action" or not required,
            key,
            name,
            f"{self.urls[0]} needs more than a text in its action ({', '.join(required)}); a turn of the model is one text",
        )
        return str(fields[0])


def _numbers(seed: int) -> Iterator[int]:
    """Seeds of the server, the same for the same problem number."""
    rng = np.random.default_rng([0x6F65_6E76, seed])
    while True:
        yield int(rng.integers(2**31))


def _is_text(form: Any) -> bool:
    """Whether a field of a JSON schema takes a text, None aside."""
    if not isinstance(form, Mapping):
        return False
    kinds = [one.get("type") for one in form.get("anyOf", [form]) if isinstance(one, Mapping)]
    return [kind for kind in kinds if kind != "null"] == ["string"] and "const" not in form
