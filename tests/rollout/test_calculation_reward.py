from __future__ import annotations

import pytest

from tppo_rl.config.options import Options
from tppo_rl.core.registry import REWARDS, PartSpec
from tppo_rl.rollout.calculation_reward import has_calculation

QUESTION = "Linda has 7 caps and 1,200 pins. She buys 7 more caps for $2.50 each. How many caps has she?"


@pytest.mark.parametrize(
    "response",
    [
        "7 + 7 = 14",
        "She has 7+7=14 caps.",
        "7 \N{MULTIPLICATION SIGN} $2.50 = $17.50",
        "7 x 2.5 = 17.5",
        "1,200 / 7 = 171.43",
        "1200 - 7 = 1193",
        "7 + 7 = 15. No: 7 + 7 = 14",
    ],
)
def test_right_calculations_with_numbers_of_the_question(response: str) -> None:
    assert has_calculation(QUESTION, response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "14",
        "7 + 7 = 15",
        "7 + 8 = 15",
        "2.50 + 2.50 = 5",
        "1200 + 1200 = 2400",
        "7 + 7",
        "= 14",
        "7 / 0 = 0",
        "17 + 7 = 24",
    ],
)
def test_everything_else(response: str) -> None:
    assert not has_calculation(QUESTION, response)


def test_long_texts_end() -> None:
    for text in ("1" * 10**6, "1+" * 10**5, "1,000" * 10**5, "9.9.9." * 10**5, "7 + 7 = " * 10**5):
        assert not has_calculation(QUESTION, text)
        assert not has_calculation(text[:20000], "7 + 8 = 14")


def test_it_is_a_reward_by_name() -> None:
    assert [
        part.spec.name for part in Options.of(rewards=[{"type": "calculation", "weight": 0.3}]).rewards.rewards
    ] == ["calculation"]
    reward = REWARDS.resolve(PartSpec("calculation"))
    messages = [{"role": "user", "content": "9 + 9?"}, {"role": "user", "content": QUESTION}]
    said = [{"role": "assistant", "content": "7 + 7 = 14"}]
    assert reward(prompts=[QUESTION, messages], completions=["9 + 9 = 18", said], answer=["14", "14"]) == [0.0, 1.0]
