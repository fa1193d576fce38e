"""Questions of a data set of the user's: JSON lines, JSON, CSV, Parquet, a folder of `datasets`, the hub."""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest
from typing import Any

import numpy as np

from tppo_rl.envs.data_questions import Counts, DatasetProblem, load_questions, order_of_epoch
from tppo_rl.envs.data_settings import DataSettings, data_settings
from tppo_rl.envs.text_env import Reply, TextEnv, require
from tppo_rl.envs.verifiers import find_verifier


class Dataset(TextEnv[DatasetProblem]):
    """One question of a data set an episode, one turn. Registered as ``tppo_rl/Dataset-v0``.

    With n questions in its split, problem number k is question ``k % n`` in the order of epoch ``k // n``: an epoch asks every
    question once, in an order that follows from `split_seed` and the number of the epoch.

    A prompt is a text or a list of messages. The observation is the last user turn. `reset`'s info adds ``messages``, the turns
    before it (system message, examples, earlier turns; each with ``role`` and ``content``), ``gold_answer`` (str) where there
    is one, and every column of the row under its own name; ``answer`` is the gold answer where no column is called so. A column whose name means something else there (``split``,
    ``messages``, ``completions`` and the like) has ``row_`` before it.

    Where the data have no answers, the last step gives neither ``correct`` nor ``score``. A response that the verifier fails on
    scores 0, and the last step's info then holds ``scorer_error`` (str).

    Args:
        source: A file (.jsonl, .json, .parquet, .csv, .tsv), a list of files, a folder that `datasets` has saved, or a hub id.
        preset: Name of a known data set; it sets source, columns, template and verifier, each of which may be overridden.
        subset: Subset of a hub id.
        source_split: Split of a hub id or folder.
        prompt: Column of the prompt, or a template such as "{Body} {Question}"; by default the column ``prompt``.
        answer: Column of the answer, dotted where nested, or a template; by default there is none.
        answer_after: The answer is what stands after the last of these in its column.
        answer_pattern: Regular expression that finds the answer in its column: its group 1, or all of it.
        prompt_template: Text around the prompt, "{prompt}\\nThink step by step."; it may name columns, too.
        system_prompt: System message, in place of one that the row has.
        examples: Number of questions of the training split that stand answered before every prompt and are not trained, or a
            list of mappings with ``prompt`` and ``answer``.
        example_answer: Column or template of an example's answer; by default the whole answer column.
        heldout: {fraction: 0.1} by hash of the prompt, {column: split, value: test}, or {source: FILE} or {preset: NAME}, which
            may have columns of their own. A prompt that would be in both splits is held out.
        shuffle: Whether epochs are shuffled.
        max_prompt_characters: Most characters of prompt and messages together; longer ones are dropped and counted.
        bad_rows: "fail" at the first unfit row, or "skip" and count them.
        drop_duplicates: Whether training asks a question once an epoch that several rows have.
        verifier: Name or place of a verifier, or a mapping of ``type`` and its options.
        **common: Options of every environment, see `TextEnv`.

    Raises:
        ValueError: On a bad option or an unfit row; names the option or the line, and what is allowed.
    """

    rewards_scores_alone = True

    def __init__(
        self,
        *,
        source: str | Sequence[str] | None = None,
        preset: str | None = None,
        subset: str | None = None,
        source_split: str | None = None,
        prompt: str | None = None,
        answer: str | None = None,
        answer_after: str | None = None,
        answer_pattern: str | None = None,
        prompt_template: str | None = None,
        system_prompt: str | None = None,
        examples: int | Sequence[Mapping[str, str]] | None = None,
        example_answer: str | None = None,
        heldout: Mapping[str, Any] | None = None,
        shuffle: bool = True,
        max_prompt_characters: int | None = None,
        bad_rows: str | None = None,
        drop_duplicates: bool | None = None,
        verifier: str | Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require(isinstance(shuffle, bool), "shuffle", shuffle, "give true or false")
        self.shuffle = shuffle
        self.settings: DataSettings = data_settings(
            {
                "source": source,
                "preset": preset,
                "subset": subset,
                "source_split": source_split,
                "prompt": prompt,
                "answer": answer,
                "answer_after": answer_after,
                "answer_pattern": answer_pattern,
                "prompt_template": prompt_template,
                "system_prompt": system_prompt,
                "examples": examples,
                "example_answer": example_answer,
                "heldout": heldout,
                "max_prompt_characters": max_prompt_characters,
                "bad_rows": bad_rows,
                "drop_duplicates": drop_duplicates,
                "verifier": verifier,
            },
            self.split_seed,
        )
        self.gives_correct = self.settings.verifier is not None
        self._verify = find_verifier(json.loads(self.settings.verifier)) if self.settings.verifier is not None else None
        questions = load_questions(self.settings)
        self.counts: Counts = questions.counts
        self._problems = questions.splits[self.split]
        if not self._problems:
            raise ValueError(
                f"split={self.split!r}: no question belongs to it ({self.counts.summary() or 'no rows'}); give more rows, or "
                "another heldout, which is {fraction: 0.1} by default"
            )

    @property
    def num_problems(self) -> int:
        """Number of questions in this split."""
        return len(self._problems)

    def longest_prompts(self, number: int) -> Sequence[DatasetProblem]:
        """The questions of this split with the most characters in prompt and messages, longest first."""

        def characters(problem: DatasetProblem) -> int:
            turns = problem.details["messages"]
            return len(problem.prompt) + sum(len(turn["content"]) for turn in turns)

        return nlargest(number, self._problems, key=characters)

    def problem(self, seed: int) -> DatasetProblem:
        """Problem number `seed` of this split."""
        epoch, position = divmod(seed, self.num_problems)
        row = order_of_epoch(self.num_problems, self.split_seed, epoch)[position] if self.shuffle else position
        return self._problems[int(row)]

    def candidates(self, rng: np.random.Generator) -> Iterator[DatasetProblem]:
        """Questions of this split, drawn at random."""
        while True:
            yield self._problems[int(rng.integers(self.num_problems))]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, see `TextEnv.reset`."""
        prompt, info = super().reset(seed=seed, options=options)
        # All environments of the process share the rows; what a reward function changes must stay its own.
        return prompt, copy.deepcopy(info)

    def respond(self, problem: DatasetProblem, text: str, turn: int) -> Reply:
        """Score the answer; the episode ends with the first turn."""
        if self._verify is None or problem.answer is None:
            return Reply(ends=True)
        try:
            score = float(self._verify(text, problem.answer))
        except Exception as error:  # verifiers parse the model's text and may raise anything on it
            return Reply(score=0.0, info={"scorer_error": repr(error)})
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            return Reply(score=0.0, info={"scorer_error": f"the verifier must return 0.0 to 1.0, not {score!r}"})
        return Reply(score=score)
