"""The chain's problems, worked solutions, exact verifier and length tail."""

from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.envs.arithmetic_chain import (
    LABELS,
    MAX_OPERANDS,
    ArithmeticChain,
    Chain,
    operand_probabilities,
    running_sums,
    solution,
)

CHAIN = Chain("a3k9B1=", None, {}, "akB", (3, 9, 1))
chains = st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 9)), min_size=2, max_size=52)


def score(text: str, chain: Chain = CHAIN) -> float | None:
    return ArithmeticChain().respond(chain, text, 0).score


def test_worked_solution_by_hand() -> None:
    assert solution("akB", (3, 9, 1)) == "a3=3;k9=12;B1=13;#13"
    assert solution("akB", (3, 9, 1), stop_after=2) == "a3=3;k9=12;#12"


def test_sums_wrap_at_100() -> None:
    assert running_sums([9] * 12)[-2:] == [99, 8]


def test_prompt_holds_labels_and_operands() -> None:
    env = ArithmeticChain(tail_exponent=0)
    for seed in range(50):
        prompt, info = env.reset(seed=seed)
        labels, digits = prompt[:-1:2], prompt[1:-1:2]
        assert prompt.endswith("=")
        assert len(set(labels)) == len(labels)
        assert set(labels) <= set(LABELS)
        assert tuple(int(digit) for digit in digits) == info["operands"]
        assert info["answer"] == str(sum(info["operands"]) % 100)
        assert info["worked_solution"].count(";") == len(info["operands"])
        assert info["worked_solution"].endswith(f";#{info['answer']}")


@pytest.mark.parametrize("text", ["a3=3;k9=12;B1=13;#13", "#13", "anything; even wrong = 5 #13"])
def test_accepted(text: str) -> None:
    assert score(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "13",
        "#",
        "a3=3;#3",
        "#12#13",
        "##13",
        "#13#",
        "#13#13",
        "#013",
        "#+13",
        "#-13",
        "#13 ",
        "# 13",
        "#13;",
        "#13\n",
        "#13.0",
        "#113",
        "#1 3",
        "#\uff11\uff13",
        "#13<eos>",
        "#\u0661\u0663",
        "\u266f13",
    ],
)
def test_rejected(text: str) -> None:
    assert score(text) == 0.0


def test_zero_is_written_as_one_digit() -> None:
    chain = Chain("a0b0=", None, {}, "ab", (0, 0))
    assert [score(text, chain) for text in ("#0", "#00", "#-0", "#")] == [1.0, 0.0, 0.0, 0.0]


@settings(deadline=None)
@given(chains, st.text(st.characters(exclude_characters="#")), st.text(min_size=1))
def test_only_the_exact_answer_at_the_end_counts(pairs: list[tuple[str, int]], before: str, junk: str) -> None:
    chain = Chain("", None, {}, "".join(label for label, _ in pairs), tuple(operand for _, operand in pairs))
    assert score(f"{before}#{chain.answer}", chain) == 1.0
    assert score(f"{before}#{chain.answer}{junk}", chain) == 0.0
    assert score(f"{before}#{junk}#{chain.answer}", chain) == 0.0
    wrong = (int(chain.answer) + 1) % 100
    assert score(f"{before}#{wrong}", chain) == 0.0


@settings(deadline=None)
@given(chains)
def test_solutions_that_stop_early_are_prefixes(pairs: list[tuple[str, int]]) -> None:
    labels, operands = "".join(label for label, _ in pairs), [operand for _, operand in pairs]
    steps, _, _ = solution(labels, operands).partition("#")
    for count in range(1, len(pairs) + 1):
        early, _, stated = solution(labels, operands, count).partition("#")
        assert steps.startswith(early)
        assert int(stated) == sum(operands[:count]) % 100


def test_early_stop_of_the_current_problem() -> None:
    env = ArithmeticChain(tail_exponent=0)
    with pytest.raises(ResetNeeded):
        env.worked_solution()
    _, info = env.reset(seed=1)
    assert env.worked_solution() == info["worked_solution"]
    assert env.worked_solution(stop_after=1).count(";") == 1
    for stop_after in (0, -1, len(info["operands"]) + 1, 1.0):
        with pytest.raises(ValueError, match=rf"stop_after={stop_after}.*1 to {len(info['operands'])}"):
            env.worked_solution(stop_after=stop_after)  # type: ignore[arg-type]


def test_worked_solutions_with_other_sums() -> None:
    assert solution("ab", (3, 4), sums=(3, 8)) == "a3=3;b4=8;#8"
    assert solution("ab", (3, 4), 1, sums=(2, 8)) == "a3=2;#2"
    env = ArithmeticChain(max_operands=2)
    env.reset(seed=1)
    assert env.worked_solution(sums=(1, 99)).endswith("=99;#99")
    with pytest.raises(ValueError, match=r"sums=\[1, 2, 3\]: give None or 2 sums"):
        env.worked_solution(sums=[1, 2, 3])


def test_tail_is_heavy_enough_for_a_cap_of_ten_means() -> None:
    env = ArithmeticChain()
    lengths = [len(env.reset(seed=seed)[1]["worked_solution"]) for seed in range(5000)]
    # Nine first makes every later sum of this chain have two digits, so no solution is longer.
    longest = len(solution(LABELS, [9, 9] + [0] * 50))
    assert longest == 314
    assert max(lengths) <= longest
    assert np.mean(lengths) == pytest.approx(30.0, abs=1.5)
    assert longest >= 10 * np.mean(lengths)
    assert max(lengths) >= 8 * np.mean(lengths)


def test_number_of_operands_follows_the_power_law() -> None:
    env = ArithmeticChain(max_operands=5, tail_exponent=1)
    counts = np.bincount([len(env.reset(seed=seed)[1]["operands"]) for seed in range(6000)])
    expected = np.array([1 / 2, 1 / 3, 1 / 4, 1 / 5]) / (77 / 60)
    assert operand_probabilities(5, 1.0) == pytest.approx(expected)
    assert counts[2:] / 6000 == pytest.approx(expected, abs=0.025)


def test_a_share_of_the_chains_is_long() -> None:
    env = ArithmeticChain(max_operands=30, tail_exponent=4, long_share=0.2)
    counts = np.bincount([len(env.reset(seed=seed)[1]["operands"]) for seed in range(4000)], minlength=31)
    assert counts[30] / 4000 == pytest.approx(0.2, abs=0.025)
    assert counts[2] / 4000 == pytest.approx(0.8 * operand_probabilities(30, 4.0)[0], abs=0.03)
    probabilities = operand_probabilities(30, 4.0, 0.2)
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities[:-1] == pytest.approx(0.8 * operand_probabilities(30, 4.0)[:-1])


def test_splits_have_the_same_lengths() -> None:
    def mean(split: str) -> float:
        env = ArithmeticChain(split=split)  # type: ignore[arg-type]
        return float(np.mean([len(env.reset(seed=seed)[0]) for seed in range(3000)]))

    assert mean("train") == pytest.approx(mean("heldout"), abs=1.0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"max_operands": 1}, "max_operands=1: .*2 to 52"),
        ({"max_operands": MAX_OPERANDS + 1}, "max_operands=53"),
        ({"max_operands": 4.0}, r"max_operands=4\.0"),
        ({"tail_exponent": -0.1}, r"tail_exponent=-0\.1: .*for example 2\.2"),
        ({"tail_exponent": float("inf")}, "tail_exponent=inf"),
        ({"tail_exponent": "2"}, "tail_exponent='2'"),
        ({"long_share": 1.5}, r"long_share=1\.5: give a share"),
        ({"long_share": None}, "long_share=None"),
    ],
)
def test_bad_options(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ArithmeticChain(**config)
