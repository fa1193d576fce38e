"""All verifiers and all tasks of reasoning-gym in one environment; a test copies this file out of the repository."""

import functools
import warnings

import gymnasium

from tppo_rl.envs.reasoning_gym import ReasoningGym
from tppo_rl.envs.text_env import Problem, Reply, TextEnv
from tppo_rl.envs.verifiers import find_verifier

ANSWERS = {"exact": "forty two", "numeric": "42", "math": r"\frac{1}{2}", "multiple_choice": "B"}
HANG = "please hang"


@functools.cache
def responder(target):
    """What answers a text for one target: once a process, for some tasks take seconds to make."""
    kind, _, name = target.partition(":")
    if kind == "verifier":
        verify = find_verifier(name)
        # Importing math-verify takes longer than the deadline of an answer.
        verify(ANSWERS[name], ANSWERS[name])
        return lambda text: Reply(score=verify(text, ANSWERS[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = ReasoningGym(task=name)
    problem = env.problem(0)
    env.respond(problem, "", 0)
    return lambda text: env.respond(problem, text, 0)


class Hostile(TextEnv[Problem]):
    """Problem k is that of target `k % len(targets)`."""

    def __init__(self, *, targets, **common):
        super().__init__(**common)
        self.targets = targets
        for target in targets:
            responder(target)

    def candidates(self, rng):
        raise NotImplementedError

    def problem(self, seed):
        return Problem(self.targets[seed % len(self.targets)])

    def respond(self, problem, text, turn):
        while text == HANG:
            pass
        try:
            return responder(problem.prompt)(text)
        except Exception as error:
            return Reply(score=0.0, info={"scorer_error": repr(error)})


gymnasium.register("Hostile-v0", entry_point=Hostile)
