"""Answers of a model to the problems of an environment: sampled by a training's env-runner, kept line by line in a file.

A file that holds a part of the answers is completed, so that an evaluation goes on after it was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.fragments import Fragment, fragments_from_table
from tppo_rl.core.prompts import Ticket
from tppo_rl.core.waiting import stage

_CHUNKS_OF_SLOTS = 4
"""Answers between two writes, in slots: all slots but those of the last answers are always full."""


@dataclass(frozen=True)
class Problem:
    """What a model is asked."""

    prompt: str
    gold_answer: str | None
    """None where the environment does not tell it."""


@dataclass(frozen=True)
class Answer:
    """One answer to one problem."""

    problem: int
    repeat: int
    """0 to n - 1; greedy answers have a file of their own and 0 alone."""
    text: str
    tokens: int
    correct: bool | None
    """None where the environment does not say."""
    reward: float
    truncated: bool


def problems_of(options: Options, number: int) -> list[Problem]:
    """Returns the first problems of the held-out split, as env-runners ask them."""
    env: gymnasium.Env = make_text_env(options.environment, "heldout")
    try:
        found = []
        for seed in range(number):
            prompt, info = env.reset(seed=seed)
            gold = info.get("gold_answer")
            found.append(Problem(str(prompt), None if gold is None else str(gold)))
        return found
    finally:
        env.close()


def read_answers(file: Path) -> list[Answer]:
    """Returns the answers of a file; a last line that a kill has cut off is left out.

    Raises:
        ValueError: another line is no answer.
    """
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        return [Answer(**json.loads(line)) for line in whole]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file}: holds a line that is no answer: {error}") from None


def sample_answers(
    options: Options,
    env_runner: Any,
    file: Path,
    *,
    problems: int,
    repeats: int,
    temperature: float,
    text: Callable[[Sequence[int]], str],
) -> list[Answer]:
    """Completes a file of answers, and returns all of them by problem and repeat.

    Args:
        options: Of the env-runner.
        env_runner: A VLLMEnvRunner with an engine.
        file: May hold a part of the answers.
        problems: Problems of the held-out split, the first ones.
        repeats: Answers to each.
        temperature: 0 is greedy.
        text: Turns tokens into text.

    Raises:
        Exception: the error of the env-runner.
    """
    answers = {(answer.problem, answer.repeat): answer for answer in read_answers(file)}
    _cut_off_half_a_line(file)
    wanted = [(problem, repeat) for repeat in range(repeats) for problem in range(problems)]
    missing = [pair for pair in wanted if pair not in answers]
    size = _CHUNKS_OF_SLOTS * options.rollout.num_envs_per_env_runner
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    with stage(f"answers ({how})", total=len(wanted), unit="answered", part="evaluation") as answering:
        done = len(wanted) - len(missing)
        for chunk in (missing[start : start + size] for start in range(0, len(missing), size)):
            tickets = [Ticket(index, index, problem) for index, (problem, _) in enumerate(chunk)]
            # The env-runner counts from 0 for each chunk.
            count = partial_count(answering.advance, done)
            table = env_runner.evaluate(tickets, temperature, count)
            if isinstance(table, Exception):
                raise table
            assert table is not None, "no version was asked for"
            episodes = sorted(fragments_from_table(table), key=lambda episode: episode.prompt_index)
            found = [_answer(episode, *pair, text) for episode, pair in zip(episodes, chunk, strict=True)]
            with file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(asdict(answer)) + "\n" for answer in found)
            answers |= dict(zip(chunk, found, strict=True))
            done += len(chunk)
    return [answers[pair] for pair in sorted(wanted)]


def partial_count(advance: Callable[[int], None], before: int) -> Callable[[int], None]:
    """Returns a function that tells `advance` a count with what was done before added to it."""

    def tell(done: int) -> None:
        advance(before + done)

    return tell


def by_problem(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Gives the answers of each problem, by repeat."""
    ordered = sorted(answers, key=lambda answer: (answer.problem, answer.repeat))
    repeats = 1 + max((answer.repeat for answer in ordered), default=0)
    for start in range(0, len(ordered), repeats):
        yield ordered[start : start + repeats]


def _answer(episode: Fragment, problem: int, repeat: int, text: Callable[[Sequence[int]], str]) -> Answer:
    return Answer(
        problem,
        repeat,
        text(episode.tokens.tolist()),
        len(episode),
        episode.correct,
        float(episode.rewards.sum()),
        episode.truncated,
    )


def _cut_off_half_a_line(file: Path) -> None:
    if file.is_file():
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            file.write_bytes(whole)
