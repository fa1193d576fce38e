"""The questions of a data set: read once a process, split, filtered and counted.

Every row ends in exactly one place, and `Counts` says in which:

    rows ─▶ readable? ─▶ split ─┬─▶ held-out ─▶ short enough? ─▶ asked before? ──────────────▶ held-out questions
             │ bad_rows         │                 │ too_long       │ duplicates
             ▼                  └─▶ training ──▶ in held-out? ─▶ duplicate? ─▶ an example? ─▶ short enough? ─▶ training
                                                  │ overlap        │ duplicates  │ examples      │ too_long     questions
"""

import json
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tppo_rl.core.errors import OptionWarning
from tppo_rl.envs.answer_extraction import Extraction
from tppo_rl.envs.data_files import Source, read_rows, stamp
from tppo_rl.envs.data_rows import BadRow, Columns, Message, Question, RowReader, Template, text_of
from tppo_rl.envs.data_settings import ByColumn, ByHash, BySource, DataSettings
from tppo_rl.envs.text_env import SPLITS, Problem, Split, split_of
from tppo_rl.envs.verifiers import find_verifier

RESERVED = frozenset(
    {
        *("problem_seed", "split", "worked_solution", "messages", "conversational", "gold_answer", "tool_schemas"),
        *("prompts", "completions", "completion_ids", "environment_reward", "correct", "truncated"),
    }
)
"""Names in `reset`'s info, and arguments of reward functions, that mean something else than a column of that name."""

RENAMED = "row_"
"""Put before the names of columns that are reserved."""

CHECKED_ANSWERS = 64
"""Gold answers, spread evenly over the questions, that the verifier must accept before anything begins."""

WORKED_FORMS = ("{}", "\\boxed{{{}}}")
"""How a response may give its answer; verifiers differ in what they look for."""

_ORDER_STREAM = 0x6F72_6465
_lock = threading.Lock()


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    train: int = 0
    heldout: int = 0
    bad_rows: int = 0
    """Unfit rows that were skipped."""
    too_long: int = 0
    """Questions with more characters than `max_prompt_characters`."""
    overlap: int = 0
    """Training rows that were left out because their prompt is held out."""
    duplicates: int = 0
    """Held-out rows whose prompt is there already; training rows only with `drop_duplicates`."""
    examples: int = 0
    """Training rows that are shown as examples, and therefore not trained."""

    def summary(self) -> str:
        """The counts that are not 0, in words."""
        shown = [f"{getattr(self, one.name)} {one.name}" for one in fields(self) if getattr(self, one.name)]
        return ", ".join(shown).replace("_", " ")


@dataclass(frozen=True)
class DatasetProblem(Problem):
    """A question of a data set; `answer` is None where the data have none, `columns` are the row as it was read."""

    answer: str | None = None
    place: str = ""
    """File and line of the row."""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of both splits."""

    splits: Mapping[Split, Sequence[DatasetProblem]]
    counts: Counts


@dataclass
class _Tally:
    """Counts on the way, and the first unfit row."""

    fails: bool
    counts: Counts = field(default_factory=Counts)
    first_bad: str | None = None

    def bad(self, place: str, reason: str) -> None:
        if self.fails:
            raise ValueError(f"{place}: {reason}; correct the row or the option, or set bad_rows to 'skip'")
        self.counts.bad_rows += 1
        self.first_bad = self.first_bad or f"{place}: {reason}"


def load_questions(settings: DataSettings) -> Questions:
    """The questions of equal settings; all environments of a process share them, until a file is written anew.

    Raises:
        ValueError: A source cannot be read, a row is unfit and `bad_rows` is "fail", or the verifier rejects gold answers.
    """
    sources = [settings.source, *([settings.heldout.source] if isinstance(settings.heldout, BySource) else [])]
    with _lock:
        return _load(settings, tuple(stamp(source) for source in sources))


@lru_cache(maxsize=4)
def order_of_epoch(num_problems: int, split_seed: int, epoch: int) -> np.ndarray:
    """The rows of one epoch in their order: int64 [num_problems], a permutation that follows from the arguments alone."""
    order = np.random.default_rng([_ORDER_STREAM, split_seed, epoch]).permutation(num_problems)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=4)
def _load(settings: DataSettings, stamps: tuple[object, ...]) -> Questions:
    tally = _Tally(settings.bad_rows == "fail")
    train, heldout = _split_questions(settings, tally)
    prefix, train = _prefix(settings, train, tally)
    splits: dict[Split, list[DatasetProblem]] = {
        "train": _problems(settings, train, prefix, tally),
        "heldout": _problems(settings, heldout, prefix, tally),
    }
    counts = tally.counts
    counts.train, counts.heldout = len(splits["train"]), len(splits["heldout"])
    if counts.bad_rows or counts.overlap or counts.too_long:
        first = f"; the first bad row: {tally.first_bad}" if tally.first_bad else ""
        _warn(settings, f"{counts.summary()}{first}")
    return Questions({split: _with_worked_solutions(settings, splits[split]) for split in SPLITS}, counts)


def _warn(settings: DataSettings, text: str) -> None:
    warnings.warn(f"source={', '.join(settings.source.places)}: {text}", OptionWarning, stacklevel=2)


def _read(source: Source, columns: Columns, tally: _Tally) -> Iterator[Question]:
    reader = RowReader(columns)
    before = tally.counts.rows
    for row in read_rows(source):
        tally.counts.rows += 1
        if row.columns is None:
            tally.bad(row.place, row.reason)
            continue
        try:
            question = reader.question(row.place, row.columns)
        except BadRow as error:
            tally.bad(row.place, str(error))
        else:
            yield question
    if tally.counts.rows == before:
        places = ", ".join(source.places)
        raise ValueError(f"{source.key}={places!r}: holds no rows at all; give a source with questions")


def _split_questions(settings: DataSettings, tally: _Tally) -> tuple[list[Question], list[Question]]:
    """Training and held-out questions, of which no two have the same prompt."""
    train: list[Question] = []
    heldout: dict[str, Question] = {}
    seen: set[tuple[str, str | None]] = set()

    def hold_out(question: Question) -> None:
        if heldout.setdefault(question.identity, question) is not question:
            tally.counts.duplicates += 1

    for question in _read(settings.source, settings.columns, tally):
        if settings.drop_duplicates:
            # Before anything else: published files repeat their rows a hundred times.
            key = ("\n".join([*(turn["content"] for turn in question.before), question.text]), question.answer)
            if key in seen:
                tally.counts.duplicates += 1
                continue
            seen.add(key)
        try:
            is_held_out = _is_held_out(settings, question)
        except BadRow as error:
            tally.bad(question.place, str(error))
            continue
        hold_out(question) if is_held_out else train.append(question)
    if isinstance(settings.heldout, BySource):
        for question in _read(settings.heldout.source, settings.heldout.columns, tally):
            hold_out(question)
    kept = [question for question in train if question.identity not in heldout]
    tally.counts.overlap = len(train) - len(kept)
    return kept, list(heldout.values())


def _is_held_out(settings: DataSettings, question: Question) -> bool:
    rule = settings.heldout
    if isinstance(rule, ByHash):
        return split_of(question.identity, settings.split_seed, rule.fraction) == "heldout"
    if isinstance(rule, ByColumn):
        return text_of(question.columns, rule.column, f"heldout.column={rule.column!r}") in rule.values
    return False


def _prefix(settings: DataSettings, train: list[Question], tally: _Tally) -> tuple[list[Message], list[Question]]:
    """System message and examples before every prompt, and the training questions that are left."""
    template = Template(settings.prompt_template, "prompt_template")
    if isinstance(settings.examples, int):
        shown, left = train[: settings.examples], train[settings.examples :]
        if len(shown) < settings.examples:
            raise ValueError(f"examples={settings.examples}: there are {len(train)} training questions; give fewer")
        tally.counts.examples = len(shown)
        pairs = [({**one.columns, "prompt": one.text}, str(one.example_answer)) for one in shown]
    else:
        left = train
        pairs = [({"prompt": prompt}, answer) for prompt, answer in settings.examples]
    turns: list[Message] = []
    if settings.system_prompt is not None:
        turns.append({"role": "system", "content": settings.system_prompt})
    for columns, answer in pairs:
        try:
            prompt = template.fill(columns)
        except BadRow as error:
            raise ValueError(f"examples: {error}; examples have a prompt and no columns") from None
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return turns, left


def _problems(
    settings: DataSettings, questions: Sequence[Question], prefix: Sequence[Message], tally: _Tally
) -> list[DatasetProblem]:
    template = Template(settings.prompt_template, "prompt_template")
    problems = []
    for question in questions:
        try:
            prompt = template.fill({**question.columns, "prompt": question.text})
        except BadRow as error:
            tally.bad(question.place, str(error))
            continue
        messages = _turns_before(question, prefix, has_system=settings.system_prompt is not None)
        length = len(prompt) + sum(len(turn["content"]) for turn in messages)
        if length > settings.max_prompt_characters:
            tally.counts.too_long += 1
            continue
        details = {_free_name(name, question.columns): value for name, value in question.columns.items()}
        details |= {"messages": messages, "conversational": question.is_conversation}
        if question.answer is not None:
            details["gold_answer"] = question.answer
            # Reward functions look for a column of this name.
            details.setdefault("answer", question.answer)
        problems.append(DatasetProblem(prompt, None, details, question.answer, question.place, question.columns))
    return problems


def _turns_before(question: Question, prefix: Sequence[Message], *, has_system: bool) -> list[Message]:
    """The system message first, of the settings or else of the row; then examples, then the row's earlier turns."""
    system = [] if has_system else [turn for turn in question.before if turn["role"] == "system"]
    return [*system, *prefix, *(turn for turn in question.before if turn["role"] != "system")]


def _free_name(name: str, columns: Mapping[str, Any]) -> str:
    if name not in RESERVED:
        return name
    free = RENAMED + name
    while free in columns:
        free = RENAMED + free
    return free


def _with_worked_solutions(settings: DataSettings, problems: list[DatasetProblem]) -> list[DatasetProblem]:
    """The problems with responses that the verifier accepts, in the form that it accepts most of.

    Raises:
        ValueError: It rejects most gold answers in every form, so every response would count as wrong.
    """
    if settings.verifier is None or not problems:
        return problems
    spec = json.loads(settings.verifier)
    extract = spec.get("extract") if isinstance(spec, Mapping) else None
    picked = np.unique(np.linspace(0, len(problems) - 1, CHECKED_ANSWERS).astype(int))
    checked = [problems[index] for index in picked]
    form: str | None
    form, rejected = _best_form(find_verifier(spec), _forms(extract), checked)
    if len(rejected) > len(checked) / 2 and _looks_for_more(extract, checked):
        # No response can be written from a pattern; the answers are compared with themselves.
        form, plain = None, {key: value for key, value in spec.items() if key != "extract"}
        _, rejected = _best_form(find_verifier(plain), WORKED_FORMS[:1], checked)
    found = f"rejects {len(rejected)} of {len(checked)} gold answers as responses"
    if rejected:
        found += f", the first is {str(rejected[0].answer)!r} ({rejected[0].place})"
    if len(rejected) > len(checked) / 2:
        raise ValueError(
            f"verifier={json.loads(settings.verifier)!r}: {found}; choose a verifier that fits the answers, or find the answer "
            "in its column with answer_after or answer_pattern"
        )
    if rejected:
        _warn(
            settings,
            f"verifier={json.loads(settings.verifier)!r}: {found}; responses to them will always count as wrong: correct the rows, "
            "or choose another verifier",
        )
    if form is None:
        return problems
    return [replace(problem, worked_solution=form.format(problem.answer)) for problem in problems]


def _best_form(
    verify: Callable[[str, str], float], forms: Sequence[str], checked: Sequence[DatasetProblem]
) -> tuple[str, list[DatasetProblem]]:
    """Returns the form in which the verifier accepts most gold answers, and the problems whose answers it rejects in that."""
    rejected = {form: [one for one in checked if not _accepts(verify, form, str(one.answer))] for form in forms}
    form = min(forms, key=lambda form: len(rejected[form]))
    return form, rejected[form]


def _looks_for_more(extract: Any, checked: Sequence[DatasetProblem]) -> bool:
    """Whether a verifier looks for a pattern that no gold answer has, because responses write more than the answer."""
    if not isinstance(extract, Mapping) or "pattern" not in extract:
        return False
    where = Extraction.parse(extract)
    return all(where(str(one.answer)) is None for one in checked)


def _forms(extract: Any) -> tuple[str, ...]:
    """How a response may give its answer to a verifier with this `extract`."""
    if not isinstance(extract, Mapping) or "after" not in extract:
        return WORKED_FORMS
    return (*WORKED_FORMS, str(extract["after"]).replace("{", "{{").replace("}", "}}") + " {}")


def _accepts(verify: Callable[[str, str], float], form: str, answer: str) -> bool:
    try:
        return float(verify(form.format(answer), answer)) >= 1.0
    except Exception:  # a verifier of the user's may raise anything
        return False
