"""What the README shows does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner

from tppo_rl.cli import main
from tppo_rl.run import quiet_libraries

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
