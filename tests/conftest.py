"""Settings of the whole test run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import settings

# Small models are fastest on one thread, and two processes with two threads each on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The examples of a property are drawn from its own text, so a run of the tests can be repeated. No deadline: the first
# example may have to compile what it calls.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Marks as `unit` what is marked neither `integration` nor `slow`."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("integration", "slow")):
            item.add_marker("unit")


@pytest.fixture(scope="module", autouse=True)
def started_before_module() -> set[str]:
    """What tests of earlier modules left behind in this process."""
    return _started()


@pytest.fixture(autouse=True)
def neither_ray_nor_vllm(request: pytest.FixtureRequest, started_before_module: set[str]) -> Iterator[None]:
    """A unit test starts no Ray and imports no vLLM, which would make it as slow as an integration test."""
    yield
    if request.node.get_closest_marker("unit") is not None:
        more = _started() - started_before_module
        assert not more, f"a unit test started {', '.join(sorted(more))}: mark it `integration`"


def _started() -> set[str]:
    ray = sys.modules.get("ray")
    runs = {"Ray": ray is not None and ray.is_initialized(), "vLLM": "vllm.engine" in sys.modules}
    return {name for name, is_running in runs.items() if is_running}
