"""What an environment breaks of its contract: `tppo-rl check-env`.

Everything that could hang, raise or eat memory happens in a scoring worker, as in a run; a fresh one must give the same again:

    first worker ──▶ prompts, gold answers, wrong ones, hostile ones, times ──▶ killed
    second worker ─▶ the same prompts and steps once more

Only the types of a step are looked at in this process, with turns that a worker has survived.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tppo_rl.config.checks import check_environment
from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.experiment.env_worker import Asked, EnvWorker
from tppo_rl.experiment.hostile_texts import HOSTILE
from tppo_rl.rollout.dialogs import SCORER_ERROR, Step
from tppo_rl.rollout.responses import Failure

MAX_TURNS = 50
"""Turns after which an episode need not have ended: the run's cap ends it."""
WRONG = ("no idea", "<answer>no idea</answer>", "\\boxed{\\text{no idea}}", "#### no idea")
"""Turns that are a right answer to nothing."""
_PLAYED_TURNS = 4
_SHOWN = 160

Verdict = Literal["pass", "fails", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    check: str
    verdict: Verdict
    seen: str


@dataclass
class _Record:
    """What the first worker gave, to be compared with what the second one gives."""

    prompts: list[Asked] = field(default_factory=list)
    steps: list[tuple[int, tuple[str, ...], list[Any]]] = field(default_factory=list)
    """Seed, turns, answers."""


def check_env(env: str, env_config: dict[str, Any], *, episodes: int, deadline_s: float) -> Iterator[Finding]:
    """Checks an environment and gives the findings one by one.

    Args:
        env: Its name, as the option `env` has it.
        env_config: Its arguments.
        episodes: Problems of each split that are looked at.
        deadline_s: Longest time of a reset or step.

    Raises:
        OptionError: no such environment, or arguments that it does not take.
    """
    # The reward is none that asks the environment: one that gives no rewards of its own can be checked, too.
    rewards = {"type": "length", "beyond": 10**6}
    options = Options.of({"env": env, "env_config": env_config, "rewards": rewards, "scoring_deadline_s": deadline_s})
    check_environment(options)
    record = _Record()
    try:
        first = EnvWorker(options)
    except Exception as error:
        yield Finding("is made in a process of its own", "fails", _short(f"{type(error).__name__}: {error}"))
        return
    with first:
        yield Finding("is made in a process of its own", "pass", "for both splits")
        record.prompts = [first.reset("train", seed) for seed in range(episodes)]
        lost = [one for one in record.prompts if isinstance(one.answer, Failure)]
        if lost:
            yield Finding(
                "gives prompts", "fails", f"{len(lost)} of {episodes} resets failed: {_words(lost[0].answer)}"
            )
            return
        again = [first.reset("train", seed) for seed in reversed(range(episodes))][::-1]
        heldout = [first.reset("heldout", seed) for seed in range(episodes)]
        golden = _check_gold(first, record)
        wrong = _check_wrong(first, record, says_correct=golden.verdict != "not applicable")
        hostile = _check_hostile(first, record, deadline_s)
    with EnvWorker(options) as second:
        elsewhere = [second.reset("train", seed) for seed in range(episodes)]
        yield _compare_prompts(record.prompts, again, elsewhere)
        yield _compare_steps(second, record)
    yield _check_splits(record.prompts, heldout)
    ends = _check_ends(options, [one.gold for one in record.prompts[:4]])
    yield ends
    yield golden
    yield wrong
    yield hostile
    yield _times("time of a reset", [*first.reset_seconds, *second.reset_seconds])
    yield _times("time of a step", [*first.step_seconds, *second.step_seconds])


def _check_gold(worker: EnvWorker, record: _Record) -> Finding:
    check, golden = "accepts the gold answer", [(seed, one.gold) for seed, one in enumerate(record.prompts) if one.gold]
    answers = [_take(worker, record, seed, *gold) for seed, gold in golden]
    if not answers:
        return Finding(check, "not applicable", "reset's info has no worked_solution")
    refused = [
        number for number, one in enumerate(answers) if not (isinstance(one, Step) and one.correct and one.ended)
    ]
    if refused:
        seed, gold = golden[refused[0]]
        seen = f"{len(refused)} of {len(answers)} refused: seed {seed}, {gold[-1]!r:.80}: {_words(answers[refused[0]])}"
        return Finding(check, "fails", _short(seen))
    return Finding(check, "pass", f"{len(answers)} of {len(answers)}")


def _check_wrong(worker: EnvWorker, record: _Record, *, says_correct: bool) -> Finding:
    check = "refuses a wrong answer"
    counts: Counter[str] = Counter()
    golds = [one.gold[-1] for one in record.prompts if one.gold]
    for seed, prompt in enumerate(record.prompts):
        # The answer to another problem has the right form; it may be right by chance, so only its refusal counts.
        others = [gold for gold in golds if gold not in prompt.gold][seed % max(len(golds), 1) :][:1]
        for text in (WRONG[seed % len(WRONG)], *others):
            answer = _take(worker, record, seed, text)
            if isinstance(answer, Failure):
                counts[f"failed ({answer.kind})"] += 1
            elif answer.correct:
                if text in WRONG:
                    return Finding(check, "fails", _short(f"seed {seed}: {text!r} counts as right"))
            elif answer.ended and answer.correct is not None:
                counts["refused"] += 1
            else:
                counts["went on" if not answer.ended else "ended without a verdict"] += 1
    seen = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    broken = [what for what in counts if what.startswith("failed") and SCORER_ERROR not in what]
    if broken or (says_correct and not counts["refused"]):
        return Finding(check, "fails", f"{seen}; a wrong answer must end as wrong, or see on_reward_failure")
    return Finding(check, "pass" if counts["refused"] or counts["went on"] else "not applicable", seen)


def _check_hostile(worker: EnvWorker, record: _Record, deadline_s: float) -> Finding:
    check, named = "survives hostile texts", 0
    for number, (what, text) in enumerate(HOSTILE.items()):
        seed = number % len(record.prompts)
        answer: Any = worker.step(worker.reset("train", seed), (), text).answer
        if isinstance(answer, Failure):
            if answer.kind != SCORER_ERROR:
                return Finding(check, "fails", _short(f"{what}: {_words(answer)}"))
            named += 1
        elif answer.correct and text.strip() not in map(str.strip, record.prompts[seed].gold):
            return Finding(check, "fails", _short(f"{what}: counts as right for seed {seed}"))
    seen = f"{len(HOSTILE)} texts, none right, none longer than {deadline_s:g} s"
    return Finding(check, "pass", seen + (f"; {named} named failures of the scorer" if named else ""))


def _compare_prompts(first: Sequence[Asked], again: Sequence[Asked], elsewhere: Sequence[Asked]) -> Finding:
    check = "same seed, same prompt"
    for what, others in (("asked once more", again), ("in another process", elsewhere)):
        different = [
            seed for seed, (one, two) in enumerate(zip(first, others, strict=True)) if one.content != two.content
        ]
        if different:
            seed = different[0]
            seen = f"{len(different)} of {len(first)} differ {what}: seed {seed}, {first[seed].text!r:.60} and {others[seed].text!r:.60}"
            return Finding(check, "fails", _short(seen))
    return Finding(check, "pass", f"{len(first)} problems, three times each, in two processes")


def _compare_steps(worker: EnvWorker, record: _Record) -> Finding:
    check = "same turns, same steps"
    for seed, turns, answers in record.steps:
        found = _play(worker, worker.reset("train", seed), turns)
        if found != answers:
            return Finding(
                check,
                "fails",
                _short(f"seed {seed}, {turns[0]!r:.40}: {_words(answers[-1])}, then {_words(found[-1])}"),
            )
    return Finding(check, "pass", f"{len(record.steps)} episodes, in two processes")


def _check_splits(train: Sequence[Asked], heldout: Sequence[Asked]) -> Finding:
    check = "splits share no prompt"
    lost = [one for one in heldout if isinstance(one.answer, Failure)]
    if lost:
        return Finding(check, "fails", _short(f"{len(lost)} held-out resets failed: {_words(lost[0].answer)}"))
    prompts = [{one.text for one in split} for split in (train, heldout)]
    shared = prompts[0] & prompts[1]
    if shared:
        return Finding(check, "fails", _short(f"{len(shared)} prompts are in both, such as {min(shared)!r}"))
    return Finding(check, "pass", f"{len(prompts[0])} prompts to train, {len(prompts[1])} held out")


def _check_ends(options: Options, golds: Sequence[tuple[str, ...]]) -> Finding:
    """Plays episodes here: what a worker gives back has one end alone."""
    check = "terminated, truncated"
    seen: Counter[str] = Counter()
    env = None
    try:
        env = make_text_env(options.environment, "train")
        for seed, gold in enumerate(golds):
            env.reset(seed=seed)
            turns = gold or WRONG[:1]
            for turn in range(MAX_TURNS):
                _, _, terminated, truncated, info = env.step(turns[min(turn, len(turns) - 1)])
                if not all(isinstance(one, bool) for one in (terminated, truncated)):
                    return Finding(check, "fails", f"must be bool, got {terminated!r} and {truncated!r}")
                if terminated and truncated:
                    return Finding(check, "fails", f"both are True for seed {seed}; a task that is over is not cut off")
                if truncated and info.get("correct"):
                    return Finding(check, "fails", f"a right answer is truncated for seed {seed}")
                if terminated or truncated:
                    seen["terminated" if terminated else "truncated"] += 1
                    break
            else:
                seen[f"still open after {MAX_TURNS} turns"] += 1
    except Exception as error:
        return Finding(check, "fails", _short(f"{type(error).__name__}: {error}"))
    finally:
        if env is not None:
            env.close()
    return Finding(check, "pass", ", ".join(f"{number} {what}" for what, number in seen.items()))


def _times(check: str, seconds: Sequence[float]) -> Finding:
    if not seconds:
        return Finding(check, "not applicable", "")
    return Finding(
        check, "pass", f"median {_time(statistics.median(seconds))}, worst {_time(max(seconds))} of {len(seconds)}"
    )


def _take(worker: EnvWorker, record: _Record, seed: int, *texts: str) -> Any:
    """Plays an episode of these turns, the last one again and again, and keeps it; returns the answer to its last turn."""
    turns: tuple[str, ...] = ()
    answers: list[Any] = []
    prompt = worker.reset("train", seed)
    while len(turns) < max(_PLAYED_TURNS, len(texts)) and (
        not answers or (isinstance(answers[-1], Step) and not answers[-1].ended)
    ):
        text = texts[min(len(turns), len(texts) - 1)]
        answers.append(worker.step(prompt, turns, text).answer)
        turns += (text,)
    record.steps.append((seed, turns, answers))
    return answers[-1]


def _play(worker: EnvWorker, prompt: Asked, turns: Sequence[str]) -> list[Any]:
    return [worker.step(prompt, turns[:index], turn).answer for index, turn in enumerate(turns)]


def _words(answer: Step | Failure | Any) -> str:
    if isinstance(answer, Failure):
        return f"{answer.kind}: {answer.message}"
    if isinstance(answer, Step):
        return f"reward {answer.reward:g}, correct {answer.correct}, {'over' if answer.ended else 'goes on'}"
    return repr(answer)


def _short(text: str) -> str:
    # Texts of others go to a terminal: no control characters, no halves of surrogate pairs.
    plain = "".join(one if one.isprintable() else " " for one in text)
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
