"""Options of a data set, checked, with a preset's defaults filled in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tppo_rl.envs.data_files import Source
from tppo_rl.envs.data_presets import PRESETS, Preset
from tppo_rl.envs.data_rows import Columns, RowReader, Template, as_text
from tppo_rl.envs.text_env import HELDOUT_FRACTION, MAX_CHARACTERS, is_finite, is_integer, require

BAD_ROWS = ("fail", "skip")
_HELDOUT_FORMS = "give {fraction: 0.1}, {column: split, value: test}, {source: FILE} or {preset: NAME}"
_OF_OTHER_SOURCE = frozenset(
    {"source", "preset", "subset", "source_split", "prompt", "answer", "answer_after", "answer_pattern"}
)


@dataclass(frozen=True)
class ByHash:
    """A fraction of the prompts is held out, by their hash."""

    fraction: float = HELDOUT_FRACTION


@dataclass(frozen=True)
class ByColumn:
    """The rows are held out that have one of these values in a column."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class BySource:
    """Other rows are held out."""

    source: Source
    columns: Columns


Heldout = ByHash | ByColumn | BySource


@dataclass(frozen=True)
class DataSettings:
    """All that says which questions a data set has; equal settings give equal questions.

    Attributes:
        source, columns: Where the rows are, and which columns hold what.
        heldout: What is held out.
        prompt_template: Text with {prompt}, which may name columns too; None: the prompt alone.
        system_prompt: System message; None: the row's own, if it has one.
        examples: Number of questions of the training split that are shown as examples, or pairs of prompt and answer.
        max_prompt_characters: Most characters of all turns before the response; longer ones are dropped.
        bad_rows: What to do with rows that are unfit.
        drop_duplicates: Whether one training row counts of those with the same prompt and answer.
        split_seed: Key of the hash.
        verifier: What scores an answer, as JSON; None where there is no answer.
    """

    source: Source
    columns: Columns
    heldout: Heldout
    prompt_template: str
    system_prompt: str | None
    examples: int | tuple[tuple[str, str], ...]
    max_prompt_characters: int
    bad_rows: Literal["fail", "skip"]
    drop_duplicates: bool
    split_seed: int
    verifier: str | None


def data_settings(options: Mapping[str, Any], split_seed: int) -> DataSettings:
    """Settings from the arguments of `Dataset`, of which None means the preset's or none.

    Raises:
        ValueError: An option is wrong; names its key, its value and what would be right.
    """
    preset = _preset(options.get("preset"), "")
    given = {key: value for key, value in options.items() if value is not None}
    source = _source(given, preset, "")
    columns = _columns(given, preset, "")
    heldout = given.get("heldout")
    if heldout is None and preset is not None and "source" not in given:
        heldout = preset.heldout
    verifier = given.get("verifier", preset.verifier if preset is not None else "numeric")
    require(
        bool(columns.answer) or "verifier" not in given,
        "verifier",
        given.get("verifier"),
        "it needs an answer: name its column in `answer`, or remove the key",
    )
    bad_rows = given.get("bad_rows", preset.bad_rows if preset is not None else "fail")
    require(bad_rows in BAD_ROWS, "bad_rows", bad_rows, 'choose "fail" or "skip"')
    drop = given.get("drop_duplicates", preset.drop_duplicates if preset is not None else False)
    require(isinstance(drop, bool), "drop_duplicates", drop, "give true or false")
    longest = given.get("max_prompt_characters", MAX_CHARACTERS)
    require(
        is_integer(longest) and 0 < longest <= MAX_CHARACTERS,
        "max_prompt_characters",
        longest,
        f"give an integer from 1 to {MAX_CHARACTERS}",
    )
    return DataSettings(
        source=source,
        columns=columns,
        heldout=_heldout(heldout, given, columns),
        prompt_template=_prompt_template(given, preset),
        system_prompt=_text(given, "system_prompt", ""),
        examples=_examples(given.get("examples", 0), columns),
        max_prompt_characters=longest,
        bad_rows=bad_rows,
        drop_duplicates=drop,
        split_seed=split_seed,
        verifier=_as_json(verifier) if columns.answer else None,
    )


def _preset(name: Any, key: str) -> Preset | None:
    if name is None:
        return None
    require(
        isinstance(name, str) and name in PRESETS,
        f"{key}preset",
        name,
        f"there are {', '.join(PRESETS)}; or give source, prompt and answer",
    )
    return PRESETS[name]


def _source(given: Mapping[str, Any], preset: Preset | None, key: str) -> Source:
    places = given.get("source", preset.source if preset is not None else None)
    if isinstance(places, str):
        places = [places]
    require(
        isinstance(places, Sequence) and bool(places) and all(isinstance(place, str) and place for place in places),
        f"{key}source",
        given.get("source"),
        f"give a file, a list of files, a folder or a hub id, or a preset ({', '.join(PRESETS)})",
    )
    subset, split = _text(given, "subset", key), _text(given, "source_split", key)
    # What a preset says of the hub holds for its own hub id alone.
    if preset is not None and "source" not in given:
        subset, split = subset or preset.subset, split or preset.source_split
    return Source(tuple(places), subset, split, f"{key}source")


def _columns(given: Mapping[str, Any], preset: Preset | None, key: str, main: Columns | None = None) -> Columns:
    """Columns by option, else by preset, else those of the main source."""
    prompt = _text(given, "prompt", key)
    answer = _text(given, "answer", key)
    default = main or Columns(prompt=("prompt",))
    if preset is not None:
        default = Columns(preset.prompt, preset.answer, preset.answer_after, preset.answer_pattern)
    columns = Columns(
        prompt=(prompt,) if prompt else default.prompt,
        answer=(answer,) if answer else default.answer,
        # Marks inside of one answer column say nothing of another one.
        answer_after=_text(given, "answer_after", key) or (None if answer else default.answer_after),
        answer_pattern=_text(given, "answer_pattern", key) or (None if answer else default.answer_pattern),
        example_answer=_text(given, "example_answer", key) if main is None else None,
        key=key,
    )
    for option in ("answer_after", "answer_pattern", "example_answer"):
        require(
            bool(columns.answer) or option not in given or option == "example_answer",
            f"{key}{option}",
            given.get(option),
            "it needs an answer: name its column in `answer`, or remove the key",
        )
    RowReader(columns)
    return columns


def _text(given: Mapping[str, Any], option: str, key: str) -> str | None:
    value = given.get(option)
    require(value is None or (isinstance(value, str) and value != ""), f"{key}{option}", value, "give a text")
    return value


def _prompt_template(given: Mapping[str, Any], preset: Preset | None) -> str:
    default = preset.prompt_template if preset is not None else None
    text = _text(given, "prompt_template", "") or default or "{prompt}"
    require(
        "prompt" in Template(text, "prompt_template").names,
        "prompt_template",
        text,
        "it must hold {prompt}, the place of the prompt",
    )
    return text


def _heldout(value: Any, given: Mapping[str, Any], main: Columns) -> Heldout:
    if value is None:
        return ByHash()
    require(isinstance(value, Mapping) and bool(value), "heldout", value, _HELDOUT_FORMS)
    keys = set(value)
    if keys == {"fraction"}:
        fraction = value["fraction"]
        require(is_finite(fraction) and 0 < fraction < 1, "heldout.fraction", fraction, "give a number between 0 and 1")
        return ByHash(float(fraction))
    if keys == {"column", "value"}:
        column, values = value["column"], value["value"]
        require(isinstance(column, str) and bool(column), "heldout.column", column, "give the name of a column")
        wanted = values if isinstance(values, list | tuple) else [values]
        require(
            bool(wanted) and all(isinstance(one, str | int | float) for one in wanted),
            "heldout.value",
            values,
            "give a value of that column, or a list of them",
        )
        return ByColumn(column, tuple(str(as_text(one)) for one in wanted))
    require(keys <= _OF_OTHER_SOURCE and bool(keys & {"source", "preset"}), "heldout", dict(value), _HELDOUT_FORMS)
    own = {key: one for key, one in value.items() if one is not None}
    preset = _preset(own.get("preset"), "heldout.")
    columns = _columns(own, preset, "heldout.", main)
    require(
        bool(columns.answer) == bool(main.answer),
        "heldout.answer",
        own.get("answer"),
        "training and held-out questions must both have answers, or none of them",
    )
    return BySource(_source(own, preset, "heldout."), columns)


def _examples(value: Any, columns: Columns) -> int | tuple[tuple[str, str], ...]:
    if isinstance(value, list | tuple):
        for example in value:
            fits = isinstance(example, Mapping) and set(example) == {"prompt", "answer"}
            require(
                fits and all(isinstance(text, str) and text for text in example.values()),
                "examples",
                example,
                "give a number, or a list of mappings with `prompt` and `answer`, two texts",
            )
        return tuple((example["prompt"], example["answer"]) for example in value)
    require(
        is_integer(value) and value >= 0,
        "examples",
        value,
        "give a number, 0 or more, or a list of prompts and answers",
    )
    require(
        value == 0 or bool(columns.answer or columns.example_answer),
        "examples",
        value,
        "examples need answers: name the column in `answer` or `example_answer`, or give a list of prompts and answers",
    )
    return int(value)


def _as_json(verifier: Any) -> str:
    require(
        isinstance(verifier, str | Mapping), "verifier", verifier, "give a name, or a mapping with `type` and options"
    )
    try:
        return json.dumps(verifier, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"verifier={verifier!r}: {error}; give texts, numbers, lists and mappings") from None
