import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tppo_rl.cli import main

CONFIG = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
HEAVY = {"torch", "ray", "vllm", "transformers", "reasoning_gym"}


def imported_by(*arguments: str) -> tuple[int, str, set[str]]:
    """Runs the command line in a fresh interpreter: exit code, output, and which heavy modules it loaded."""
    program = (
        "import sys; from tppo_rl.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        f"finally:\n    print('loaded:', *sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    output, _, loaded = (run.stdout + run.stderr).rpartition("loaded:")
    return run.returncode, output, set(loaded.split())


def test_help_imports_nothing_heavy() -> None:
    code, output, loaded = imported_by("--help")
    assert code == 0
    assert "train" in output
    assert loaded == set()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("windw_length=3", ["windw_length=3", "did you mean window_length"]),
        ("window_length=abc", ["window_length='abc'"]),
        ("window_length=4000", ["window_length=4000", "max_response_length"]),
        ("env=tppo_rl/Arithmetic-v0", ["env='tppo_rl/Arithmetic-v0'", "tppo_rl/ArithmeticChain-v0"]),
        ("policy_model=./nothing", ["policy_model='./nothing'", "no such folder"]),
        ("policy_model=nobody/no-such-model", ["policy_model='nobody/no-such-model'"]),
        ("max_response_length=2000", ["max_response_length=2000", "1024"]),
    ],
)
def test_bad_input_ends_at_once_with_one_message_and_no_engine(setting: str, words: list[str]) -> None:
    started = time.monotonic()
    code, output, loaded = imported_by("train", "file", CONFIG, "--set", setting)
    assert code == 2
    # A look at a hub that cannot be reached is slow enough to be announced.
    assert output.splitlines()[-1].startswith("error: ")
    assert output.count("error: ") == 1
    assert all(word in output for word in words), output
    assert not loaded & {"ray", "vllm", "torch"}
    print(f"{setting}: {time.monotonic() - started:.1f} s")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("windw_length={grid_search: [8]}", "windw_length=8: unknown option, did you mean window_length"),
        ("window_length={grid_search: []}", "window_length.grid_search=[]: must be a list of at least one value"),
        ("window_length={grid_search: [512, 600]}", "window_length=600: longer than max_response_length=512"),
        ("tune_config.scheduler=hyperbandd", "window_sweep.tune_config.scheduler='hyperbandd': unknown name"),
    ],
)
def test_a_bad_sweep_ends_at_once_with_one_message_and_no_engine(setting: str, message: str) -> None:
    sweep = str(Path(CONFIG).with_name("window_sweep.yaml"))
    code, output, loaded = imported_by("tune", "file", sweep, "--set", setting)
    assert code == 2
    assert output.startswith(f"error: {message}")
    assert not loaded & {"ray", "vllm", "torch"}


def test_a_run_without_a_file_is_checked_alike() -> None:
    arguments = ["train", "--run", "TPPO", "--env", "tppo_rl/ArithmeticChain-v0", "--stop", "{training_iteration: 1}"]
    result = CliRunner().invoke(main, [*arguments, "--config", "{policy_model: tppo_rl/arithmetic-chain, lr: fast}"])
    assert result.exit_code == 2
    assert "lr='fast'" in result.output
    result = CliRunner().invoke(main, [*arguments, "--config", "{lr: ["])
    assert result.exit_code == 2
    assert "not valid YAML or JSON" in result.output


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", "file", CONFIG, "--resume", "--results", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no checkpoint" in result.output


def test_options_lists_every_option() -> None:
    result = CliRunner().invoke(main, ["options"])
    assert result.exit_code == 0
    assert "window_length" in result.output
