"""The package is what its declaration says, and its parts depend on one another in one direction."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_FOLDERS = ("envs", "algorithms", "tune", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# What each part may import of ours, besides itself.
ALLOWED = {
    "tppo_rl.maths": set(),
    "tppo_rl.envs": set(),
    "tppo_rl.learner": {"tppo_rl.maths", "tppo_rl"},
    "tppo_rl.rollout": {"tppo_rl", "tppo_rl.base_models", "tppo_rl.envs"},
    "tppo_rl.algorithms": {"tppo_rl", "tppo_rl.base_models", "tppo_rl.learner", "tppo_rl.rollout"},
    "tppo_rl.tune": {"tppo_rl", "tppo_rl.algorithms"},
    "tppo_rl.bench": {
        "tppo_rl",
        "tppo_rl.algorithms",
        "tppo_rl.base_models",
        "tppo_rl.configs",
        "tppo_rl.envs",
        "tppo_rl.learner",
        "tppo_rl.maths",
        "tppo_rl.plan",
        "tppo_rl.rollout",
        "tppo_rl.tune",
    },
    "tppo_rl.plan": {"tppo_rl"},
    "tppo_rl.configs": set(),
    "tppo_rl.base_models": set(),
}
# Modules at the top of the package that host whole runs and so may know all parts.
HOSTS = {"tppo_rl.__main__", "tppo_rl.cli", "tppo_rl.run"}


def packages_in_tree() -> set[str]:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "tppo_rl").glob("**/__init__.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    return found | {f"tppo_rl.{folder}" for folder in TOP_FOLDERS}


def modules() -> dict[str, Path]:
    result = {}
    for path in sorted((ROOT / "tppo_rl").glob("**/*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for folder in TOP_FOLDERS:
        for path in sorted((ROOT / folder).glob("**/*.py")):
            parts = ("tppo_rl", *path.relative_to(ROOT).with_suffix("").parts)
            result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


def package_of(module: str) -> str:
    parts = module.split(".")
    candidate = ".".join(parts[:2])
    return candidate if candidate in ALLOWED else "tppo_rl"


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name == "tppo_rl" or name.startswith("tppo_rl.")}


def test_declared_packages_are_those_of_the_tree() -> None:
    declared = PROJECT["tool"]["setuptools"]
    assert set(declared["packages"]) == packages_in_tree()
    assert declared["package-dir"] == {f"tppo_rl.{folder}": folder for folder in TOP_FOLDERS}


@pytest.mark.parametrize("module", [name for name in modules() if name not in HOSTS])
def test_imports_point_one_way(module: str) -> None:
    own = package_of(module)
    reached = {package_of(name) for name in imports_of(modules()[module])} - {own}
    # The options check names of environments and of shipped models; both know nothing of the rest.
    allowed = ALLOWED.get(own, {"tppo_rl.base_models", "tppo_rl.envs", "tppo_rl.rollout"})
    assert reached <= allowed, f"{module} imports {sorted(reached - allowed)}"


def test_maths_and_the_update_step_import_no_ray() -> None:
    program = "import sys, tppo_rl.learner.update, tppo_rl.maths.advantages; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("folder", TOP_FOLDERS)
def test_a_second_import_name_is_refused(folder: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert f"import this package as 'tppo_rl.{folder}'" in run.stderr


def test_the_wheel_holds_everything(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "tppo_rl/py.typed",
        "tppo_rl/envs/arithmetic_chain.py",
        "tppo_rl/configs/quickstart.yaml",
        "tppo_rl/tune/report.html.jinja",
        "tppo_rl/base_models/arithmetic-chain/model.safetensors",
        "tppo_rl/base_models/arithmetic-chain/tokenizer.json",
        "tppo_rl/base_models/arithmetic-chain/chat_template.jinja",
    }
    assert expected <= names
    sources = {name.replace(".", "/") for name in modules()}
    assert all(f"{name}.py" in names or f"{name}/__init__.py" in names for name in sources)
