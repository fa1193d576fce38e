"""Calls one part of the reward: a function of TRL's or verl's contract, sync or async; what fails is a failure, never a 0.

    begin(responses) ─▶ sync: called at once ─────────────┐
                     └▶ async: runs on the loop's thread ─┴─▶ collect() ─▶ a number, None or a Failure for each response

All async parts of a reward run at the same time, on one event loop in a thread of its own, which lives as long as the process.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.reward_parts import RewardPart
from tppo_rl.core.reward_signature import COMPUTE_SCORE_ARGUMENTS, RewardSignature, ground_truth
from tppo_rl.rollout.responses import Failure, Response, Scores

Outcome = float | None | Failure
"""What a part says about a response; None: it does not apply."""
Collect = Callable[[], list[Outcome]]


@dataclass(frozen=True)
class TrainerState:
    """What reward functions see of TRL's trainer."""

    global_step: int
    """Policy version that samples now."""


class RewardFunction:
    """A part of the reward with its function.

    Args:
        part: Name and weight.
        function: By the contract at the head of `tppo_rl.rollout.rewards`.
    """

    def __init__(self, part: RewardPart, function: Callable[..., Any]) -> None:
        self.part = part
        self._function = function
        self._signature = RewardSignature.of(function)

    def begin(self, responses: Sequence[Response], version: int, scores: Scores) -> Collect:
        """Calls the function, and returns what waits for its outcomes, one for each response.

        Args:
            responses: Responses to score, at least one.
            version: Policy version.
            scores: Gets what the function logs.

        Raises:
            OptionError: the function cannot work with this environment; also by the collector.
        """
        if self._signature.is_compute_score:
            calls = [_start(partial(self._score_one, response)) for response in responses]
            return lambda: [self._collect_one(call, scores) for call in calls]
        call = _start(partial(self._function, **self._columns(responses, version, scores)))
        return lambda: self._collect(call, responses, version, scores)

    def _collect(
        self, call: Callable[[], Any], responses: Sequence[Response], version: int, scores: Scores
    ) -> list[Outcome]:
        try:
            given = call()
        except OptionError:
            raise
        except (Exception, SystemExit) as error:
            if len(responses) == 1 or isinstance(error, TimeoutError):
                return [Failure.of(self.part.name, error)] * len(responses)
            # One response that it cannot score must not cost the others.
            calls = [self.begin([response], version, scores) for response in responses]
            return [outcome for collect in calls for outcome in collect()]
        if isinstance(given, str | bytes | Mapping) or not (hasattr(given, "__len__") and hasattr(given, "__iter__")):
            return [self._failure("no_number", f"must return a list of numbers, got {given!r}")] * len(responses)
        if len(given) != len(responses):
            reason = f"must return one number for each of {len(responses)} responses, got {len(given)}"
            return [self._failure("wrong_length", reason)] * len(responses)
        return [self._number(value) for value in given]

    def _collect_one(self, call: Callable[[], Any], scores: Scores) -> Outcome:
        try:
            return self._of_result(call(), scores)
        except OptionError:
            raise
        except (Exception, SystemExit) as error:
            return Failure.of(self.part.name, error)

    def _of_result(self, result: Any, scores: Scores) -> Outcome:
        """Reads a result of `compute_score`: a number, or a mapping with `score` and further numbers to log."""
        if not isinstance(result, Mapping):
            return self._number(result)
        if "score" not in result:
            return self._failure("no_number", f"a mapping must have 'score', got {', '.join(map(str, result))}")
        for name, value in result.items():
            if name != "score" and isinstance(value, int | float) and math.isfinite(value):
                scores.add_values(f"{self.part.name}.{name}", [float(value)])
        return self._number(result["score"])

    def _number(self, value: Any) -> Outcome:
        if value is None:
            return None
        if isinstance(value, Exception):
            return Failure.of(self.part.name, value)
        try:
            number = None if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = None
        if number is None:
            return self._failure("no_number", f"must be a number or None, got {value!r}")
        return number if math.isfinite(number) else self._failure("not_finite", f"must be finite, got {value!r}")

    def _failure(self, kind: str, message: str) -> Failure:
        return Failure(self.part.name, kind, message[:500])

    def _columns(self, responses: Sequence[Response], version: int, scores: Scores) -> dict[str, Any]:
        """Arguments of TRL's contract: columns with one entry for each response."""
        names = dict.fromkeys(name for response in responses for name in response.columns)
        columns: dict[str, Any] = {name: [response.columns.get(name) for response in responses] for name in names}
        columns |= {
            "prompts": [_or(response.prompt_messages, response.prompt) for response in responses],
            "completions": [
                response.completion if response.prompt_messages is None else response.completion_messages
                for response in responses
            ],
            "completion_ids": [list(response.completion_ids) for response in responses],
            "environment_reward": [response.environment_reward for response in responses],
            "correct": [response.correct for response in responses],
            "truncated": [response.truncated for response in responses],
        }
        columns = {name: column for name, column in columns.items() if self._takes(name)}
        if "trainer_state" in self._signature.named:
            columns["trainer_state"] = TrainerState(version)
        if "log_extra" in self._signature.named:
            columns["log_extra"] = partial(self._log, scores)
        if "log_metric" in self._signature.named:
            columns["log_metric"] = lambda name, value: self._log(scores, name, [value])
        return columns

    def _score_one(self, response: Response) -> Any:
        if ground_truth(response.columns) is None:
            # Compared with None, any response would be wrong.
            raise LookupError("the row has no ground truth")
        return self._function(**self._row(response))

    def _row(self, response: Response) -> dict[str, Any]:
        """Arguments of verl's contract for one response."""
        row = {
            "data_source": response.columns.get("data_source", ""),
            "solution_str": response.completion,
            "ground_truth": ground_truth(response.columns),
            "extra_info": response.columns.get("extra_info"),
        }
        row |= {
            name: value for name, value in response.columns.items() if name in self._signature.required - row.keys()
        }
        taken = self._signature.named | (COMPUTE_SCORE_ARGUMENTS if self._signature.takes_all else frozenset())
        return {name: value for name, value in row.items() if name in taken - self._signature.bound}

    def _takes(self, name: str) -> bool:
        return name in self._signature.named or (self._signature.takes_all and name not in self._signature.bound)

    def _log(self, scores: Scores, name: str, values: Sequence[Any]) -> None:
        """Logs the mean of the numbers among the values; texts of TRL's table of completions are left out."""
        numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if numbers:
            scores.add_values(f"{self.part.name}.{name}", numbers)


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _start(call: Callable[[], Any]) -> Callable[[], Any]:
    """Calls; an awaitable goes to the event loop. Returns what gives the result or raises the call's error."""
    try:
        result = call()
    except OptionError:
        raise
    except (Exception, SystemExit) as error:
        return partial(_raise, error)
    if inspect.isawaitable(result):
        return asyncio.run_coroutine_threadsafe(_awaited(result), _event_loop()).result
    return lambda: result


def _raise(error: BaseException) -> Any:
    raise error


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except SystemExit as error:
        # It would end the event loop and with it every later call.
        raise RuntimeError(f"sys.exit({error.code!r}) was called") from error


_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""Event loops by process: a forked process has no copy of the thread."""
_lock = threading.Lock()


def _event_loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if os.getpid() not in _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="async-rewards", daemon=True).start()
            _loops[os.getpid()] = loop
        return _loops[os.getpid()]
