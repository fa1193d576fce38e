from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reward_examples
import torch
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.config.checks import check_options
from tppo_rl.config.options import Options
from tppo_rl.config.places import absolute_place
from tppo_rl.config.reward_checks import check_reward_columns
from tppo_rl.config.run_files import load_run_file
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import ALGORITHMS
from tppo_rl.core.reward_parts import RewardParts
from tppo_rl.rollout.responses import Response, Scores, Verdict
from tppo_rl.rollout.rewards import Rewards, overlong_penalty

EXAMPLES = "reward_examples"
SPEC: AlgorithmSpec = ALGORITHMS.find("TPPO")


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (20, -1.0), (21, -1.0), (99, -1.0)]
)
def test_penalty_by_hand(length: int, penalty: float) -> None:
    assert overlong_penalty(length, cap=20, buffer=4) == pytest.approx(penalty)
    assert rewards("zero_one", overlong_fraction=0.2).penalty(length) == pytest.approx(penalty)
    assert rewards("zero_one").penalty(length) == 0.0


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 100))
def test_penalty_never_rises_with_length(length: int, cap: int, buffer: int) -> None:
    here = overlong_penalty(length, cap=cap, buffer=buffer)
    assert -1.0 <= overlong_penalty(length + 1, cap=cap, buffer=buffer) <= here <= 0.0


def response(
    said: str = "that", correct: bool | None = True, *, length: int = 9, truncated: bool = False, **columns: Any
) -> Response:
    return Response("what?", said, [1, 2], length, 0.3, correct, truncated, columns)


def chat(*turns: str, answers: tuple[str, ...] = (), **columns: Any) -> Response:
    said = "\n".join(turns)
    of_row = {"messages": [], "conversational": True}
    return Response("what?", said, [1, 2], 9, 0.0, True, False, of_row | columns, turns, answers)


def rewards(spec: Any, **options: Any) -> Rewards:
    return Rewards.of(Options.of(rewards=spec, max_response_length=20, **options))


def verdicts(spec: Any, *responses: Response, scores: Scores | None = None, **options: Any) -> list[Verdict]:
    return rewards(spec, **options).verdicts(responses, Scores() if scores is None else scores, version=7)


def values(spec: Any, *responses: Response, **options: Any) -> list[float]:
    found = verdicts(spec, *responses, **options)
    assert not any(verdict.failures for verdict in found), found
    return [verdict.reward for verdict in found]


def failure_kinds(spec: Any, *responses: Response, **options: Any) -> list[list[tuple[str, str]]]:
    return [[(f.name, f.kind) for f in verdict.failures] for verdict in verdicts(spec, *responses, **options)]


def example(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": f"{EXAMPLES}:{name}", **arguments}


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    reward_examples.calls.clear()


@pytest.mark.parametrize(
    ("name", "turn", "right", "wrong"),
    [("environment", 0.3, 0.0, 0.0), ("zero_one", 0.0, 1.0, 0.0), ("plus_minus_one", 0.0, 1.0, -1.0)],
)
def test_rewards_by_name(name: str, turn: float, right: float, wrong: float) -> None:
    assert rewards(name).of_turn(0.3) == turn
    cut = response(correct=None, truncated=True)
    assert values(name, response(), response(correct=False), cut) == [right, wrong, wrong]


def test_an_ended_episode_must_be_right_or_wrong() -> None:
    with pytest.raises(OptionError, match=r"rewards='zero_one': .*info\['correct'\]"):
        values("zero_one", response(correct=None))
    assert values("environment", response(correct=None)) == [0.0]
    with pytest.raises(OptionError, match=r"^positive_lm_coef: .*info\['correct'\]"):
        values("environment", response(correct=None), positive_lm_coef=0.1)


# Several parts


def test_parts_are_weighted_and_logged_by_name() -> None:
    scores = Scores()
    parts = [
        {"type": "environment", "weight": 2.0},
        "plus_minus_one",
        {"type": "format", "weight": 0.5, "tags": ["answer"], "name": "has_answer"},
        {"type": "length", "beyond": 1, "per_token": 0.25},
        {"type": "length", "beyond": 0, "per_token": 0.25},
    ]
    both = rewards(parts)
    found = both.verdicts([response("<answer>3</answer>"), response("3", False)], scores)
    assert both.of_turn(0.3) == pytest.approx(0.6), "the environment's rewards stay at its turns"
    assert [one.reward for one in found] == pytest.approx([1 + 0.5 - 0.25 - 0.5, -1 - 0.25 - 0.5])
    assert found[0].parts == {
        "environment": 0.3, "plus_minus_one": 1.0, "has_answer": 1.0, "length": -0.25, "length_2": -0.5
    }  # fmt: skip
    assert scores.sums["has_answer"] == (1.0, 2)
    assert scores.sums["plus_minus_one"] == (0.0, 2)
    assert rewards(["zero_one"]).of_turn(0.3) == 0.0


@pytest.mark.parametrize(
    "value",
    [
        "zero_one",
        "a.b:c",
        {"type": "a.b:c", "k": 1},
        {"type": "zero_one", "weight": 2.0},
        ["zero_one"],
        [{"type": "format", "name": "f", "weight": 0.5, "pattern": "x"}, "zero_one"],
    ],
)
def test_parts_come_back_as_they_were_written(value: Any) -> None:
    assert RewardParts.parse(value).flat() == value
    assert RewardParts.parse(RewardParts.parse(value)) == RewardParts.parse(value)
    assert Options.of(Options.of(rewards=value).flat()).flat()["rewards"] == value


def test_one_part_may_be_there_twice_under_two_names() -> None:
    twice = [{"type": "zero_one", "name": "first"}, {"type": "zero_one", "name": "second"}]
    assert [part.name for part in RewardParts.parse(twice)] == ["first", "second"]


def test_names_are_distinct() -> None:
    parts = RewardParts.parse(["a:f", "b:f", {"type": "c:f", "name": "f_2"}, "./d.py:Outer.f"])
    assert [part.name for part in parts] == ["f", "f_3", "f_2", "Outer_f"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], ["rewards=[]", "empty"]),
        ("zero_won", ["rewards='zero_won'", "zero_one"]),
        (["zero_one", "zero_won"], ["rewards[1]='zero_won'"]),
        ({"type": "zero_one", "weight": "much"}, ["weight='much'", "finite number"]),
        ({"type": "zero_one", "weight": float("inf")}, ["weight=inf", "finite number"]),
        ({"type": "zero_one", "name": "a/b"}, ["name='a/b'", "letters"]),
        ({"type": "zero_one", "name": "all"}, ["name='all'"]),
        ([{"type": "a:f", "name": "x"}, {"type": "b:f", "name": "x"}], ["name='x'", "two parts"]),
        ({"type": "environment", "scale": 2}, ["'environment' takes no arguments", "scale"]),
        ({"type": "zero_one", "scale": 2}, ["rewards.scale=2: unknown option; zero_one takes no arguments; remove it"]),
        ({"type": "zero_one", "correkt": 2}, ["rewards.correkt=2: unknown option; zero_one takes no arguments"]),
        (
            ["zero_one", "zero_one"],
            ["'zero_one' is given twice", "give it once with the weight 2, or give each a name"],
        ),
        ([{"type": "format", "pattern": "("}], ["rewards[0].pattern='('", "no regular expression"]),
        ({"type": "format"}, ["either `pattern` or `tags`"]),
        ({"type": "format", "tagz": ["a"]}, ["rewards.tagz"]),
        ({"type": "length", "beyond": -1}, ["rewards.beyond=-1", "greater than or equal to 0"]),
        ({"type": "length"}, ["rewards.beyond", "required"]),
        ({"type": "verifier", "verifier": "numerik"}, ["numerik", "numeric"]),
        ({"type": "verifier", "verifier": {"type": "numeric", "tolerance": -1}}, ["tolerance=-1"]),
        ({"type": "model", "model": "./no_such_folder"}, ["no_such_folder", "no such folder"]),
        (example("counting", completions=3), ["rewards.completions=3", "remove it"]),
        (example("compute_score", solution_str="x"), ["rewards.solution_str='x'", "remove it"]),
        (example("compute_score_dict", scale=1), ["rewards.scale=1"]),
        (example("nothing"), ["reward_examples has no 'nothing'"]),
        (example("late.__dict__"), ["is a dict, which cannot be called"]),
        (example("weighs", weight=2.0), ["rewards.weight=2.0", "has an argument of that name", "another name"]),
        ("builtins:max", ["max", "cannot be read"]),
    ],
)
def test_a_reward_that_will_not_do_is_refused_before_anything_starts(value: Any, words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        check_options({"rewards": value}, SPEC)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "Value error" not in str(error.value)


class Rows:
    """An environment whose rows have these columns."""

    def __init__(self, **info: Any) -> None:
        self._info = info

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        return "what?", self._info


@pytest.mark.parametrize(
    ("spec", "info", "missing"),
    [
        (example("accuracy"), {"answer": "3"}, "ground_truth"),
        (example("accuracy"), {"ground_truth": "3"}, None),
        (example("strict_columns"), {}, "answer"),
        (example("strict_columns"), {"answer": None}, None),
        (example("compute_score"), {"task": "x"}, "answer"),
        (example("compute_score"), {"reward_model": {"ground_truth": "3"}}, None),
        (example("compute_score"), {"answer": "3"}, None),
        (example("counting"), {}, None),
        ({"type": "verifier", "verifier": "exact"}, {"question": "?"}, "answer"),
        ({"type": "verifier", "verifier": "exact", "column": "reward_model.ground_truth"}, {"answer": "?"}, "reward_model"),
        ({"type": "verifier", "verifier": "exact", "column": "reward_model.ground_truth"}, {"reward_model": {"ground_truth": "3"}}, None),
    ],
)  # fmt: skip
def test_columns_that_are_missing_are_named_before_anything_starts(
    spec: Any, info: dict[str, Any], missing: str | None
) -> None:
    options = Options.of(rewards=["zero_one", spec])
    if missing is None:
        check_reward_columns(options, Rows(**info))
    else:
        with pytest.raises(OptionError, match=rf"^rewards\[1\]=.*needs {missing}"):
            check_reward_columns(options, Rows(**info))


# Contracts


def test_functions_of_trl_run_unchanged() -> None:
    assert values(example("num_unique_chars"), response("abca"), response("")) == [3.0, 0.0]
    said = [response("\\boxed{4}", ground_truth="4"), response("\\boxed{5}", ground_truth="4")]
    assert values(example("accuracy"), *said) == [1.0, 0.0]
    assert values(example("slow_length"), response("abc"), response("")) == [3.0, 0.0]
    assert values(example("strict_columns"), response("a", answer="a", more=1)) == [1.0]
    assert values(example("Judge", scale=0.5), response("abc")) == [1.5]


def test_conversations_are_lists_of_messages() -> None:
    assert values(example("think_format"), chat("<think>a\nb</think>c"), chat("<think>a")) == [1.0, 0.0]
    two = chat("first", "second", answers=("go on",))
    assert two.completion_messages == [
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "go on"},
        {"role": "assistant", "content": "second"},
    ]
    assert values({"type": "format", "pattern": "first.second"}, two) == [1.0], "our own terms read the model's turns"


def test_the_prompt_is_a_conversation_where_the_row_has_one() -> None:
    system, last = {"role": "system", "content": "Be short."}, {"role": "user", "content": "what?"}
    assert chat("a").prompt_messages == [last]
    assert chat("a", messages=[system]).prompt_messages == [system, last]
    assert response(messages=[system]).prompt_messages == [system, last]
    assert response(messages=[system], conversational=False).prompt_messages is None
    assert response(messages=[]).prompt_messages is None
    assert response().prompt_messages is None
    for one in (chat("7 + 7 = 14"), response("7 + 7 = 14")):
        prompted = dataclasses.replace(one, prompt="7 and 7?")
        assert values({"type": "calculation"}, prompted) == [1.0]


def test_rewards_that_trl_ships_run_as_they_are() -> None:
    pytest.importorskip("trl")
    said = [chat("<think>a</think>b"), chat("b")]
    assert values("trl.rewards:think_format_reward", *said) == [1.0, 0.0]
    pytest.importorskip("math_verify")
    scores = Scores()
    solved = [chat("\\boxed{\\frac{1}{2}}", solution="$0.5$"), chat("\\boxed{3}", solution="$0.5$")]
    found = verdicts("trl.rewards:accuracy_reward", *solved, scores=scores)
    assert [verdict.reward for verdict in found] == [1.0, 0.0]
    assert not any(verdict.failures for verdict in found)


def test_none_does_not_apply_and_the_others_are_summed() -> None:
    parts = [example("math_only"), {"type": "length", "beyond": 0, "per_token": 0.25}]
    scores = Scores()
    found = verdicts(parts, response("4", task="math"), response("4", task="code"), scores=scores)
    assert [verdict.reward for verdict in found] == [1.0 - 0.5, -0.5]
    assert scores.sums["math_only"] == (1.0, 1), "the mean is over the responses to which it applies"
    alone = failure_kinds(example("math_only"), response("4", task="math"), response("4", task="code"))
    assert alone == [[], [("nothing_applies", "nothing_applies")]]


def test_trainer_state_and_logs_are_given_where_they_are_asked_for() -> None:
    scores = Scores()
    (verdict,) = verdicts(example("with_trainer"), response(), scores=scores)
    assert verdict.reward == 7.0
    assert scores.sums["with_trainer.length"] == (2.0, 1)
    assert scores.sums["with_trainer.half"] == (0.5, 1)
    assert "with_trainer.text" not in scores.sums


def test_compute_score_of_verl_runs_unchanged() -> None:
    row = {
        "data_source": "openai/gsm8k",
        "reward_model": {"style": "rule", "ground_truth": "1200"},
        "extra_info": {"index": 3},
    }
    said = [response("#### 1,200", **row), response("#### 7", **row), response("1200", **row)]
    assert values(example("compute_score"), *said) == pytest.approx([1.0, 0.1, 0.0])
    assert values(example("compute_score", format_score=0.3, scale=2.0), *said) == pytest.approx([1.0, 0.6, 0.0])
    assert values(example("compute_score"), response("#### 7", answer="7")) == [1.0]
    assert values(example("compute_score_async"), response("7", answer="7"), response("8", answer="7")) == [1.0, 0.0]


def test_numbers_beside_the_score_are_logged() -> None:
    scores = Scores()
    found = verdicts(example("compute_score_dict"), response("3", answer=3), response("44", answer=3), scores=scores)
    assert [verdict.reward for verdict in found] == [1.0, -1.0]
    assert scores.sums["compute_score_dict.acc"] == (1.0, 2)
    assert scores.sums["compute_score_dict.length"] == (3.0, 2)
    assert "compute_score_dict.pred" not in scores.sums


def test_one_call_scores_a_batch() -> None:
    assert values(example("counting"), *[response()] * 5) == [1.0] * 5
    assert reward_examples.calls == [5]


def test_async_parts_run_at_the_same_time() -> None:
    assert values([example("meets") | {"name": name} for name in ("one", "other")], response()) == [2.0]


# Failures


@pytest.mark.parametrize("given", [np.float32(0.5), torch.tensor(0.5), 0.5])
def test_whatever_is_a_number_will_do(given: Any) -> None:
    assert values(example("broken", value=[given]), response()) == [0.5]
    assert values(example("broken", value=np.array([0.5])), response()) == [0.5]
    assert values(example("broken", value=[True]), response()) == [1.0]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([float("nan")], "not_finite"),
        ([float("inf")], "not_finite"),
        (["1"], "no_number"),
        ([[1.0]], "no_number"),
        ([1.0, 2.0], "wrong_length"),
        ([], "wrong_length"),
        (1.0, "no_number"),
        (None, "no_number"),
        ("12", "no_number"),
        ({"a": 1}, "no_number"),
        ([None], "nothing_applies"),
    ],
)
def test_what_is_no_number_is_a_failure_with_a_name(value: Any, kind: str) -> None:
    name = "nothing_applies" if kind == "nothing_applies" else "broken"
    assert failure_kinds(example("broken", value=value), response()) == [[(name, kind)]]


def test_one_response_that_cannot_be_scored_does_not_cost_the_others() -> None:
    kinds = failure_kinds(example("counting", fail_on="b"), response("a"), response("b"), response("c"))
    assert kinds == [[], [("counting", "exception")], []]
    assert reward_examples.calls == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "kind"), [("leaving", "exception"), ("async_leaving", "exception"), ("late", "timeout")]
)
def test_exits_and_time_outs_are_failures(name: str, kind: str) -> None:
    assert failure_kinds(example(name), response(), response()) == [[(name, kind)]] * 2
    assert values(example("slow_length"), response("abc")) == [3.0], "the event loop goes on"


def test_a_time_out_is_not_repeated_for_each_response() -> None:
    failure_kinds(example("late"), *[response()] * 4)
    assert reward_examples.calls == [4]


def test_a_failure_of_verl_is_of_one_response() -> None:
    said = [response(text, answer="7") for text in ("7", "boom", "8")]
    kinds = failure_kinds(example("compute_score_async"), *said, response("None", answer=None))
    failed = [("compute_score_async", "exception")]
    assert kinds == [[], failed, [], failed], "a row without a known answer makes no response wrong"


def test_a_verifier_that_fails_is_a_failure() -> None:
    spec = {"type": "verifier", "verifier": "numeric"}
    said = [response("7", answer=7), response("8", answer="7"), response("7", answer="seven"), response("7")]
    kinds = failure_kinds(spec, *said)
    assert kinds == [[], [], [("verifier", "exception")], [("verifier", "exception")]]
    assert [verdict.reward for verdict in verdicts(spec, *said)][:2] == [1.0, 0.0]
    nested = {"type": "verifier", "verifier": "exact", "column": "reward_model.ground_truth"}
    assert values(nested, response("a", reward_model={"ground_truth": "a"})) == [1.0]


def test_a_retry_calls_what_failed_once_more() -> None:
    assert values(example("once"), response(), on_reward_failure="retry") == [2.0]
    assert reward_examples.calls == [1, 1]
    reward_examples.calls.clear()
    kinds = failure_kinds(example("counting", fail_on="b"), response("a"), response("b"), on_reward_failure="retry")
    assert kinds == [[], [("counting", "exception")]]
    assert reward_examples.calls == [2, 1, 1, 1], "batch, each one, and the failed one again"
    reward_examples.calls.clear()
    assert failure_kinds(example("once"), response()) == [[("once", "exception")]]


@pytest.mark.parametrize(
    ("spec", "options", "wrong"),
    [
        ("environment", {}, -0.5),
        ("zero_one", {}, 0.0),
        ("plus_minus_one", {}, -1.0),
        ([{"type": "plus_minus_one", "weight": 2.0}, {"type": "environment", "weight": 3.0}, "zero_one"], {}, -3.5),
        ("plus_minus_one", {"wrong_reward": 0.25}, 0.25),
    ],
)
def test_the_reward_of_what_is_wrong_unscored(spec: Any, options: dict[str, Any], wrong: float) -> None:
    assert rewards(spec, on_reward_failure="wrong", **options).of_wrong(-0.5) == wrong


def test_wrong_reward_is_read_only_where_something_is_wrong_unscored() -> None:
    with pytest.raises(OptionError, match="wrong_reward"):
        check_options({"wrong_reward": -1.0}, SPEC)
    check_options({"wrong_reward": -1.0, "truncated_responses": "wrong"}, SPEC)


# Terms


@pytest.mark.parametrize(
    ("settings", "said", "reward"),
    [
        ({"tags": ["think", "answer"]}, "<think>a</think>\n<answer>b</answer>", 1.0),
        ({"tags": ["think", "answer"]}, "<answer>b</answer><think>a</think>", 0.0),
        ({"tags": ["think", "answer"]}, "<think><answer>b</think></answer>", 0.0),
        ({"tags": ["answer"]}, "<answer>b</answer><answer>b</answer>", 0.0),
        ({"tags": ["answer"]}, "</answer><answer>", 0.0),
        ({"pattern": r"^\d+$"}, "12", 1.0),
        ({"pattern": r"^\d+$"}, "12 a", 0.0),
        ({"pattern": "a.b"}, "a\nb", 1.0),
    ],
)
def test_formats_by_hand(settings: dict[str, Any], said: str, reward: float) -> None:
    assert values({"type": "format", **settings}, response(said)) == [reward]


def test_a_format_whose_search_runs_wild_is_a_failure() -> None:
    spec = {"type": "format", "pattern": r"(?:a|a|aa)+$"}
    assert failure_kinds(spec, response("a" * 60 + "b"), response("a")) == [[("format", "timeout")], []]


@pytest.mark.parametrize(("tokens", "penalty"), [(3, 0.0), (4, 0.0), (6, -0.5), (8, -1.0), (99, -1.0)])
def test_length_by_hand(tokens: int, penalty: float) -> None:
    long = Response("p", "c", [1] * tokens, tokens, 0.0, True, False)
    assert values({"type": "length", "beyond": 4, "per_token": 0.25}, long) == [penalty]


# Reward models


def test_the_folder_of_a_reward_model_is_found_from_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    (tmp_path / "own.py").touch()
    written = [
        "./own.py:f",
        {"type": "model", "model": "judge"},
        {"type": "verifier", "verifier": {"type": "./own.py:v"}},
    ]
    assert absolute_place("rewards", written) == [
        f"{tmp_path}/own.py:f",
        {"type": "model", "model": f"{tmp_path}/judge"},
        {"type": "verifier", "verifier": {"type": f"{tmp_path}/own.py:v"}},
    ]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from tppo_rl.base_models import resolve_model

    folder = tmp_path_factory.mktemp("reward_model")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_gives_its_first_logit(reward_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    texts = ["1", "2+3", "10"]
    expected = []
    for text in texts:
        conversation = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": text}]
        inputs = tokenizer(
            tokenizer.apply_chat_template(conversation, tokenize=False), return_tensors="pt", add_special_tokens=False
        )
        expected.append(model(**inputs).logits[0, 0].item())
    assert len(set(expected)) == len(expected)
    spec = {"type": "model", "model": str(reward_model), "batch_size": 2}
    assert values(spec, *map(response, texts)) == pytest.approx(expected, abs=1e-5)
    assert values(spec, *map(chat, texts)) == pytest.approx(expected, abs=1e-5)


def test_what_is_no_reward_model_is_refused(reward_model: Path, tmp_path: Path) -> None:
    from tppo_rl.base_models import resolve_model

    causal = resolve_model("tppo_rl/arithmetic-chain")
    with pytest.raises(OptionError, match="ForCausalLM; give a model for sequence classification"):
        check_options({"rewards": {"type": "model", "model": causal}}, SPEC)
    for name in ("config.json",):
        text = (reward_model / name).read_text().replace('"0": "LABEL_0"', '"0": "a", "1": "b"')
        (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match="has 2 labels"):
        check_options({"rewards": {"type": "model", "model": str(tmp_path)}}, SPEC)


# Run files

RUN_FILE = """
several:
  run: TPPO
  env: tppo_rl/ReasoningGym-v0
  stop: {training_iteration: 1}
  config:
    policy_model: tppo_rl/arithmetic-chain
    env_config: {task: chain_sum}
    rewards:
      - {type: ./own.py:mine, weight: 0.5, scale: 2.0}
      - {type: verifier, verifier: {type: numeric, extract: boxed}}
      - environment
    on_reward_failure: retry
    truncated_responses: mask
"""


def test_a_run_file_has_several_rewards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def mine(completions, answer, *, scale: float = 1.0, **columns):\n    return [scale] * len(completions)\n"
    )
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (experiment,) = load_run_file(tmp_path / "run.yaml")
    (point,) = experiment.points()
    options = check_options(point, experiment.spec)
    assert [part.name for part in options.rewards.rewards] == ["mine", "verifier", "environment"]
    said = response("\\boxed{7}", answer="7")
    (verdict,) = Rewards.of(options).verdicts([said], Scores())
    assert verdict.reward == 2.0
    assert verdict.parts == {"mine": 2.0, "verifier": 1.0, "environment": 0.3}
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("task: chain_sum", "task: graph_color"))
    with pytest.raises(OptionError, match=r"rewards\[0\]=.*own.py:mine'.*needs answer"):
        load_run_file(tmp_path / "run.yaml")
