"""`tppo-rl check-env` says what an environment breaks, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import broken_envs
import pytest
from click.testing import CliRunner, Result
from data_sets import write_lines

from tppo_rl.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture
def doubling(tmp_path: Path) -> str:
    """A file of the user's, outside of the repository."""
    return f"{shutil.copy(Path(broken_envs.__file__), tmp_path / 'my_envs.py')}:Doubling-v0"


def check(env: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["check-env", env, "--episodes", "4", *arguments])


def verdicts(result: Result) -> dict[str, str]:
    """The verdict of each check by its name."""
    lines = [line for line in result.output.splitlines() if line[:4] in ("pass", "fail", "not ")]
    return {line[16:48].strip(): line[:14].strip() for line in lines}


@pytest.mark.parametrize(
    ("fault", "check_name", "words"),
    [
        ("unseeded", "same seed, same prompt", "differ asked once more: seed 0"),
        ("process", "same seed, same prompt", "differ in another process: seed 0"),
        ("moody", "same turns, same steps", "seed 0"),
        ("overlap", "splits share no prompt", "4 prompts are in both"),
        ("both", "terminated, truncated", "both are True"),
        ("integers", "terminated, truncated", "must be bool, got 1"),
        ("cut", "terminated, truncated", "a right answer is truncated"),
        ("gold", "accepts the gold answer", "4 of 4 refused: seed 0, 'nonsense'"),
        ("all right", "refuses a wrong answer", "'no idea' counts as right"),
        ("hostile right", "survives hostile texts", "not a number: counts as right"),
        ("raises", "survives hostile texts", "half a surrogate pair: exception: UnicodeEncodeError"),
        ("hangs", "survives hostile texts", "60,000 characters: timeout: took more than scoring_deadline_s=1"),
        ("reset", "gives prompts", "4 of 4 resets failed: exception: RuntimeError: no problem today"),
    ],
)
def test_each_fault_breaks_its_own_check_alone(doubling: str, fault: str, check_name: str, words: str) -> None:
    result = check(doubling, "--set", f"fault={fault}", "--deadline", "1")
    assert result.exit_code == 1
    assert [name for name, verdict in verdicts(result).items() if verdict == "fails"] == [check_name]
    assert words in result.output
    assert result.output.endswith("1 check fails\n")


def test_a_gold_answer_of_several_turns_is_played_turn_by_turn(doubling: str) -> None:
    """Here the last turn alone is wrong."""
    result = check(doubling, "--set", "fault=two turns")
    assert result.exit_code == 0, result.output
    assert verdicts(result)["accepts the gold answer"] == "pass"


def test_a_sound_environment_passes_and_what_it_does_not_say_is_not_held_against_it(doubling: str) -> None:
    result = check(doubling)
    assert result.exit_code == 0, result.output
    assert set(verdicts(result).values()) == {"pass"}
    result = check(doubling, "--env-config", "{fault: no gold}")
    assert result.exit_code == 0, result.output
    assert {name for name, verdict in verdicts(result).items() if verdict == "not applicable"} == {
        "accepts the gold answer", "refuses a wrong answer",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("env", "arguments"),
    [
        ("tppo_rl/ArithmeticChain-v0", ["--set", "max_operands=4"]),
        ("tppo_rl/Calculator-v0", []),
        ("tppo_rl/GuessNumber-v0", []),
        ("tppo_rl/ReasoningGym-v0", ["--env-config", "{task: chain_sum, task_config: {min_terms: 2}}"]),
    ],
)
def test_environments_that_ship_pass(env: str, arguments: list[str]) -> None:
    result = check(env, *arguments)
    assert result.exit_code == 0, result.output
    has_gold = env != "tppo_rl/GuessNumber-v0"
    assert verdicts(result)["accepts the gold answer"] == ("pass" if has_gold else "not applicable")


@pytest.mark.parametrize(
    ("env", "arguments", "words"),
    [
        ("tppo_rl/ArithmeticChain-v1", [], "env='tppo_rl/ArithmeticChain-v1': unknown name"),
        ("tppo_rl/ArithmeticChain-v0", ["--set", "max_operand=4"], "did you mean env_config.max_operands"),
        ("tppo_rl/ArithmeticChain-v0", ["--set", "max_operands=1"], "env_config.max_operands=1"),
        ("tppo_rl/ArithmeticChain-v0", ["--env-config", "3"], "--env-config='3': must be a mapping"),
    ],
)
def test_bad_input_is_one_message(env: str, arguments: list[str], words: str) -> None:
    result = check(env, *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_an_environment_with_tools_passes(tmp_path: Path) -> None:
    rows = ({"prompt": f"Note {k}.", "code": k, "solution": str(k)} for k in range(200))
    source = write_lines(tmp_path / "rows.jsonl", rows)
    factory = f"{Path(__file__).parents[1] / 'envs' / 'trl_examples.py'}:Notes"
    config = f"{{source: {source}, factory: '{factory}', answer: solution}}"
    result = check("tppo_rl/TRLEnvironment-v0", "--env-config", config)
    assert result.exit_code == 0, result.output
