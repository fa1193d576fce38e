"""The memory plan against measured peaks, and what the table of settings promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tppo_rl.bench.memory_plan import memory_plan_figures
from tppo_rl.bench.memory_settings import FITTED, PRETRAINED, UNSEEN


def test_settings_differ_in_all_that_the_plan_depends_on() -> None:
    settings = (*FITTED, *UNSEEN)
    assert len(FITTED) == 12
    assert len({setting.name for setting in settings}) == len(settings)
    assert all(setting.tokens % setting.length == 0 for setting in settings)
    for key in ("dtype", "lora", "gradient_checkpointing"):
        assert 0 < sum(key in setting.options for setting in FITTED) < 12, key
    assert len({setting.length for setting in FITTED}) > 3
    assert len({setting.model for setting in FITTED}) == 3
    assert replace(FITTED[0], model="tiny").name == "tiny 4 x 256"


def test_an_unknown_setting_or_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only=\\['no such'\\]"):
        memory_plan_figures(pretrained=tmp_path, only=["no such"], kept_blocks=False, repeats=1)
    with pytest.raises(ValueError, match="there is no model"):
        memory_plan_figures(pretrained=tmp_path, only=[PRETRAINED], kept_blocks=False, repeats=1)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [one for one in FITTED if one.model == "tiny"], ids=lambda one: one.name)
def test_the_plan_is_within_a_tenth_of_the_peak(setting: object, tmp_path: Path) -> None:
    name = setting.name  # type: ignore[attr-defined]
    # One name may be the beginning of another.
    figures = memory_plan_figures(pretrained=tmp_path, only=[name], kept_blocks=False, repeats=1)
    (ratio,) = [figure.median for figure in figures if figure.figure == f"ratio in use, {name}"]
    assert ratio == pytest.approx(1, abs=0.1)
