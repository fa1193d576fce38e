"""Columns, templates and messages become prompt, earlier turns and answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.envs.data_rows import BadRow, Columns, Question, RowReader, Template, as_text


def read(row: dict[str, Any], prompt: str = "prompt", *answer: str, **options: Any) -> Question:
    return RowReader(Columns((prompt,), answer, **options)).question("a.jsonl, line 1", row)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a} and {b}", "one and 2"),
        ("{{a}} is {a}", "{a} is one"),
        ("{c.d}, {c.e.1}", "deep, y"),
        ("{x.y}", "dotted name"),
        ("{a:sentence} {q:sentence}", "one. What?"),
        ("{f} {g}", "27 0.5"),
    ],
)
def test_templates(template: str, text: str) -> None:
    row = {
        "a": "one",
        "b": 2,
        "c": {"d": "deep", "e": ["x", "y"]},
        "x.y": "dotted name",
        "q": "What?",
        "f": 27.0,
        "g": 0.5,
    }
    assert Template(template, "prompt").fill(row) == text
    assert read(row, template).text == text


@pytest.mark.parametrize("template", ["{", "}", "{}", "{0!r}", "{a:>3}", "{a:{b}}", "\\boxed{}"])
def test_templates_that_cannot_be_understood(template: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt=.*twice"):
        RowReader(Columns((template,)))


@given(st.text())
def test_a_prompt_comes_through_as_it_is(text: str) -> None:
    if text.strip():
        assert read({"prompt": text}).text == text
        assert read({"prompt": text}, "<{prompt}>").text == f"<{text}>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (3, "3"),
        (3.0, "3"),
        (1e22, "1" + "0" * 22),
        (0.25, "0.25"),
        (True, "True"),
        *((value, None) for value in (None, float("nan"), [1], {"a": 1}, b"a")),
    ],
)
def test_values_as_text(value: Any, text: str | None) -> None:
    assert as_text(value) == text


def test_messages_are_split_before_the_last_user_turn() -> None:
    turns = [{"role": "system", "content": "S"}, user("1"), {"role": "assistant", "content": "2"}, user("3")]
    question = read({"prompt": turns})
    assert (question.text, list(question.before)) == ("3", turns[:3])
    parts = [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]
    assert read({"prompt": parts}).text == "ab"


def test_what_makes_two_prompts_the_same() -> None:
    text = read({"prompt": "On the beach. How many?"})
    spaced = read({"prompt": [{"role": "system", "content": "S"}, user(" On the\nbeach . How many ?")]})
    assert text.identity == spaced.identity
    assert text.identity != read({"prompt": [user("Earlier."), *spaced.before, user(spaced.text)]}).identity
    assert read({"prompt": "sort 1 2 3"}).identity != read({"prompt": "sort 12 3"}).identity


@pytest.mark.parametrize(
    ("options", "gold"),
    [
        ({}, "so 5 #### 1 #### 18 (apples)"),
        ({"answer_after": "####"}, "18 (apples)"),
        ({"answer_pattern": r"\d+"}, "5"),
        ({"answer_pattern": r"(\w+)\)"}, "apples"),
        ({"answer_after": "####", "answer_pattern": r"\d+"}, "18"),
    ],
)
def test_the_answer_is_found_in_its_column(options: dict[str, Any], gold: str) -> None:
    question = read({"prompt": "?", "answer": "so 5 #### 1 #### 18 (apples)"}, "prompt", "answer", **options)
    assert question.answer == gold
    assert question.example_answer == "so 5 #### 1 #### 18 (apples)"


def test_answers_may_be_nested_or_made_of_columns() -> None:
    row = {"prompt": "?", "reward_model": {"ground_truth": "7"}, "unit": "km", "how": "because"}
    assert read(row, "prompt", "reward_model.ground_truth").answer == "7"
    question = read(row, "prompt", "{reward_model.ground_truth} {unit}", example_answer="how")
    assert (question.answer, question.example_answer) == ("7 km", "because")
    assert read(row).answer is None


def test_of_several_columns_the_first_one_counts_that_is_there() -> None:
    reader = RowReader(Columns(("input", "{a} {b}"), ("target", "result")))
    question = reader.question("", {"a": 1, "b": 2, "result": 3})
    assert (question.text, question.answer) == ("1 2", "3")
    with pytest.raises(BadRow, match="prompt='input': no column 'input'; the row has a"):
        reader.question("", {"a": 1})


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"question": "?"}, {}, "prompt='prompt': no column 'prompt'; the row has question"),
        ({"prompt": "half \ud83d"}, {}, "no text of Unicode"),
        ({"prompt": "?", "answer": "\ude00"}, {"answer": ("answer",)}, "no text of Unicode"),
        ({"prompt": " \n"}, {}, "the prompt is empty"),
        ({"prompt": None}, {}, "holds no text"),
        ({"prompt": {"a": 1}}, {}, "holds no text"),
        ({"prompt": []}, {}, "the last message must be the user's"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, {}, "the last message must be the user's"),
        ({"prompt": [{"role": "judge", "content": "a"}]}, {}, "a message needs a role"),
        ({"prompt": ["text"]}, {}, "a message needs a role"),
        ({"prompt": [user(None)]}, {}, "a text as content"),
        ({"prompt": [user([{"type": "image"}])]}, {}, "a text as content"),
        ({"prompt": "?"}, {"answer": ("answer",)}, "answer='answer': no column 'answer'"),
        ({"prompt": "?", "answer": None}, {"answer": ("answer",)}, "holds no text and no number"),
        ({"prompt": "?", "answer": " "}, {"answer": ("answer",)}, "it is empty"),
        ({"prompt": "?", "answer": "1"}, {"answer": ("answer",), "answer_after": "####"}, "has no such mark"),
        ({"prompt": "?", "answer": "1"}, {"answer": ("answer",), "answer_pattern": "x"}, "not found"),
        ({"prompt": "?", "answer": "1"}, {"answer": ("answer",), "answer_pattern": "1|(x)"}, "not found"),
    ],
)
def test_unfit_rows(row: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        RowReader(Columns(("prompt",), **options)).question("", row)
    assert reason in str(error.value)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"^answer_pattern='\(': no regular expression"):
        RowReader(Columns(("prompt",), ("answer",), answer_pattern="("))
