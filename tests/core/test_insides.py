"""The insides of other packages are as the adapter files say."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tppo_rl.config.foreign_sources import vllm_engine_args
from tppo_rl.core.insides import RAY, VLLM, Package, missing
from tppo_rl.rollout.vllm_internals import VLLMCore

pytestmark = pytest.mark.integration

ADAPTERS = (
    "tppo_rl.rollout.vllm_internals",
    "tppo_rl.rollout.core_process",
    "tppo_rl.rollout.cpu_layers",
    "tppo_rl.rollout.broadcast_group",
    "tppo_rl.rollout.rllib_internals",
    "tppo_rl.learner.rllib_internals",
    "tppo_rl.learner.transformers_internals",
    "tppo_rl.algorithms.rllib_internals",
    "tppo_rl.tune.tune_internals",
)
ATTRIBUTES = [
    (adapter, place, attribute)
    for adapter in ADAPTERS
    for place, attributes in import_module(adapter).CONTRACT.items()
    for attribute in attributes or (None,)
]


@pytest.mark.parametrize(("adapter", "place", "attribute"), ATTRIBUTES, ids=str)
def test_what_an_adapter_uses_is_there(adapter: str, place: str, attribute: str | None) -> None:
    assert missing({place: () if attribute is None else (attribute,)}) == []


def test_what_is_not_there_is_named() -> None:
    assert missing({"json:JSONDecoder": ("decode", "guess"), "json": ("loads", "lods"), "jsn:x": (), "json:x": ()}) == [
        "json:JSONDecoder.guess",
        "json.lods",
        "jsn:x",
        "json:x",
    ]


def test_the_message_names_package_versions_and_attribute() -> None:
    package = Package("vLLM", ("no-such-distribution",), "9.9")
    message = r"^vLLM \(not installed\) lacks LLMEngine\.core \(.*'core'.*vLLM 9\.9: install"
    with pytest.raises(RuntimeError, match=message), package.insides("LLMEngine.core"):
        object().core  # type: ignore[attr-defined]  # noqa: B018


def test_an_engine_whose_outputs_have_changed_says_so() -> None:
    batch = SimpleNamespace(outputs=[SimpleNamespace(request_id="1", token_ids=[3])], weight_version="0")
    engine = SimpleNamespace(
        engine_core=SimpleNamespace(get_output=lambda: batch), output_processor=SimpleNamespace(request_states={})
    )
    with pytest.raises(
        RuntimeError, match=r"lacks the outputs of its engine core .*new_token_ids.*install that version"
    ):
        VLLMCore(engine).outputs()
    with pytest.raises(RuntimeError, match=r"lacks LLMEngine\.engine_core"):
        VLLMCore(SimpleNamespace())


def test_a_class_that_has_moved_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm" / "engine").mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    vllm_engine_args.cache_clear()
    with pytest.raises(RuntimeError, match=r"lacks the file engine/arg_utils\.py"):
        vllm_engine_args()
    (tmp_path / "vllm" / "engine" / "arg_utils.py").write_text("class OtherArgs: ...")
    with pytest.raises(RuntimeError, match=r"lacks EngineArgs in engine/arg_utils\.py"):
        vllm_engine_args()


def test_the_installed_versions_are_those_that_this_was_written_for() -> None:
    assert RAY.installed == RAY.written_for
    assert VLLM.installed == VLLM.written_for
