"""The base model's making, and the one that is shipped."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import tppo_rl
from tppo_rl.envs.arithmetic_chain import MAX_OPERANDS
from tppo_rl.envs.text_env import split_of
from tppo_rl.pretrain.architecture import CHARACTERS, build_model, build_tokenizer, encode_prompts
from tppo_rl.pretrain.evaluation import HoldBack, evaluate, generate, make_env
from tppo_rl.pretrain.warmstart import (
    IGNORED,
    PRACTICE_STAGES,
    WarmstartOptions,
    demonstrations,
    draw_slips,
    encode,
    lazy_batches,
    learning_rate,
    micro_batches,
    parse_options,
    practice_batches,
    response_loss,
    slipping_sums,
    stopping_step,
    warmstart,
    with_filler,
)

CALCULATOR = "tppo_rl/Calculator-v0"
CHAIN = "tppo_rl/ArithmeticChain-v0"
SHIPPED = Path(tppo_rl.__file__).parent / "base_models" / "arithmetic-chain"
PROMPT, SOLUTION = "a3k9B1=", "a3=3;k9=12;B1=13;#13"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build_model(tokenizer, seed=0).eval()


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)


@settings(deadline=None)
@given(text=st.text(st.sampled_from(CHARACTERS)))
def test_text_survives_encoding_and_decoding(text: str, shipped: tuple[Any, Any], tokenizer: Any) -> None:
    ids = shipped[1].encode(text)
    assert shipped[1].decode(ids) == text
    assert ids == tokenizer.encode(text)
    if "<" not in text:  # the text of a special token is that token
        assert len(ids) == len(text)


def test_vocabulary(tokenizer: Any) -> None:
    assert len(tokenizer) == 101
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<user>", "<assistant>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def test_examples_are_what_the_chat_template_writes(shipped: tuple[Any, Any], tokenizer: Any) -> None:
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": SOLUTION}]
    (example,) = encode(tokenizer, [(PROMPT, SOLUTION)])
    for one in (tokenizer, shipped[1]):
        prompt = one.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        assert prompt == example.prompt == encode_prompts(tokenizer, [PROMPT])[0]
        assert one.apply_chat_template(turns, return_dict=False) == example.prompt + example.response
    assert example.response[-1] == tokenizer.eos_token_id


def test_several_turns_in_the_chat_template(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "1-9?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "lower"},
    ]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "<user>1-9?<assistant>5<eos><user>lower<assistant>"


def test_the_environments_turns_are_read_and_not_learned(tokenizer: Any, model: Any) -> None:
    env = make_env(CALCULATOR, {"min_operations": 2, "max_operations": 2})
    (pair,) = islice(demonstrations(env, 0), 1)
    (example,) = encode(tokenizer, [pair])
    prompt, info = env.reset(seed=int(np.random.default_rng([0, False]).integers(2**62)))
    first, second, answer = info["worked_turns"]
    observations = [env.step(turn)[0] for turn in (first, second)]
    turns = [{"role": "user", "content": prompt}]
    for turn, observation in zip((first, second), observations, strict=True):
        turns += [{"role": "assistant", "content": turn}, {"role": "user", "content": observation}]
    turns.append({"role": "assistant", "content": answer})
    assert tokenizer.apply_chat_template(turns, return_dict=False) == example.prompt + example.response
    learned = [token for token in example.targets if token != IGNORED]
    assert tokenizer.decode(learned) == f"{first}<eos>{second}<eos>{answer}<eos>"
    logits = model(torch.tensor([example.prompt + example.response])).logits[0, len(example.prompt) - 1 : -1]
    targets = torch.tensor(example.targets)
    log_probs = logits.log_softmax(-1)[torch.arange(len(targets)), targets.clamp(min=0)][targets != IGNORED]
    torch.testing.assert_close(response_loss(model, [example], 0), -log_probs.mean())


def test_dialogs_that_answer_too_soon() -> None:
    env = make_env(CALCULATOR, {"min_operations": 3, "max_operations": 3})
    pairs = islice(demonstrations(env, 0, WarmstartOptions(early_hazard=0.5)), 400)
    calls = [response.count("[") for _, response in pairs]
    shares = np.bincount(calls, minlength=4) / 400
    assert shares[1:] == pytest.approx([0.5, 0.25, 0.25], abs=0.08)


@pytest.mark.integration
def test_the_shipped_calculator_answers_too_soon_and_is_scored_over_its_turns() -> None:
    folder = SHIPPED.parent / "calculator"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    report = json.loads((folder / "warmstart.json").read_text())
    env = make_env(CALCULATOR, {**report["env_config"], "split": "heldout"})
    greedy = evaluate(model, tokenizer, env, range(report["greedy"]["prompts"]), greedy=True)
    assert greedy.accuracy == pytest.approx(report["greedy"]["accuracy"], abs=0.01)
    easy = make_env(CALCULATOR, {"min_operations": 1, "max_operations": 1, "split": "heldout"})
    assert evaluate(model, tokenizer, easy, range(64), greedy=True).accuracy > 0.9


class TestSchedule:
    def test_no_hazard_never_stops_early(self) -> None:
        options = WarmstartOptions(lazy_hazard=0.0, diligent_hazard=0.0, late_hazard=0.0)
        assert stopping_step((9, 9, 9, 9), options, np.random.default_rng(0)) == 4

    def test_certain_hazards(self) -> None:
        rng = np.random.default_rng(0)
        lazy = WarmstartOptions(lazy_hazard=1.0, diligent_hazard=0.0, late_hazard=0.0, first_steps=2)
        assert [stopping_step(operands, lazy, rng) for operands in [(4, 1, 1), (3, 4, 1), (3, 3, 9, 9)]] == [1, 2, 4]
        late = WarmstartOptions(lazy_hazard=0.0, diligent_hazard=0.0, late_hazard=1.0, first_steps=2)
        assert stopping_step((9, 9, 9, 9), late, rng) == 3

    def test_long_chains_are_never_given_up(self) -> None:
        options = WarmstartOptions(lazy_hazard=1.0, diligent_hazard=1.0, late_hazard=1.0, diligent_from=4)
        rng = np.random.default_rng(0)
        assert [stopping_step(operands, options, rng) for operands in [(9, 9, 9, 9), (9, 9, 9)]] == [4, 1]

    def test_frequencies(self) -> None:
        rng = np.random.default_rng(0)
        options = WarmstartOptions(lazy_hazard=0.7, diligent_hazard=0.25, late_hazard=0.5, first_steps=1)
        stops = np.bincount([stopping_step((9, 1, 1), options, rng) for _ in range(4000)], minlength=4) / 4000
        assert stops[1:] == pytest.approx([0.7, 0.15, 0.15], abs=0.03)

    @pytest.mark.parametrize(("hazard", "early"), [(0.0, 0.0), (0.4, 0.4), (1.0, 1.0)])
    def test_early_demonstrations_of_other_tasks_stop_with_the_hazard(self, hazard: float, early: float) -> None:
        task = {"task": "chain_sum", "task_config": {"min_terms": 3, "max_terms": 3}, "steps": True}
        env = make_env("tppo_rl/ReasoningGym-v0", task)
        pairs = islice(demonstrations(env, 0, WarmstartOptions(early_hazard=hazard)), 200)
        # Three terms are two steps, and only after the first of them one can stop.
        assert np.mean([text.count(";") == 1 for _, text in pairs]) == pytest.approx(early, abs=0.1)

    def test_lazy_demonstrations_are_of_the_train_split_and_stop_early(self) -> None:
        env = make_env(CHAIN, {"tail_exponent": 0.0})
        full = 0
        for prompt, response in islice(demonstrations(env, 0, WarmstartOptions()), 200):
            assert split_of(prompt, 0) == "train"
            steps, _, stated = response.partition("#")
            assert steps.split("=")[-1] == f"{stated};"
            assert [step[:2] for step in steps.split(";")[:-1]] == [
                prompt[2 * i : 2 * i + 2] for i in range(steps.count(";"))
            ]
            full += steps.count(";") == len(prompt) // 2
        assert 2 <= full <= 60

    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_slips_are_of_one_at_a_share_of_the_pairs(self, share: float) -> None:
        slips = draw_slips(3, share)
        assert slips.shape == (10, 10)
        assert np.abs(slips).sum() == np.count_nonzero(slips) == round(100 * share)
        assert np.array_equal(slips, draw_slips(3, share))

    def test_slipping_sums_by_hand(self) -> None:
        slips = np.zeros((10, 10), np.int64)
        slips[9, 5], slips[5, 5], slips[0, 0] = 1, -1, 1
        rng = np.random.default_rng(0)
        # 9, 9 + 5 + 1, 15 + 5 - 1, 19 + 1; and nothing comes before a first zero.
        assert slipping_sums((9, 5, 5, 1), slips, 1.0, rng) == [9, 15, 19, 20]
        assert slipping_sums((0, 3), slips, 1.0, rng) == [0, 3]
        assert slipping_sums((9, 5, 5, 1), slips, 0.0, rng) == [9, 14, 19, 20]
        nearly = (*[9] * 11, 5)  # 99 + 5 + 1
        assert slipping_sums(nearly, slips, 1.0, rng)[-2:] == [99, 5]

    def test_slipping_demonstrations_are_wrong_as_often_as_they_slip(self) -> None:
        env = make_env(CHAIN, {"max_operands": 2})
        options = WarmstartOptions(lazy_hazard=0.0, diligent_hazard=0.0, slip_share=1.0, slip_hazard=0.25)
        texts = [
            (response, env.step(response)[4]["correct"]) for _, response in islice(demonstrations(env, 0, options), 800)
        ]
        assert all(text.count(";") == 2 for text, _ in texts)
        assert np.mean([correct for _, correct in texts]) == pytest.approx(0.75, abs=0.05)

    def test_fillers_are_geometric_and_come_before_a_share_of_the_demonstrations(self) -> None:
        options = WarmstartOptions(filler_share=0.3, filler_tokens=20)
        texts = [text for _, text in islice(with_filler(repeat(("a1=", "x")), 5, options), 4000)]
        lengths = np.array([len(text) - 1 for text in texts if len(text) > 1])
        assert set("".join(texts)) == {".", "x"}
        assert all(text.endswith("x") for text in texts)
        assert len(lengths) / 4000 == pytest.approx(0.3, abs=0.03)
        assert lengths.mean() == pytest.approx(20, abs=2)
        assert np.mean(lengths > 20) == pytest.approx((1 - 1 / 20) ** 20, abs=0.04)

    @pytest.mark.parametrize("phase", [practice_batches, lazy_batches])
    @pytest.mark.parametrize(
        ("env_id", "config"), [(CHAIN, {}), ("tppo_rl/ReasoningGym-v0", {"task": "chain_sum", "steps": True})]
    )
    def test_both_phases_have_filler(self, tokenizer: Any, env_id: str, config: dict[str, Any], phase: Any) -> None:
        def share(options: WarmstartOptions) -> float:
            batches = islice(phase(env_id, config, tokenizer, 0, options), 20)
            examples = [example for batch in batches for example in batch]
            return float(np.mean([tokenizer.decode(example.response).startswith(".") for example in examples]))

        assert share(WarmstartOptions(practice_steps=20)) == 0.0
        filled = WarmstartOptions(practice_steps=20, filler_share=0.5, filler_tokens=4)
        assert share(filled) == pytest.approx(0.5, abs=0.1)

    def test_full_demonstrations_are_correct(self) -> None:
        env = make_env(CHAIN, {})
        for _, response in islice(demonstrations(env, 0), 20):
            assert env.step(response)[4]["correct"]

    def test_practice_chains_grow(self, tokenizer: Any) -> None:
        batches = list(practice_batches(CHAIN, {}, tokenizer, 0, WarmstartOptions(practice_steps=40)))
        assert len(batches) == 40
        longest = [max((len(example.prompt) - 3) // 2 for example in batch) for batch in batches]
        start = 0
        for share, most, _ in PRACTICE_STAGES:
            stage = longest[start : round(share * 40)]
            assert max(stage) <= most
            start += len(stage)
        assert max(longest[:4]) > 4
        assert max(longest) > 40

    def test_practice_keeps_to_the_most_operands_of_the_environment(self, tokenizer: Any) -> None:
        options = WarmstartOptions(practice_steps=10)
        for batch in practice_batches(CHAIN, {"max_operands": 3}, tokenizer, 0, options):
            assert max(len(example.prompt) for example in batch) <= 2 * 3 + 3


def test_micro_batches_are_of_similar_length_and_bounded(tokenizer: Any) -> None:
    pairs = demonstrations(make_env(CHAIN, {"tail_exponent": 0.0}), 0)
    for batch in islice(micro_batches(pairs, tokenizer, 2048, np.random.default_rng(0)), 60):
        lengths = [len(example) for example in batch]
        assert max(lengths) * len(lengths) <= 2048
        assert sum(lengths) >= 0.8 * max(lengths) * len(lengths)


def test_too_long_examples_are_left_out(tokenizer: Any) -> None:
    def pairs() -> Iterator[tuple[str, str]]:
        while True:
            yield "1", "x" * 2000
            yield "2", "y"

    for batch in islice(micro_batches(pairs(), tokenizer, 64, np.random.default_rng(0)), 5):
        assert {len(example) for example in batch} == {5}
    with pytest.raises(ValueError, match="more than 1024"):
        next(micro_batches(repeat(("1", "x" * 2000)), tokenizer, 64, np.random.default_rng(0)))


def test_loss_is_of_response_tokens_only_and_padding_changes_nothing(model: Any, tokenizer: Any) -> None:
    examples = encode(tokenizer, [(PROMPT, SOLUTION), ("z1y2=", "z1=1;#1")])
    sums = []
    for example in examples:
        ids = torch.tensor([example.prompt + example.response])
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(example.prompt)
        sums.append(-sum(log_probs[position - 1, ids[0, position]] for position in range(start, len(example))))
    tokens = [len(example.response) for example in examples]
    for example, total, count in zip(examples, sums, tokens, strict=True):
        torch.testing.assert_close(response_loss(model, [example], 0), total / count)
    torch.testing.assert_close(response_loss(model, examples, 0), sum(sums) / sum(tokens))


def test_learning_rate() -> None:
    rates = [learning_rate(step, 100, 2.0) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5:71] == pytest.approx([2.0] * 66)
    assert rates[85] == pytest.approx(1.0)
    assert rates[97] == pytest.approx(0.2)


def test_hold_back(tokenizer: Any) -> None:
    rows = torch.tensor(encode_prompts(tokenizer, ["", ""]))
    responses = torch.tensor([tokenizer.encode("a1=1;b2"), tokenizer.encode("a1=1;b;")])
    rule = HoldBack(tokenizer, [2, 2], prompt_length=rows.shape[1])
    scores = rule(torch.cat([rows, responses], 1), torch.zeros(2, len(tokenizer)))
    mark = tokenizer.convert_tokens_to_ids("#")
    assert scores[:, mark].tolist() == [-torch.inf, 0.0]
    assert int(scores.isinf().sum()) == 1


def test_generation_does_not_depend_on_what_is_generated_together(model: Any, tokenizer: Any) -> None:
    prompts = ["a1b2=", "a1b2c3d4e5f6=", "Q0R0S0="]
    together = generate(model, tokenizer, prompts, greedy=True, max_tokens=12)
    assert together == [generate(model, tokenizer, [prompt], greedy=True, max_tokens=12)[0] for prompt in prompts]
    ids = encode_prompts(tokenizer, prompts[1:2])[0]
    for token in together[1]:
        assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_prompts_that_fill_the_model_get_no_response(model: Any, tokenizer: Any) -> None:
    responses = generate(model, tokenizer, ["x" * 1100, "a1b2="], greedy=True, max_tokens=3, batch_size=1)
    assert responses[0] == []
    assert len(responses[1]) == 3


@pytest.mark.integration
@pytest.mark.parametrize(
    ("env_id", "env_config"),
    [(CHAIN, {"max_operands": 4}), ("tppo_rl/ReasoningGym-v0", {"task": "chain_sum"})],
)
def test_a_small_run_end_to_end(env_id: str, env_config: dict[str, Any], tmp_path: Path) -> None:
    options = {"practice_steps": 4, "lazy_steps": 2, "batch_tokens": 256, "evaluation_prompts": 3}
    folders = [tmp_path / "one", tmp_path / "two"]
    reports = [
        warmstart(env_id=env_id, env_config=env_config, output_dir=folder, seed=3, **options) for folder in folders
    ]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)
    written = json.loads((folders[0] / "warmstart.json").read_text())
    assert written == json.loads(json.dumps(reports[0]))
    assert written["env_config"] == env_config
    assert written["seed"] == 3
    assert {key: written["options"][key] for key in options} == options
    assert written["within_target"] is False
    assert written["sampled"]["prompts"] == written["greedy"]["prompts"] == 3
    assert ("skill" in written) == (env_id == CHAIN)
    assert AutoTokenizer.from_pretrained(folders[0]).decode([2, 69, 3]) == "<user>a<assistant>"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"practise_steps": 5}, "practise_steps=5: .*practice_steps"),
        ({"practice_steps": 1.5}, "practice_steps=1.5: give an integer"),
        ({"practice_steps": True}, "practice_steps=True"),
        ({"muon_lr": "fast"}, "muon_lr='fast': give a number"),
        ({"late_hazard": 1.5}, "late_hazard=1.5: give 0 to 1"),
        ({"slip_share": 1.5}, "slip_share=1.5: give 0 to 1"),
        ({"lazy_lr": -1e-4}, "lazy_lr=-0.0001: give 0 or more"),
        ({"lazy_lr": float("nan")}, "lazy_lr=nan"),
        ({"filler_share": -0.1}, "filler_share=-0.1: give 0 or more"),
        ({"filler_tokens": 0}, "filler_tokens=0: give 1 or more"),
        ({"evaluation_prompts": 0}, "evaluation_prompts=0: give 1 or more"),
        ({"batch_tokens": 0}, "batch_tokens=0: give 1 or more"),
    ],
)
def test_bad_options(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_options(options)


def test_environments_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CartPole"):
        warmstart(env_id="CartPole-v1", output_dir=tmp_path)
    with pytest.raises(ValueError, match="GuessNumber: it has no worked solutions"):
        warmstart(env_id="tppo_rl/GuessNumber-v0", output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
class TestShippedModel:
    def test_files(self, shipped: tuple[Any, Any]) -> None:
        model, tokenizer = shipped
        assert model.config.model_type == "qwen2"
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8e6
        generation = model.generation_config
        assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)

    def test_it_was_made_with_the_defaults_and_meets_the_targets(self) -> None:
        report = json.loads((SHIPPED / "warmstart.json").read_text())
        # Options that came later do not concern chains.
        assert report["options"].items() <= asdict(WarmstartOptions()).items()
        assert (report["env_id"], report["env_config"], report["seed"]) == (CHAIN, {}, 0)
        assert report["within_target"] is True

    def test_the_long_tailed_one_gives_up_short_chains_and_solves_long_ones(self) -> None:
        folder = SHIPPED.with_name("arithmetic-chain-long-tail")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        report = json.loads((folder / "warmstart.json").read_text())
        assert report["within_target"] is True
        env = make_env(CHAIN, report["env_config"] | {"split": "heldout"})
        long = [seed for seed in range(1000) if len(env.reset(seed=seed)[1]["operands"]) == MAX_OPERANDS][:24]
        found = evaluate(model, tokenizer, env, long, greedy=True)
        assert found.accuracy >= 0.8
        assert 512 > found.mean_response_tokens > 9 * report["sampled"]["mean_response_tokens"]
        short = [seed for seed in range(96) if seed not in long]
        assert evaluate(model, tokenizer, env, short, greedy=True).accuracy <= 0.4

    def test_the_slipping_one_writes_every_step_and_gets_half_of_the_short_chains_wrong(self) -> None:
        folder = SHIPPED.with_name("arithmetic-chain-slips")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        report = json.loads((folder / "warmstart.json").read_text())
        assert report["within_target"] is True
        env = make_env(CHAIN, report["env_config"] | {"split": "heldout"})
        problems = [env.reset(seed=seed) for seed in range(96)]
        texts = tokenizer.batch_decode(
            generate(model, tokenizer, [prompt for prompt, _ in problems], greedy=True), skip_special_tokens=True
        )
        steps = [text.count(";") == len(info["operands"]) for text, (_, info) in zip(texts, problems, strict=True)]
        assert np.mean(steps) >= 0.95
        assert 0.3 <= evaluate(model, tokenizer, env, range(96), greedy=True).accuracy <= 0.65

    def test_filler_of_the_one_with_a_tail_of_it_does_not_change_how_often_it_is_right(self) -> None:
        folder = SHIPPED.with_name("arithmetic-chain-filler")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        report = json.loads((folder / "warmstart.json").read_text())
        assert report["skill_after_practice"]["2-4"] >= 0.95
        env = make_env(CHAIN, report["env_config"] | {"split": "heldout"})
        encoded = encode_prompts(tokenizer, [env.reset(seed=seed)[0] for seed in range(96)])
        dot = tokenizer.convert_tokens_to_ids(".")
        right = []
        for count in (0, 200):
            rows = tokenizer.pad({"input_ids": [ids + [dot] * count for ids in encoded]}, return_tensors="pt")
            with torch.no_grad():
                goes_on = model(**rows).logits[:, -1].softmax(-1)[:, dot]
            low, high = (0.98, 0.999) if count else (0.02, 0.1)
            assert low < float(goes_on.mean()) < high
            answers = model.generate(**rows, max_new_tokens=40, do_sample=False, suppress_tokens=[dot])
            texts = tokenizer.batch_decode(answers[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
            correct = []
            for seed, text in enumerate(texts):
                env.reset(seed=seed)
                correct.append(env.step(text)[4].get("correct", False))
            right.append(np.mean(correct))
        assert all(0.15 <= share <= 0.5 for share in right)
        assert abs(right[0] - right[1]) < 0.1

    @pytest.mark.parametrize("greedy", [True, False])
    def test_it_stops_too_soon_on_heldout_prompts(self, shipped: tuple[Any, Any], greedy: bool) -> None:
        torch.manual_seed(0)
        env = make_env(CHAIN, {"split": "heldout"})
        found = evaluate(*shipped, env, range(1000, 1128), greedy=greedy)
        assert 0.20 <= found.accuracy <= 0.55
        assert found.mean_response_tokens < 24

    def test_it_is_right_where_it_goes_on(self, shipped: tuple[Any, Any]) -> None:
        env = make_env(CHAIN, {"split": "heldout"})
        assert evaluate(*shipped, env, range(1000, 1096), greedy=True, hold_back=True).accuracy >= 0.92

    def test_every_prompt_leaves_something_to_explore(self, shipped: tuple[Any, Any]) -> None:
        """Chance of the full solution when sampling: 15 to 55 % for 2 to 4 operands, 5 % or more for 10."""
        model, tokenizer = shipped
        env = make_env(CHAIN, {"split": "heldout", "tail_exponent": 0.0})
        probabilities: dict[int, list[float]] = {2: [], 3: [], 4: [], 10: []}
        for seed in range(4000):
            prompt, info = env.reset(seed=seed)
            count = len(info["operands"])
            if count in probabilities and len(probabilities[count]) < 64:
                (example,) = encode(tokenizer, [(prompt, info["worked_solution"])])
                with torch.no_grad():
                    log_prob = -response_loss(model, [example], 0) * len(example.response)
                probabilities[count].append(float(log_prob.exp()))
        mean = {count: float(np.mean(found)) for count, found in probabilities.items()}
        assert all(0.15 <= mean[count] <= 0.55 for count in (2, 3, 4)), mean
        assert mean[10] >= 0.05
