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

# The rooms, floor by floor from the ground up. A room may import the rooms of the floors below it, and none beside it.
FLOORS = (
    ("core", "maths", "kernels", "base_models", "configs"),
    ("envs",),
    ("config",),
    ("rollout", "learner", "pretrain"),
    ("observability", "plan"),
    ("algorithms",),
    ("experiment",),
    ("tune", "lab"),
    ("bench",),
)
# Fewer than the floor would allow: what these rooms do not need to know.
ALLOWED = {
    "envs": {"core"},
    "config": {"core", "envs", "base_models"},
    "rollout": {"core", "config", "kernels", "envs", "base_models"},
    "learner": {"core", "config", "maths", "kernels", "base_models"},
    "pretrain": {"core", "envs"},
    "observability": {"core", "config", "maths", "rollout", "learner"},
    "plan": {"core", "config", "rollout", "base_models"},
}
# The command line and the package itself may know all rooms; nothing imports them.
TOP = {"tppo_rl", "tppo_rl.__main__", "tppo_rl.cli"}


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


def room_of(module: str) -> str:
    parts = module.split(".")
    return "tppo_rl" if len(parts) == 1 or parts[1] in ("__main__", "cli") else parts[1]


def allowed(room: str) -> set[str]:
    (floor,) = [index for index, rooms in enumerate(FLOORS) if room in rooms]
    below = {other for rooms in FLOORS[:floor] for other in rooms}
    assert ALLOWED.get(room, below) <= below, f"{room} may import rooms that do not stand below it"
    return ALLOWED.get(room, below)


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from tppo_rl import x` may name a room, or what the package itself exports.
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "tppo_rl" else {node.module}
            )
    return {name for name in names if name == "tppo_rl" or name.startswith("tppo_rl.")}


def test_declared_packages_are_those_of_the_tree() -> None:
    declared = PROJECT["tool"]["setuptools"]
    assert set(declared["packages"]) == packages_in_tree()
    assert declared["package-dir"] == {f"tppo_rl.{folder}": folder for folder in TOP_FOLDERS}


def test_every_module_has_a_room() -> None:
    rooms = {room for rooms in FLOORS for room in rooms}
    assert {room_of(module) for module in modules() if module not in TOP} == rooms


@pytest.mark.parametrize("module", [name for name in modules() if name not in TOP])
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    reached = {room_of(name) for name in imports_of(modules()[module])} - {room}
    assert reached <= allowed(room), f"{module} imports {sorted(reached - allowed(room))}"


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


@pytest.mark.integration
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
        "tppo_rl/experiment/page/page.html",
        "tppo_rl/experiment/page/main.js",
        "tppo_rl/base_models/arithmetic-chain/model.safetensors",
        "tppo_rl/base_models/arithmetic-chain/tokenizer.json",
        "tppo_rl/base_models/arithmetic-chain/chat_template.jinja",
    }
    assert expected <= names
    sources = {name.replace(".", "/") for name in modules()}
    assert all(f"{name}.py" in names or f"{name}/__init__.py" in names for name in sources)
