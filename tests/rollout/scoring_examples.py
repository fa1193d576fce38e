"""An environment and reward functions for tests of scoring workers; tests copy this file out of the repository.

The seed of a problem says what its environment does, and the length of a response what the reward function does.
"""

import os
import time

import gymnasium
import numpy as np

from tppo_rl.envs.text_env import AnyText

FAULTS = ("fine", "raise", "hang", "eat", "exit", "fine", "fine", "fine")


class FaultyEnv(gymnasium.Env):
    """Faults by `seed % 8` where `faulty` is "step" or "reset"; right are responses of even length."""

    wrong_reward = -0.5

    def __init__(self, split="train", turns=1, seconds=0.0, reset_seconds=0.0, faulty="", every=8, surrogate=False):
        self.observation_space = self.action_space = AnyText()
        self._turns, self._seconds, self._reset_seconds = turns, seconds, reset_seconds
        self._faulty, self._every, self._surrogate = faulty, every, surrogate

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._seed, self._said = seed, []
        time.sleep(self._reset_seconds)
        if self._faulty == "reset":
            self._fault()
        return f"problem {seed}", {"numbers": np.arange(3), "answer": seed}

    def step(self, action):
        time.sleep(self._seconds)
        self._said.append(action)
        if self._faulty == "step" and len(self._said) == self._turns:
            self._fault()
        ended = len(self._said) == self._turns
        # What it says proves that it knows the earlier turns.
        text = "\udc80" if self._surrogate else f"{self._seed} {sum(map(len, self._said))}"
        right = len(action) % 2 == 0
        return text, float(right and ended), ended, False, {"correct": right} if ended else {}

    def _fault(self):
        misbehave(FAULTS[self._seed % self._every] if self._seed % self._every < 8 else "fine")


gymnasium.register("Faulty-v0", entry_point=FaultyEnv)


def misbehave(fault):
    """Does what the word says."""
    if fault == "raise":
        raise RuntimeError("a fault of the user's")
    if fault == "hang":
        while True:
            pass
    if fault == "eat":
        eaten = []
        while True:
            eaten.append(np.ones(1 << 20))
    if fault == "exit":
        os._exit(7)


def by_problem(completions, answer, **columns):
    """A reward function whose fault is that of the problem."""
    for seed in answer:
        misbehave(FAULTS[seed % 8])
    return [float(len(text)) for text in completions]


def slow(completions, **columns):
    """A reward function that takes 0.05 s for each response."""
    time.sleep(0.05 * len(completions))
    return [1.0] * len(completions)


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """A function of verl's contract."""
    return {"score": 2.0, "length": len(solution_str)}


class CannotBeMade:
    """A reward function whose class raises."""

    def __init__(self):
        raise ValueError("no key for the judge's server")

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)


def simulated_engine(model, *, end_of_turn, **arguments):
    """An engine for `engine.type`, whose turns have 5 tokens."""
    from tppo_rl.rollout.simulated_engine import SimulatedEngine

    return SimulatedEngine(lambda _: 5, end_of_turn=end_of_turn[0] if end_of_turn else 0, vocabulary_size=20)
