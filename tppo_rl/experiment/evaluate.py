"""An evaluation of a model or checkpoint on the held-out problems of an environment: `tppo-rl evaluate`.

    source ──▶ options, model folder ──▶ env-runner of a training, in this process ──▶ answers.jsonl ──▶ evaluation.json, .md

The folder of results holds all that is needed to go on after a kill, to score the answers again, and to compare another model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tppo_rl.config.checks import check_rules
from tppo_rl.config.options import Options, algorithm_spec
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.checkpoint_files import check_whole
from tppo_rl.core.errors import OptionError
from tppo_rl.core.whole_files import make_folder, write_whole
from tppo_rl.envs.answer_extraction import Extraction, VerifierError
from tppo_rl.envs.verifiers import extracted, find_verifier
from tppo_rl.experiment.answer_report import compare_answers, figures_of, write_report
from tppo_rl.experiment.answers import Answer, Problem, problems_of, read_answers, sample_answers
from tppo_rl.experiment.sources import exported, options_of_source

SETTINGS = "settings.json"
PROBLEMS = "problems.jsonl"
_MODEL = "model"
_ENDLESS = 128
"""Problems of an environment that has them without end."""


def evaluate(
    source: str,
    folder: Path,
    *,
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    repeats: int,
    problems: int | None,
    temperature: float | None,
    greedy: bool,
    extract: Any,
    against: Path | None,
    name: str | None = None,
) -> dict[str, Any]:
    """Evaluates a model; an evaluation that was begun in the folder is completed.

    Args:
        source: A model (folder, hub id or shipped name), a checkpoint, or a run's folder.
        folder: Of the results.
        values: Options by key, such as `env`; for a checkpoint they are changes to those of its run.
        overrides: Further changes, as `key=value`; parts of an option too (`env_config.source=…`).
        repeats: Sampled answers to each problem; 0: none.
        problems: Problems, the first ones of the held-out split; None: all, or 128 where there is no end.
        temperature: Of the sampled answers; None: that of the training.
        greedy: Whether to ask once more greedily.
        extract: What votes for a majority, see `Extraction`.
        against: Folder of an evaluation of another model on the same problems.
        name: What the results call the source, where that is a copy.

    Returns:
        What is written to `evaluation.json`.

    Raises:
        OptionError: an option, or a folder that holds another evaluation.
        Exception: what the engine or the environment raises.
    """
    vote = _vote(extract)
    options, checkpoint = options_of_source(source, values, overrides)
    if options.environment.env is None:
        raise OptionError(
            "--env: a model alone does not say what it is asked; give an environment, such as tppo_rl/Dataset-v0"
        )
    number = _number_of_problems(options, problems)
    heat = options.rollout.sampling.temperature if temperature is None else temperature
    model = source if checkpoint is None else str(checkpoint)
    settings = {
        "model": model if name is None else f"{name}{model.removeprefix(source)}",
        "environment": options.environment.env,
        "env_config": options.environment.env_config,
        "problems": number,
        "repeats": repeats,
        "temperature": heat,
        "max_response_length": options.rollout.max_response_length,
        "dtype": options.models.dtype,
    }
    # Before the folder is made: one with other settings would stand in the way of the next try.
    check_rules(options, algorithm_spec("TPPO"))
    if checkpoint is not None:
        check_whole(checkpoint)
    _claim(folder, settings)
    if checkpoint is not None:
        options = options.replace(policy_model=str(exported(checkpoint, folder / _MODEL)))
    asked = problems_of(options, number)
    _write_problems(folder, asked)
    answers = _answers(options, folder, number, repeats, heat, greedy=greedy)
    evaluation: dict[str, Any] = {
        "model": settings["model"],
        "environment": settings["environment"],
        "settings": settings,
        "figures": {name: figures_of(of_way, vote) for name, of_way in answers.items()},
    }
    if against is not None:
        evaluation["against"] = _against(answers, against)
    write_report(folder, evaluation, asked, answers)
    return evaluation


def rescore(folder: Path, verifier: Any, extract: Any) -> dict[str, Any]:
    """Scores the stored answers of an evaluation again, by another verifier, and writes its report anew beside the old one.

    Args:
        folder: Of the evaluation.
        verifier: Name, place or mapping, see `find_verifier`.
        extract: What votes for a majority.

    Returns:
        What is written to `rescored/evaluation.json`.

    Raises:
        OptionError: there is no evaluation, its problems have no gold answers, or the verifier fails on an answer.
    """
    settings = _settings_of(folder)
    verify = find_verifier(verifier)
    asked = [Problem(**json.loads(line)) for line in (folder / PROBLEMS).read_text(encoding="utf-8").splitlines()]
    if any(problem.gold_answer is None for problem in asked):
        raise OptionError(f"{folder}: the environment gave no gold answers; there is nothing to verify against")

    def again(answer: Answer) -> Answer:
        try:
            score = verify(answer.text, str(asked[answer.problem].gold_answer))
        except VerifierError as error:
            raise OptionError(
                f"verifier={verifier!r}: fails on answer {answer.repeat} to problem {answer.problem} of {folder}: {error}"
            ) from None
        return replace(answer, correct=score == 1.0, reward=score)

    answers = {
        name: [again(answer) for answer in read_answers(file)]
        for name, file in _files(folder).items()
        if file.is_file()
    }
    evaluation = {
        "model": settings["model"],
        "environment": settings["environment"],
        "settings": settings | {"verifier": verifier},
        "figures": {name: figures_of(of_way, _vote(extract)) for name, of_way in answers.items() if of_way},
    }
    (folder / "rescored").mkdir(exist_ok=True)
    write_report(folder / "rescored", evaluation, asked, answers)
    return evaluation


def _number_of_problems(options: Options, asked: int | None) -> int:
    there = num_problems(options.environment, "heldout")
    if there is None:
        return asked or _ENDLESS
    if asked is not None and asked > there:
        raise OptionError(f"--problems={asked}: the held-out split has {there}; give fewer, or leave it out for all")
    return asked or there


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder of an evaluation, or checks that it is one of the same settings."""
    file = folder / SETTINGS
    text = json.dumps(settings, indent=1, default=str) + "\n"
    if file.is_file():
        if file.read_text(encoding="utf-8") != text:
            earlier = json.loads(file.read_text(encoding="utf-8"))
            changed = [key for key, value in json.loads(text).items() if earlier.get(key) != value]
            raise OptionError(
                f"--out={str(folder)!r}: holds an evaluation with other settings ({', '.join(changed)}); name another folder, or "
                "remove it"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise OptionError(f"--out={str(folder)!r}: is in use by something else; name another folder")
    make_folder(folder, "--out")
    write_whole(file, text)


def _settings_of(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except OSError:
        raise OptionError(
            f"{folder}: holds no evaluation; give the folder that `tppo-rl evaluate --out` has filled"
        ) from None


def _write_problems(folder: Path, problems: Sequence[Problem]) -> None:
    lines = (json.dumps({"prompt": problem.prompt, "gold_answer": problem.gold_answer}) + "\n" for problem in problems)
    (folder / PROBLEMS).write_text("".join(lines), encoding="utf-8")


def _files(folder: Path) -> dict[str, Path]:
    return {"sampled": folder / "answers.jsonl", "greedy": folder / "greedy.jsonl"}


def _answers(
    options: Options, folder: Path, problems: int, repeats: int, temperature: float, *, greedy: bool
) -> dict[str, list[Answer]]:
    """Asks for what is missing, by an env-runner that is made if anything is."""
    ways = {"sampled": (repeats, temperature)} if repeats else {}
    ways |= {"greedy": (1, 0.0)} if greedy else {}
    files = _files(folder)
    if all(len(read_answers(files[name])) == number * problems for name, (number, _) in ways.items()):
        return {
            name: sorted(read_answers(files[name]), key=lambda answer: (answer.problem, answer.repeat)) for name in ways
        }
    from tppo_rl.algorithms import TPPOConfig
    from tppo_rl.algorithms.ray_start import quiet_libraries
    from tppo_rl.core.waiting import stage
    from tppo_rl.rollout.chat import Chat
    from tppo_rl.rollout.env_runner import VLLMEnvRunner

    quiet_libraries()
    config = TPPOConfig().update_from_dict(options.flat())
    config.validate()
    text: Callable[[Sequence[int]], str] = Chat.of(options).text
    with stage("starting an engine"):
        env_runner = VLLMEnvRunner(config=config, worker_index=0)
    try:
        return {
            name: sample_answers(
                options, env_runner, files[name], problems=problems, repeats=number, temperature=heat, text=text
            )
            for name, (number, heat) in ways.items()
        }
    finally:
        env_runner.stop()


def _against(answers: Mapping[str, Sequence[Answer]], folder: Path) -> dict[str, Any]:
    settings = _settings_of(folder)
    name = next(iter(answers))
    other = read_answers(_files(folder)[name])
    if not other:
        raise OptionError(f"--against={str(folder)!r}: holds no {name} answers; evaluate that model in the same way")
    try:
        return {"model": settings["model"]} | compare_answers(answers[name], other)
    except ValueError as error:
        raise OptionError(f"--against={str(folder)!r}: {error}") from None


def _vote(extract: Any) -> Callable[[str], str | None]:
    """Returns what finds the vote in an answer's text."""
    try:
        extraction = Extraction.parse(extract)
    except ValueError as error:
        raise OptionError(f"--extract={extract!r}: {error}") from None

    def vote(text: str) -> str | None:
        try:
            return extracted(text, extraction)
        except VerifierError:
            return None

    return vote
