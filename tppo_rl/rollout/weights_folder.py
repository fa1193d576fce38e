"""A folder in shared memory through which an engine's processes get new weights.

The folder's name says which process owns it. What a process that was killed has left there is cleared by the next one that
makes a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tppo_rl.core.errors import RunError
from tppo_rl.rollout.packed_weights import Place
from tppo_rl.rollout.weights_file import WeightsFile

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "tppo-rl-weights"
_NAME = re.compile(rf"{_PREFIX}-(?P<namespace>\d+)-(?P<process>\d+)-(?P<started>\d+)-.*")
_GB = 1e9


class NoRoomForWeights(RunError):
    """New weights do not fit into the folder that the engine's processes read them from."""


class WeightsFolder:
    """The folder of one engine.

    Args:
        model: Folder or hub id of the model.
        dtype: The engine's number format; weights take at least as much.
        parent: Where the folder is made; None: shared memory, or the system's folder for temporary files where there is none.

    Raises:
        NoRoomForWeights: the model's weights cannot fit.
    """

    def __init__(self, model: str, dtype: str, parent: Path | None = None) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model)
        parent = parent or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        clear_folders_without_owner(parent)
        _check_room(parent, _num_bytes(config, getattr(torch, dtype)))
        self.path = Path(tempfile.mkdtemp(prefix=f"{_own_name()}-", dir=parent))
        self._num_files = 0

    def new_file(self, places: Mapping[str, Place], size: int) -> WeightsFile:
        """Makes a file for weights in the folder, under a name that none had before.

        Args:
            places: From `places_of`.
            size: Bytes of the tensors.

        Raises:
            NoRoomForWeights: they do not fit.
        """
        _check_room(self.path, size)
        self._num_files += 1
        try:
            return WeightsFile(self.path / f"weights-{self._num_files}", places, size)
        except OSError as error:
            raise _no_room(self.path, size, error) from error

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def clear_folders_without_owner(parent: Path) -> None:
    """Removes the folders of processes that are gone; those of other containers, whose processes nobody sees, are left."""
    for folder in parent.glob(f"{_PREFIX}-*"):
        name = _NAME.fullmatch(folder.name)
        if name is None or name["namespace"] != _process_namespace():
            continue
        if _start_of(int(name["process"])) != name["started"]:
            shutil.rmtree(folder, ignore_errors=True)


def _own_name() -> str:
    process = os.getpid()
    return f"{_PREFIX}-{_process_namespace()}-{process}-{_start_of(process) or 0}"


def _process_namespace() -> str:
    try:
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return "0"


def _start_of(process: int) -> str | None:
    """Returns when a process began, in the kernel's ticks; None if there is none. Process ids are used again."""
    try:
        # The second field is the program's name in brackets, which may hold spaces.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _num_bytes(config: object, dtype: torch.dtype) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def _check_room(folder: Path, needed: int) -> None:
    if needed > shutil.disk_usage(folder).free:
        raise _no_room(folder, needed)


def _no_room(folder: Path, needed: int, error: Exception | None = None) -> NoRoomForWeights:
    free = shutil.disk_usage(folder).free
    reason = f" ({error})" if error is not None else ""
    return NoRoomForWeights(
        f"no room for new weights in {folder}: they take {needed / _GB:.3g} GB ({needed} bytes), and {free / _GB:.3g} GB are "
        f"free{reason}; give the machine or container more shared memory (docker: --shm-size), or run the engine in one process "
        "(engine.tensor_parallel_size 1 without engine.multiprocessing), or set weight_transport to 'broadcast'"
    )
