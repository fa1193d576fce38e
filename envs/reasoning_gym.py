"""Any task of the reasoning-gym package, scored by that package's own scorer."""

import difflib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from tppo_rl.envs.reasoning_steps import STEPS
from tppo_rl.envs.text_env import Problem, Reply, TextEnv, require

ITEMS_PER_DATASET = 32
"""Building a dataset can cost more than all its items (word lists), so one serves several draws."""

HASH_ORDERED_TASKS = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note"})
"""Tasks whose generators iterate over sets of strings: their problems depend on PYTHONHASHSEED."""


SCORED_BY_TRUTH = frozenset({"game_of_life_halting"})
"""Tasks whose answers are True and False, and whose own scorer takes every text for True, and True for right."""
NAN_IS_RIGHT = frozenset({"complex_arithmetic"})
"""Tasks whose own scorer takes an answer that is not a number for right: its distance is smaller than none."""

_OPEN, _CLOSE = "<answer>", "</answer>"


@dataclass(frozen=True)
class Item(Problem):
    """An item of a reasoning-gym dataset together with the dataset, which knows how to score it."""

    dataset: Any = None
    entry: Mapping[str, Any] | None = None


class ReasoningGym(TextEnv[Item]):
    """One question of a reasoning-gym task an episode, one turn. Registered as ``tppo_rl/ReasoningGym-v0``.

    The answer is what stands in the last ``<answer>…</answer>`` of the response, without white space around
    it, or the whole response where there is no such tag. Its score comes from the task's ``score_answer``,
    0.0 to 1.0, and some tasks give partial credit; it counts as ``correct`` from 1.0 on. Where the
    scorer fails, the last step's info holds ``scorer_error`` (str), and the score means nothing.

    Scorers of some tasks evaluate the answer as an expression: with a model that is not trusted, run the
    environment where it can do no harm.

    `reset`'s info adds ``task`` (str) and, where the task has a single gold answer, ``answer`` (str); with `steps` also
    ``early_solutions`` (list of str), which stop after each step but the last and give what was found so far as the answer.

    Args:
        task: Name of a task, for example "chain_sum" (``reasoning_gym.factory.DATASETS`` holds all).
        task_config: Options of that task, as its configuration class names them, without seed and size.
        steps: Worked solutions have the steps before the answer, where `reasoning_steps` can write them; problems and scores
            are the same.
        **common: Options of every environment, see `TextEnv`.

    Raises:
        ValueError: On a bad option; names the option, its value and what is allowed.
    """

    rewards_scores_alone = True

    def __init__(
        self, *, task: str = "chain_sum", task_config: dict[str, Any] | None = None, steps: bool = False, **common: Any
    ) -> None:
        super().__init__(**common)
        _check_task(task)
        require(isinstance(steps, bool), "steps", steps, "give true or false")
        require(
            not steps or task in STEPS, "steps", steps, f"there are none for task={task!r}; only for {', '.join(STEPS)}"
        )
        self.steps = steps
        config = {} if task_config is None else dict(task_config)
        for key in ("seed", "size"):
            require(key not in config, "task_config", task_config, f"leave {key!r} out: the environment sets it")
        self.task = task
        self.task_config = config
        try:
            self._dataset(seed=0)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"task_config={config!r}: reasoning-gym refuses it ({error}); give options of "
                f"{_config_class(task).__name__}: {', '.join(_option_names(task))}"
            ) from error

    def candidates(self, rng: np.random.Generator) -> Iterator[Item]:
        """The items of one small dataset after the other."""
        while True:
            dataset = self._dataset(seed=int(rng.integers(2**31)))
            for index in range(ITEMS_PER_DATASET):
                yield self._item(dataset, index)

    def respond(self, problem: Item, text: str, turn: int) -> Reply:
        """Score the answer; the episode ends with the first turn."""
        tagged = tagged_answer(text)
        answer = text.strip() if tagged is None else tagged
        if self.task in SCORED_BY_TRUTH and problem.entry is not None:
            return Reply(score=float(answer.casefold() == str(problem.entry["answer"]).casefold()))
        if self.task in NAN_IS_RIGHT and "nan" in answer.casefold().replace(" ", ""):
            return Reply(score=0.0)
        try:
            return Reply(score=float(problem.dataset.score_answer(answer, problem.entry)))
        except Exception as error:  # scorers parse the model's text and may raise anything on it
            return Reply(score=0.0, info={"scorer_error": repr(error)})

    def _dataset(self, seed: int) -> Any:
        import reasoning_gym

        return reasoning_gym.create_dataset(self.task, seed=seed, size=ITEMS_PER_DATASET, **self.task_config)

    def _item(self, dataset: Any, index: int) -> Item:
        entry = dataset[index]
        details: dict[str, Any] = {"task": self.task}
        if entry["answer"] is None:
            return Item(entry["question"], None, details, dataset, entry)
        details["answer"] = str(entry["answer"])
        solution = _answer(entry["answer"])
        if self.steps:
            steps = STEPS[self.task](entry)
            done = accumulate(step.text for step in steps)
            solutions = [text + _answer(step.answer) for text, step in zip(done, steps, strict=True)]
            *details["early_solutions"], solution = solutions
        return Item(entry["question"], solution, details, dataset, entry)


def tagged_answer(text: str) -> str | None:
    """The last answer in tags, without white space around it; None where there is none.

    It is that of reasoning-gym's `extract_answer`, whose regular expression takes time in proportion to the square of the text.
    """
    found, start = None, text.find(_OPEN)
    while start >= 0 and (end := text.find(_CLOSE, start + len(_OPEN))) >= 0:
        found = text[start + len(_OPEN) : end].strip()
        start = text.find(_OPEN, end + len(_CLOSE))
    return found


def _answer(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def _check_task(task: str) -> None:
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        closest = difflib.get_close_matches(str(task), DATASETS, n=3, cutoff=0.0)
        raise ValueError(f"task={task!r}: reasoning-gym has no such task; the closest names are {', '.join(closest)}")
    if task in HASH_ORDERED_TASKS and os.environ.get("PYTHONHASHSEED", "random") == "random":
        warnings.warn(
            f"task={task!r}: its problems differ from process to process; set PYTHONHASHSEED to a number",
            stacklevel=3,
        )


def _config_class(task: str) -> type:
    from reasoning_gym.factory import DATASETS

    return DATASETS[task][1]


def _option_names(task: str) -> list[str]:
    return sorted(set(_config_class(task).__dataclass_fields__) - {"seed", "size"})  # type: ignore[attr-defined]
