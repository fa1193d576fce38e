"""Rewards of training responses: the parts of the option `rewards`, and a penalty for length.

A part is a reward function by one of two contracts. TRL's is called with keyword arguments, each a list with one entry for each
response, and returns a list of numbers; None is "does not apply":

    def reward(*, prompts, completions, completion_ids, **columns) -> list[float | None]: ...

verl's is called for one response, and returns a number or a mapping with `score`:

    def compute_score(data_source, solution_str, ground_truth, extra_info=None, **reward_kwargs) -> float | dict: ...

Both may be async. The environment's rewards stand at the ends of turns, where the environment gives them; all other parts stand
at the end of the response. They are called for all responses together that ended within one request to the env-runner, never between engine
steps.

A part that raises, gives no finite number or a list of another length has failed: `on_reward_failure` says what becomes of the
response, and it is counted. No failure is a reward of 0. Not scored either are responses on which the environment failed.

Overlong shaping (DAPO, arXiv 2503.14476, eq. 13), for a response of n tokens under a cap L with a buffer of b tokens:

    0                  n <= L - b
    (L - b - n) / b    L - b < n <= L
    -1                 n > L

Evaluation scores responses by the environment alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import REWARDS
from tppo_rl.core.reward_parts import ENVIRONMENT, NOTHING_APPLIES, RewardPart, RewardParts
from tppo_rl.rollout.responses import Failure, Response, Scores, Verdict
from tppo_rl.rollout.reward_functions import Collect, Outcome, RewardFunction
from tppo_rl.rollout.reward_terms import Term, unknown_correctness

DROP, RETRY, WRONG = "drop", "retry", "wrong"
"""Values of `on_reward_failure`; WRONG is one of `truncated_responses`, too."""
MASK = "mask"


def overlong_penalty(length: int, *, cap: int, buffer: int) -> float:
    """Returns the penalty of the module's equation, between -1 and 0.

    Args:
        length: n, tokens of the response.
        cap: L, tokens.
        buffer: b, tokens, at least 1.
    """
    return max(-1.0, min(0.0, (cap - buffer - length) / buffer))


class Rewards:
    """Rewards of the training split.

    Args:
        parts: What the reward adds up.
        max_response_length: Cap of the responses, tokens.
        overlong_buffer: Number of last tokens under the cap over which the penalty grows; 0: no penalty.
        imitates_right: Whether right responses are imitated, so that every environment must say which are right.
        on_failure: What becomes of a response that could not be scored.
        truncated: What becomes of a response that the cap cut off.
        wrong_reward: Reward of what counts as wrong unscored; None: the sum of the parts.
        calls: Whether this object calls functions; False where worker processes do, and nothing is imported here.
        on_call: Called with the name of each function before it is called.

    Raises:
        OptionError: no such reward function, or arguments that it does not take.
    """

    def __init__(
        self,
        parts: RewardParts | None = None,
        *,
        max_response_length: int = 0,
        overlong_buffer: int = 0,
        imitates_right: bool = False,
        on_failure: str = DROP,
        truncated: str = "score",
        wrong_reward: float | None = None,
        calls: bool = True,
        on_call: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.on_failure = on_failure
        self.truncated = truncated
        self._parts = parts or RewardParts.parse(ENVIRONMENT)
        self._per_turn = sum(part.weight for part in self._parts if part.spec.name == ENVIRONMENT)
        self._gives_turns = any(part.spec.name == ENVIRONMENT for part in self._parts)
        self._has_functions = any(part.spec.name != ENVIRONMENT for part in self._parts)
        self._functions = [
            _function(self._parts, index, part)
            for index, part in enumerate(self._parts)
            if part.spec.name != ENVIRONMENT and calls
        ]
        self._on_call = on_call
        self._cap = max_response_length
        self._overlong_buffer = overlong_buffer
        self._imitates_right = imitates_right
        self._wrong_reward = wrong_reward

    @classmethod
    def of(cls, options: Options, *, calls: bool = True, on_call: Callable[[str], None] = lambda name: None) -> Rewards:
        """Returns the rewards that the options ask for.

        Args:
            options: Options of the run.
            calls: Whether they call functions, see the class.
            on_call: See the class.

        Raises:
            OptionError: no such reward function, or arguments that it does not take.
        """
        own = options.rewards
        cap = options.rollout.max_response_length
        return cls(
            own.rewards,
            max_response_length=cap,
            overlong_buffer=0 if own.overlong_fraction is None else max(1, round(own.overlong_fraction * cap)),
            imitates_right=options.policy_loss.positive_lm_coef > 0,
            on_failure=own.on_reward_failure,
            truncated=own.truncated_responses,
            wrong_reward=own.wrong_reward,
            calls=calls,
            on_call=on_call,
        )

    @classmethod
    def of_evaluation(cls) -> Rewards:
        """Returns the rewards of held-out responses: the environment's; what it cannot score counts as wrong."""
        return cls(on_failure=WRONG)

    @property
    def calls_functions(self) -> bool:
        """Whether anything but the environment scores responses."""
        return self._has_functions

    def of_turn(self, reward: float) -> float:
        """Returns the reward of a turn, given the environment's reward."""
        return reward * self._per_turn if self._gives_turns else 0.0

    def penalty(self, length: int) -> float:
        """Returns the penalty for the length of a response, tokens."""
        if not self._overlong_buffer:
            return 0.0
        return overlong_penalty(length, cap=self._cap, buffer=self._overlong_buffer)

    def of_wrong(self, environment_wrong: float) -> float:
        """Returns the reward of a response that counts as wrong without having been scored.

        Args:
            environment_wrong: What the environment gives a wrong response.
        """
        if self._wrong_reward is not None:
            return self._wrong_reward
        by_name = {ENVIRONMENT: environment_wrong, "plus_minus_one": -1.0}
        return sum(part.weight * by_name.get(part.spec.name, 0.0) for part in self._parts)

    def verdicts(self, responses: Sequence[Response], scores: Scores, *, version: int = 0) -> list[Verdict]:
        """Lets all parts score responses; the rewards are those that the ends of episodes add, without the penalty.

        Args:
            responses: Responses that have ended.
            scores: Gets what the parts gave, and what they log beside.
            version: Policy version, for functions that ask for it.

        Raises:
            OptionError: an option cannot work with the environment, for example because it does not say what is right.
        """
        if not responses:
            return []
        if self._imitates_right and any(one.correct is None and not one.truncated for one in responses):
            raise unknown_correctness("positive_lm_coef", "set positive_lm_coef to 0")
        outcomes = self._outcomes(responses, version, scores)
        for part in self._parts:
            if part.spec.name == ENVIRONMENT:
                outcomes[part.name] = [response.environment_reward for response in responses]
        verdicts = [
            self._verdict({name: given[index] for name, given in outcomes.items()}) for index in range(len(responses))
        ]
        for verdict in verdicts:
            for name, value in verdict.parts.items():
                scores.add_values(name, [value])
        return verdicts

    def _outcomes(self, responses: Sequence[Response], version: int, scores: Scores) -> dict[str, list[Outcome]]:
        # All are begun before the first one is waited for: async parts run at the same time.
        begun = [(function, self._begin(function, responses, version, scores)) for function in self._functions]
        outcomes = {}
        for function, collect in begun:
            self._on_call(function.part.name)
            outcomes[function.part.name] = collect()
        if self.on_failure == RETRY:
            for function in self._functions:
                given = outcomes[function.part.name]
                failed = [index for index, outcome in enumerate(given) if isinstance(outcome, Failure)]
                if failed:
                    again = self._begin(function, [responses[index] for index in failed], version, scores)()
                    for index, outcome in zip(failed, again, strict=True):
                        given[index] = outcome
        return outcomes

    def _begin(self, function: RewardFunction, responses: Sequence[Response], version: int, scores: Scores) -> Collect:
        self._on_call(function.part.name)
        return function.begin(responses, version, scores)

    def _verdict(self, outcomes: dict[str, Outcome]) -> Verdict:
        failures = tuple(outcome for outcome in outcomes.values() if isinstance(outcome, Failure))
        values = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, float)}
        if not failures and not values:
            failures = (Failure(NOTHING_APPLIES, NOTHING_APPLIES, "no part of rewards applies: all returned None"),)
        weights = {function.part.name: function.part.weight for function in self._functions}
        reward = sum(weight * values[name] for name, weight in weights.items() if name in values)
        return Verdict(reward, values, failures)


def _function(parts: RewardParts, index: int, part: RewardPart) -> RewardFunction:
    try:
        function: Any = REWARDS.resolve(part.spec)
    except OptionError as error:
        raise parts.message(index, error) from None
    if isinstance(function, Term):
        function.load()
    return RewardFunction(part, function)
