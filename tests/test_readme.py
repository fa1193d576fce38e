"""What the README shows does what it says."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import get_args

import click
import pytest
import ray
from click.testing import CliRunner

from tppo_rl.cli import main
from tppo_rl.config.options import OPTIONS
from tppo_rl.core.registry import ADVANTAGES, POLICY_LOSSES
from tppo_rl.experiment.run import quiet_libraries

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_trains(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    quiet_libraries()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        scope: dict = {}
        exec(compile(example, "README.md", "exec"), scope)
        scope["algo"].stop()
    finally:
        ray.shutdown()
    assert 0.0 <= float(capsys.readouterr().out.strip().splitlines()[-1]) <= 1.0


def test_files_and_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(r"(?:tppo_rl|algorithms|envs|configs|tune|docs|tests)/[\w/.-]+\.(?:py|yaml|png)", README):
        assert (ROOT / path).is_file(), path


def test_commands_that_it_names_exist() -> None:
    for command in set(re.findall(r"tppo-rl ([a-z]+)", README)):
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0, command


def test_subcommands_and_options_that_it_shows_exist() -> None:
    lines = README.replace("\\\n", " ")
    shown = [line for line in lines.splitlines() if line.startswith("    tppo-rl ")]
    assert len(shown) >= 10
    for line in [*shown, *re.findall(r"`(tppo-rl [^`\n]+)`", lines)]:
        _, *words = shlex.split(line, comments=True)
        command: click.Command = main
        while isinstance(command, click.Group) and words and words[0].isalpha():
            assert words[0] in command.commands or command.invoke_without_command, line
            command = command.commands.get(words.pop(0), command)
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, line


def test_functions_and_tests_of_the_equations_exist() -> None:
    rows = [line.split("|") for line in README.splitlines() if "::" in line]
    assert len(rows) >= 20
    for _, _, options, functions, test, _ in rows:
        for module, function in re.findall(r"`(\w+)\.(\w+)`", functions):
            assert callable(getattr(import_module(f"tppo_rl.maths.{module}"), function))
        for option in re.findall(r"`(\w+)(?:: \w+)?`", options):
            values = {value for known in OPTIONS.values() for value in get_args(known.info.annotation)}
            assert option in OPTIONS or option in values | set(POLICY_LOSSES) | set(ADVANTAGES), option
        ((file, name),) = re.findall(r"`([\w.]+)::(\w+)`", test)
        assert f"def {name}(" in (ROOT / "tests" / "maths" / file).read_text(encoding="utf-8"), name
