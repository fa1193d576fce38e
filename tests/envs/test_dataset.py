"""A data set as an environment: epochs, splits, what `reset` tells, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_sets import number_of_rows, published, sample, write_lines
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.core.errors import OptionWarning
from tppo_rl.envs import data_questions
from tppo_rl.envs.data_presets import PRESETS
from tppo_rl.envs.data_questions import Counts, order_of_epoch
from tppo_rl.envs.dataset import Dataset
from tppo_rl.envs.text_env import split_of
from tppo_rl.envs.verifiers import find_verifier

NUM_ROWS = 200
SAMPLES = {
    "gsm8k": "gsm8k.jsonl",
    "svamp": "svamp.jsonl",
    "asdiv": "asdiv.jsonl",
    "mawps": "mawps.jsonl",
    "aime24": "aime24.jsonl",
    "amc23": "amc23.jsonl",
    "math500": "math500.jsonl",
    "dapo_math_17k": "dapo_math.jsonl",
}
PUBLISHED = {
    "gsm8k": ["gsm8k_train.jsonl", "gsm8k_test.jsonl"],
    "svamp": ["svamp.jsonl"],
    "asdiv": ["asdiv.jsonl"],
    "mawps": [f"mawps_{name}.jsonl" for name in ("addsub", "multiarith", "singleeq", "singleop")],
    "aime24": ["aime24.jsonl"],
    "amc23": ["amc23.jsonl"],
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_lines(tmp_path / "rows.jsonl", ({"prompt": f"Double {k}.", "answer": 2 * k} for k in range(NUM_ROWS)))


def both(**config: Any) -> tuple[Dataset, Dataset]:
    return Dataset(split="train", **config), Dataset(split="heldout", **config)


def prompts(env: Dataset, start: int = 0, stop: int | None = None) -> list[str]:
    return [env.reset(seed=k)[0] for k in range(start, env.num_problems if stop is None else stop)]


def places_of_rows(counts: Counts) -> int:
    return sum(vars(counts).values()) - counts.rows


@given(st.integers(1, 50), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_an_epoch_is_a_permutation(num_problems: int, split_seed: int, epoch: int) -> None:
    order = order_of_epoch(num_problems, split_seed, epoch)
    assert sorted(order) == list(range(num_problems))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_an_epoch_asks_every_question_once(source: str, split: Any) -> None:
    env = Dataset(source=source, answer="answer", split=split)
    n = env.num_problems
    epochs = [prompts(env, epoch * n, (epoch + 1) * n) for epoch in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert all(len(set(epoch)) == n for epoch in epochs)
    assert all(one != other for one, other in pairwise(epochs))


def test_without_shuffling_the_order_is_that_of_the_file(source: str) -> None:
    env = Dataset(source=source, shuffle=False)
    once = prompts(env)
    assert once == sorted(once, key=lambda prompt: int(prompt[7:-1]))
    assert prompts(env, env.num_problems, 2 * env.num_problems) == once


def test_another_process_has_the_same_order_and_splits(source: str) -> None:
    program = (
        "import json, sys; from tppo_rl.envs.dataset import Dataset\n"
        "envs = [Dataset(source=sys.argv[1], split=split) for split in ('train', 'heldout')]\n"
        "print(json.dumps([[env.reset(seed=k)[0] for k in range(300)] for env in envs]))"
    )
    run = subprocess.run([sys.executable, "-c", program, source], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [prompts(env, 0, 300) for env in both(source=source)]


@given(st.integers(0, 2**32))
def test_splits_by_hash_are_disjoint_and_complete(split_seed: int) -> None:
    train, heldout = both(source=sample("chats.jsonl"), split_seed=split_seed, heldout={"fraction": 0.5})
    asked = [json.dumps(env.reset(seed=k)[1]["messages"]) for env in (train, heldout) for k in range(env.num_problems)]
    assert len(set(asked)) == len(asked) == train.counts.rows == 20


def test_the_fraction_is_that_of_the_hash(source: str) -> None:
    train, heldout = both(source=source, heldout={"fraction": 0.3}, split_seed=5)
    assert heldout.num_problems == pytest.approx(0.3 * NUM_ROWS, abs=20)
    assert train.num_problems + heldout.num_problems == NUM_ROWS
    words = [f"Double {k} ." for k in range(NUM_ROWS)]
    assert heldout.num_problems == sum(split_of(text, 5, 0.3) == "heldout" for text in words)
    templated = Dataset(source=source, heldout={"fraction": 0.3}, split_seed=5, prompt_template="Please: {prompt}")
    assert sorted(prompts(templated)) == sorted(f"Please: {prompt}" for prompt in prompts(train))


def test_splits_by_column() -> None:
    train, heldout = both(source=sample("chats.jsonl"), answer="answer", heldout={"column": "split", "value": "test"})
    assert (train.num_problems, heldout.num_problems) == (16, 4)
    assert {heldout.reset(seed=k)[1]["row_split"] for k in range(4)} == {"test"}
    assert {train.reset(seed=k)[1]["row_split"] for k in range(16)} == {"train"}
    assert train.reset(seed=0)[1]["split"] == "train"


def test_a_prompt_of_both_files_is_held_out_counted_and_warned_of_once(tmp_path: Path, source: str) -> None:
    other = write_lines(
        tmp_path / "other.jsonl", [{"prompt": f"Double  {k} .", "answer": 2 * k} for k in [*range(190, 250), 190]]
    )
    with pytest.warns(UserWarning, match="10 overlap") as warned:
        train, heldout = both(source=source, answer="answer", heldout={"source": other})
    assert len(warned) == 1
    assert (train.num_problems, heldout.num_problems) == (190, 60)
    assert (train.counts.overlap, train.counts.duplicates) == (10, 1)
    assert places_of_rows(train.counts) == train.counts.rows == 261
    identity = [{prompt.replace("  ", " ").replace(" .", ".") for prompt in prompts(env)} for env in (train, heldout)]
    assert not identity[0] & identity[1]


def test_held_out_questions_of_another_preset_have_their_own_columns() -> None:
    train, heldout = both(
        preset="gsm8k", source=sample("gsm8k.jsonl"), heldout={"preset": "amc23", "source": sample("amc23.jsonl")}
    )
    assert (train.num_problems, heldout.num_problems) == (13, 8)
    assert "\\frac" in heldout.reset(seed=0)[0]
    assert heldout.step(heldout.reset(seed=0)[1]["gold_answer"])[4] == {"correct": True, "score": 1.0}


def test_a_process_reads_a_file_once(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = data_questions.read_rows
    monkeypatch.setattr(data_questions, "read_rows", lambda place: (reads.append(place), real(place))[1])
    envs = [Dataset(source=source, answer="answer", split=split) for split in ("train", "heldout") for _ in range(32)]  # type: ignore[arg-type]
    assert len(reads) == 1
    assert all(env._problems is envs[0]._problems for env in envs[:32])
    write_lines(Path(source), [{"prompt": f"Another {k}", "answer": k} for k in range(99)])
    assert "Another" in Dataset(source=source, answer="answer").reset(seed=0)[0]


def test_what_a_reward_changes_stays_its_own(tmp_path: Path) -> None:
    env = Dataset(source=sample("dapo_math.jsonl"), answer="reward_model.ground_truth")
    _, info = env.reset(seed=0)
    gold = info["reward_model"]["ground_truth"]
    info["reward_model"]["ground_truth"] = info["messages"] = None
    _, again = env.reset(seed=0)
    assert (again["reward_model"]["ground_truth"], again["messages"]) == (gold, [])


def test_verl_rows_come_through() -> None:
    env = Dataset(source=sample("dapo_math.jsonl"), answer="reward_model.ground_truth", drop_duplicates=True)
    prompt, info = env.reset(seed=3)
    assert prompt.startswith("Solve the following")
    assert (info["data_source"], info["ability"]) == ("math_dapo", "MATH")
    assert set(info["reward_model"]) == {"ground_truth", "style"}
    assert info["extra_info"]["index"].startswith("own-")
    assert info["gold_answer"] == info["reward_model"]["ground_truth"]
    assert env.counts.duplicates == 16
    assert places_of_rows(env.counts) == env.counts.rows == 24


def test_columns_keep_their_names_and_reserved_ones_are_safe(tmp_path: Path) -> None:
    row = {
        "prompt": "Q",
        "answer": "a #### 5",
        "split": "x",
        "row_split": "y",
        "correct": 1,
        "my column": [1, {"a": 2}],
    }
    env = Dataset(
        source=write_lines(tmp_path / "a.jsonl", [row]),
        answer="answer",
        answer_after="####",
        heldout={"column": "split", "value": "-"},
    )
    _, info = env.reset(seed=7)
    assert (info["split"], info["row_row_split"], info["row_split"]) == ("train", "x", "y")
    assert (info["row_correct"], "correct" in info) == (1, False)
    assert (info["answer"], info["gold_answer"], info["my column"]) == ("a #### 5", "5", [1, {"a": 2}])
    assert info["worked_solution"] == "5"


def test_rewards_find_the_answer_by_name_where_no_column_has_that_name() -> None:
    _, info = Dataset(preset="svamp", source=sample("svamp.jsonl")).reset(seed=0)
    assert (info["answer"], info["gold_answer"], info["Answer"]) == ("18", "18", 18.0)


def test_turns_before_the_prompt() -> None:
    chats = {"source": sample("chats.jsonl"), "answer": "answer"}
    prompt, info = Dataset(**chats).reset(seed=0)
    assert prompt == "Add one."
    assert [turn["role"] for turn in info["messages"]] == ["system", "user", "assistant"]
    assert info["row_messages"] == "a column of that name"
    config = {
        "system_prompt": "Be brief.",
        "examples": [{"prompt": "1?", "answer": "2"}],
        "prompt_template": "{prompt}!",
    }
    prompt, info = Dataset(**chats, **config).reset(seed=0)
    assert prompt == "Add one.!"
    assert info["messages"][:3] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1?!"},
        {"role": "assistant", "content": "2"},
    ]
    assert [turn["role"] for turn in info["messages"][3:]] == ["user", "assistant"]
    _, info = Dataset(**chats, examples=config["examples"]).reset(seed=0)
    assert [turn["content"] for turn in info["messages"]][:3] == ["You are terse.", "1?", "2"]


def test_examples_are_answered_whole_and_never_asked() -> None:
    config = {"preset": "gsm8k", "source": sample("gsm8k.jsonl")}
    plain, (train, heldout) = Dataset(**config), both(**config, examples=3)
    _, info = train.reset(seed=0)
    assert [turn["role"] for turn in info["messages"]] == ["user", "assistant"] * 3
    shown = [turn["content"] for turn in info["messages"]]
    assert all("####" in answer for answer in shown[1::2])
    assert not set(shown[::2]) & set(prompts(train) + prompts(heldout))
    assert set(shown[::2]) | set(prompts(train)) == set(prompts(plain))
    assert heldout.reset(seed=0)[1]["messages"] == info["messages"]
    assert train.counts.examples == 3
    short = Dataset(**config, examples=1, example_answer="It is {answer}")
    assert short.reset(seed=0)[1]["messages"][1]["content"].startswith("It is The boxes")


def test_prompts_that_are_too_long_are_dropped_and_counted(source: str) -> None:
    with pytest.warns(UserWarning, match="100 too long"):
        env = Dataset(source=source, answer="answer", max_prompt_characters=10)
    assert env.counts.too_long == 100
    assert max(map(len, prompts(env))) == 10
    with pytest.warns(UserWarning, match="100 too long"):
        Dataset(source=source, answer="answer", max_prompt_characters=16, system_prompt="S" * 6)


@pytest.mark.parametrize(
    "bad", ['{"prompt": ', '{"question": "Q", "answer": 1}', '{"prompt": "Q"}', '{"prompt": "", "answer": 1}']
)
def test_a_bad_row_is_named_and_ends_or_is_skipped(tmp_path: Path, bad: str) -> None:
    rows = [{"prompt": f"Double {k}.", "answer": 2 * k} for k in range(40)]
    place = write_lines(tmp_path / "rows.jsonl", [*rows[:7], bad, *rows[7:], bad])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 8: .*set bad_rows to 'skip'"):
        Dataset(source=place, answer="answer")
    with pytest.warns(UserWarning, match=r"2 bad rows; the first bad row: .*rows\.jsonl, line 8: ") as warned:
        train, heldout = both(source=place, answer="answer", bad_rows="skip")
    assert len(warned) == 1
    assert train.counts.bad_rows == 2
    assert train.num_problems + heldout.num_problems == 40


def test_without_answers_nothing_is_correct_or_wrong(source: str) -> None:
    env = Dataset(source=source)
    _, info = env.reset(seed=0)
    assert not env.gives_correct
    assert not {"gold_answer", "worked_solution"} & info.keys()
    assert env.step("4") == ("", 0.0, True, False, {})
    assert Dataset(source=source, answer="answer").gives_correct


def test_a_verifier_of_the_users_own_and_one_that_fails(tmp_path: Path, source: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def same_length(response, answer, *, slack=0):\n    return abs(len(response) - len(answer)) <= slack\n"
        "def fails(response, answer):\n    return 1.0 if response == answer else {}['x']\n"
        "def wild(response, answer):\n    return 1.0 if response == answer else 7\n"
    )
    env = Dataset(source=source, answer="answer", verifier={"type": f"{file}:same_length", "slack": 1})
    _, info = env.reset(seed=0)
    assert env.step(info["gold_answer"] + "x")[4] == {"correct": True, "score": 1.0}
    for name, words in (("fails", "KeyError"), ("wild", "return")):
        env = Dataset(source=source, answer="answer", verifier=f"{file}:{name}")
        env.reset(seed=0)
        _, reward, _, _, info = env.step("?")
        assert (reward, info["correct"]) == (0.0, False)
        assert words in info["scorer_error"]


def test_a_verifier_that_does_not_fit_the_answers_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"Capital {k}?", "answer": f"Town {'abcdefghij'[k % 10]}"} for k in range(40)]
    place = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"^verifier='numeric': rejects .*choose a verifier that fits"):
        Dataset(source=place, answer="answer")
    assert Dataset(source=place, answer="answer", verifier="exact").num_problems
    mixed = write_lines(tmp_path / "mixed.jsonl", [*rows[:3], *({"prompt": f"{k}?", "answer": k} for k in range(40))])
    words = r"verifier='numeric': rejects \d+ of \d+ gold .* the first is 'Town a' \(.*mixed.jsonl, line 1\); .* correct the rows"
    with pytest.warns(OptionWarning, match=words):
        Dataset(source=mixed, answer="answer")


@pytest.mark.parametrize(
    ("extract", "response"),
    [({"after": "{Answer}"}, "7 or\n{Answer} 12"), ({"pattern": r"so (\d+)!"}, "7 so 12!"), ("boxed", r"7 \boxed{12}")],
    ids=str,
)
def test_plain_gold_answers_fit_a_verifier_that_looks_for_a_mark(tmp_path: Path, extract: Any, response: str) -> None:
    place = write_lines(tmp_path / "rows.jsonl", [{"prompt": f"{k}?", "answer": "12"} for k in range(40)])
    env = Dataset(source=place, answer="answer", verifier={"type": "numeric", "extract": extract})
    _, info = env.reset(seed=0)
    worked = info.get("worked_solution")
    assert (worked is None) == (extract != "boxed" and "pattern" in extract)
    for text, reward in ((response, 1.0), ("12", 0.0), (worked or response, 1.0)):
        env.reset(seed=0)
        assert env.step(text)[1] == reward
    # The answers themselves have to be numbers.
    words = write_lines(tmp_path / "words.jsonl", [{"prompt": f"{k}?", "answer": "twelve"} for k in range(40)])
    with pytest.raises(ValueError, match=r"rejects .*choose a verifier that fits"):
        Dataset(source=words, answer="answer", verifier={"type": "numeric", "extract": extract})


def test_a_pattern_that_the_answers_have_is_checked_with_them(tmp_path: Path) -> None:
    def env_of(answer: str, verifier: dict[str, Any]) -> Dataset:
        rows = [{"prompt": f"{k}?", "answer": answer} for k in range(40)]
        return Dataset(source=write_lines(tmp_path / "rows.jsonl", rows), answer="answer", verifier=verifier)

    boxed = env_of("12", {"type": "numeric", "extract": {"pattern": r"\\boxed\{(\d+)\}"}})
    assert boxed.reset(seed=0)[1]["worked_solution"] == r"\boxed{12}"
    marked = env_of("5+7=12\n#### 12", {"type": "numeric", "extract": {"pattern": r"#### (\d+)"}})
    assert marked.reset(seed=0)[1]["worked_solution"] == "5+7=12\n#### 12"
    # Responses would always be wrong.
    with pytest.raises(ValueError, match=r"rejects (\d+) of \1 .*choose a verifier that fits"):
        env_of("so 12!", {"type": "exact", "extract": {"pattern": r"so (\d+)!"}})
    with pytest.raises(ValueError, match=r"rejects (\d+) of \1 .*choose a verifier that fits"):
        env_of("12 (of 40)", {"type": "numeric", "extract": {"pattern": r"^(\d+)"}})


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.filterwarnings("ignore:source=.*asdiv:UserWarning")
def test_presets_on_samples_of_their_formats(preset: str) -> None:
    check_preset(preset, [sample(SAMPLES[preset])])


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
@pytest.mark.filterwarnings("ignore:source=.*asdiv:UserWarning")
def test_presets_on_published_files(preset: str) -> None:
    check_preset(preset, published(*PUBLISHED[preset]))


HUB = {
    "gsm8k": [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")],
    "svamp": [("ChilleD/SVAMP", None, "train"), ("ChilleD/SVAMP", None, "test")],
    "mawps": [("MU-NLPC/Calc-mawps", None, "train"), ("MU-NLPC/Calc-mawps", None, "test")],
    "aime24": [("HuggingFaceH4/aime_2024", None, "train")],
}


@pytest.mark.parametrize("preset", sorted(HUB))
@pytest.mark.filterwarnings("ignore:source=.*overlap:UserWarning")
def test_presets_ask_the_hub_for_these(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rows = [json.loads(line) for line in Path(sample(SAMPLES[preset])).read_text(encoding="utf-8").splitlines()]

    def load_dataset(place: str, subset: str | None, *, split: str | None) -> list[dict[str, Any]]:
        asked.append((place, subset, split))
        return rows[:4] if split == "test" else rows[4:]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data_questions._load.cache_clear()
    train = Dataset(preset=preset)
    assert asked == HUB[preset]
    assert train.counts.rows == len(rows) - (0 if len(asked) == 2 else 4)
    if len(asked) == 2:
        assert train.counts.heldout == 4
    data_questions._load.cache_clear()


def check_preset(preset: str, places: list[str]) -> None:
    """Every row is accounted for, and the verifier accepts every gold answer and no other."""
    verifier = PRESETS[preset].verifier
    try:
        find_verifier(verifier)
    except ValueError:  # it needs a package that is not installed
        verifier = "exact"
    train, heldout = both(preset=preset, source=places, heldout={"fraction": 0.4}, verifier=verifier)
    assert train.counts.rows == places_of_rows(train.counts) == sum(map(number_of_rows, places))
    assert (train.num_problems, heldout.num_problems) == (train.counts.train, train.counts.heldout)
    assert min(train.num_problems, heldout.num_problems) > 0
    for env in (train, heldout):
        for k in range(env.num_problems):
            prompt, info = env.reset(seed=k)
            assert not set("{}") & set(prompt) or "boxed{}" in prompt
            assert env.step(info["worked_solution"])[4]["correct"] is True, info
            env.reset(seed=k)
            assert env.step(f"{info['gold_answer']} is wrong, it is 123456")[4]["correct"] is False, info


def test_the_test_file_of_gsm8k_shares_no_question_with_training() -> None:
    train_file, test_file = published("gsm8k_train.jsonl", "gsm8k_test.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, heldout = both(preset="gsm8k", source=train_file, heldout={"source": test_file})
    assert (train.num_problems, heldout.num_problems) == (7473, 900)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "source=None: give a file, a list of files, a folder or a hub id, or a preset"),
        ({"source": []}, "source="),
        ({"source": 3}, "source=3"),
        ({"source": "no.jsonl"}, "source='no.jsonl': no such file"),
        ({"preset": "gsm9k"}, "preset='gsm9k': there are gsm8k, math500"),
        ({"prompt": ""}, "prompt='': give a text"),
        ({"prompt": 3}, "prompt=3"),
        ({"prompt": "{a!r}"}, "prompt="),
        ({"prompt": "question"}, "no column 'question'; the row has prompt, answer"),
        ({"answer": "gold"}, "no column 'gold'"),
        ({"answer_after": "####"}, "answer_after='####': it needs an answer"),
        ({"verifier": "exact"}, "verifier='exact': it needs an answer"),
        ({"answer": "answer", "verifier": "exakt"}, "verifier='exakt'"),
        ({"answer": "answer", "verifier": 3}, "verifier=3"),
        ({"answer": "answer", "verifier": {"type": "numeric", "tol": 1}}, "tol"),
        ({"answer": "answer", "answer_pattern": "("}, "answer_pattern='('"),
        ({"prompt_template": "Think."}, "prompt_template='Think.': it must hold {prompt}"),
        ({"prompt_template": "{prompt} {x}"}, "no column 'x'"),
        ({"examples": -1}, "examples=-1"),
        ({"examples": 2}, "examples=2: examples need answers"),
        ({"examples": 500, "answer": "answer"}, "examples=500: there are"),
        ({"examples": [{"prompt": "a"}]}, "examples={'prompt': 'a'}"),
        ({"heldout": {"fraction": 1}}, "heldout.fraction=1"),
        ({"heldout": {"column": "x"}}, "heldout={'column': 'x'}: give {fraction: 0.1}"),
        ({"heldout": {"column": "x", "value": 1}}, "heldout.column='x': no column 'x'"),
        ({"heldout": {"column": "answer", "value": None}}, "heldout.value=None"),
        ({"heldout": {"source": "no.jsonl"}}, "heldout.source='no.jsonl': no such file"),
        ({"heldout": "test"}, "heldout='test'"),
        ({"heldout": {"column": "prompt", "value": "none"}, "split": "heldout"}, "split='heldout': no question"),
        ({"shuffle": 1}, "shuffle=1"),
        ({"max_prompt_characters": 0}, "max_prompt_characters=0"),
        ({"max_prompt_characters": 3}, "split='train': no question belongs to it"),
        ({"bad_rows": "ignore"}, "bad_rows='ignore': choose"),
        ({"drop_duplicates": "yes"}, "drop_duplicates='yes'"),
    ],
)
@pytest.mark.filterwarnings("ignore:source=:UserWarning")
def test_wrong_options(source: str, config: dict[str, Any], message: str) -> None:
    given_source = {} if config.keys() & {"source"} or not config else {"source": source}
    with pytest.raises(ValueError) as error:
        Dataset(**given_source, **config)
    assert message in str(error.value)


def test_a_source_without_rows_is_named(tmp_path: Path, source: str) -> None:
    empty = write_lines(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=r"^source='.*empty.jsonl': holds no rows at all"):
        Dataset(source=empty)
    with pytest.raises(ValueError, match=r"^heldout.source='.*empty.jsonl': holds no rows at all"):
        Dataset(source=source, heldout={"source": empty})
