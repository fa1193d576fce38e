"""An environment that breaks its contract where it is told to; tests copy this file out of the repository."""

import hashlib
import itertools
import os
import time

import gymnasium

from tppo_rl.envs.text_env import AnyText, split_of


class Doubling(gymnasium.Env):
    """Double a number. `fault` says what is wrong with it."""

    def __init__(self, split="train", fault=""):
        self.observation_space = self.action_space = AnyText()
        self._split, self._fault = ("train" if fault == "overlap" else split), fault
        self._resets = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._resets += 1
        self._begun = self._fault != "two turns"
        if self._fault == "reset":
            raise RuntimeError("no problem today")
        digest = hashlib.sha256(str(seed).encode()).digest()
        numbers = (int.from_bytes(digest[:4], "little") + step for step in itertools.count())
        self._number = next(n for n in numbers if split_of(f"2 * {n}", 0) == self._split)
        prompt = f"2 * {self._number}"
        if self._fault == "unseeded":
            prompt += f", attempt {self._resets}"
        if self._fault == "process":
            prompt += f", process {os.getpid()}"
        if self._fault == "no gold":
            return prompt, {}
        if not self._begun:
            return prompt, {"worked_turns": ("begin", str(2 * self._number))}
        return prompt, {"worked_solution": "nonsense" if self._fault == "gold" else str(2 * self._number)}

    def step(self, action):
        if not self._begun and action == "begin":
            self._begun = True
            return "go on", 0.0, False, False, {}
        right = self._begun and action == str(2 * self._number)
        if self._fault == "all right" and "idea" in action:
            right = True
        if self._fault == "hostile right" and "nan" in action:
            right = True
        if self._fault == "raises":
            action.encode()
        if self._fault == "hangs" and len(action) > 50_000:
            time.sleep(60)
        reward = float(right)
        if self._fault == "moody":
            reward += os.getpid()
        terminated, truncated = True, self._fault == "both"
        if self._fault == "integers":
            terminated = 1
        if self._fault == "cut":
            terminated, truncated = False, True
        info = {} if self._fault == "no gold" else {"correct": right}
        return "", reward, terminated, truncated, info


gymnasium.register("Doubling-v0", entry_point=Doubling)
