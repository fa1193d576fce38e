"""Names of options and arguments of vLLM, RLlib and Tune, read from their sources: importing them takes many seconds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from tppo_rl.core.insides import RAY, VLLM, Package

_PLAIN = frozenset({"None", "bool", "int", "float", "str"})
_Node = TypeVar("_Node", ast.ClassDef, ast.FunctionDef)


@lru_cache
def vllm_engine_args() -> dict[str, frozenset[str]]:
    """Names of vLLM's engine arguments with the names of their types, read from its source: importing vLLM takes many seconds.

    Returns:
        Types by argument: of `None`, `bool`, `int`, `float`, `str`, and none where others are among them.
    """
    body = _class_body(VLLM, "engine/arg_utils.py", "EngineArgs")
    nodes = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: _plain_types(node.annotation) for node in nodes if isinstance(node.target, ast.Name)}


@lru_cache
def rllib_keys() -> frozenset[str]:
    """Names of RLlib's options, read from its source: importing RLlib takes many seconds."""
    attributes = [node for node in ast.walk(_rllib_constructor()) if isinstance(node, ast.Attribute)]
    return frozenset(node.attr for node in attributes if isinstance(node.ctx, ast.Store))


@lru_cache
def rllib_defaults() -> dict[str, bool | int | float | str]:
    """Defaults of RLlib's options that are one plain value, read from its source."""
    found: dict[str, bool | int | float | str] = {}
    for node in ast.walk(_rllib_constructor()):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
            continue
        for target in node.targets:
            if isinstance(target, ast.Attribute) and isinstance(node.value.value, bool | int | float | str):
                found[target.attr] = node.value.value
    return found


def _rllib_constructor() -> ast.FunctionDef:
    body = _class_body(RAY, "rllib/algorithms/algorithm_config.py", "AlgorithmConfig")
    return _only(ast.FunctionDef, "__init__", body, RAY, "AlgorithmConfig.__init__")


@lru_cache
def constructor_arguments(file: str, name: str) -> frozenset[str]:
    """Names of the arguments of a class of Ray's, read from its source: importing its package takes many seconds."""
    constructor = _only(ast.FunctionDef, "__init__", _class_body(RAY, file, name), RAY, f"{name}.__init__")
    return frozenset(argument.arg for argument in (*constructor.args.args[1:], *constructor.args.kwonlyargs))


def _plain_types(annotation: ast.expr) -> frozenset[str]:
    parts = [part.strip() for part in ast.unparse(annotation).split("|")]
    return frozenset(parts) if set(parts) <= _PLAIN else frozenset()


def _class_body(package: Package, file: str, name: str) -> list[ast.stmt]:
    """The statements of a class; none where the package is not installed."""
    spec = importlib.util.find_spec(package.name.lower())
    if spec is None or not spec.submodule_search_locations:
        return []
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file():
        raise package.lacks(f"the file {file}")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return _only(ast.ClassDef, name, body, package, f"{name} in {file}").body


def _only(kind: type[_Node], name: str, body: Sequence[ast.stmt], package: Package, what: str) -> _Node:
    for node in body:
        if isinstance(node, kind) and getattr(node, "name", None) == name:
            return node
    raise package.lacks(what)
