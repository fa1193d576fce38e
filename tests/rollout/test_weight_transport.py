"""Weights in shared memory: written again and again in one place, read as they were written, and no name is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout.packed_weights import ALIGNMENT, places_of
from tppo_rl.rollout.weight_transport import SameProcess, SharedMemory
from tppo_rl.rollout.weights_file import WeightsFile, mapped
from tppo_rl.rollout.weights_folder import WeightsFolder

MODEL = resolve_model("tppo_rl/arithmetic-chain")


def weights(seed: int, *, rows: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randn(rows, 3, generator=generator)
    return {
        "embedding": tied,
        "half": torch.randn(7, generator=generator).bfloat16(),
        "transposed": torch.randn(4, 6, generator=generator).T,
        "square": torch.randn(4, 4, generator=generator).T,
        "counter": torch.tensor(seed),
        "nothing": torch.zeros(0, 2),
        "head": tied,
    }


def expect(found: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def transport(tmp_path: Path) -> SharedMemory:
    return SharedMemory(WeightsFolder(MODEL, "float32", tmp_path))


def names(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_is_read_as_it_was_written_and_tied_tensors_lie_there_once(tmp_path: Path) -> None:
    given = weights(0)
    places, size = places_of(given)
    file = WeightsFile(tmp_path / "weights", places, size)
    file.write(given)
    found = mapped(file.path)
    expect(found, given)
    assert found["embedding"].data_ptr() == found["head"].data_ptr()
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in found.values() if tensor.numel())
    untied = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in given.values())
    assert size == untied - ALIGNMENT
    # What was mapped is what is written next, also when the name is gone.
    file.unlink()
    file.write(weights(1))
    expect(found, weights(1))


def test_square_tensors_of_one_memory_are_not_tied_if_one_is_transposed() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    places, _ = places_of({"a": square, "b": square.T})
    assert places["a"] != places["b"]


def test_another_process_reads_what_was_staged(transport: SharedMemory) -> None:
    transport.stage(weights(3))
    program = (
        "import sys, torch; from pathlib import Path; from tppo_rl.rollout.weights_file import mapped\n"
        "found = mapped(Path(sys.argv[1])); print(int(found['counter']), found['half'].dtype)"
    )
    with transport.staged() as source:
        run = subprocess.run(
            [sys.executable, "-c", program, source["path"]], check=True, capture_output=True, text=True
        )
    assert run.stdout.split() == ["3", "torch.bfloat16"]


def test_one_file_serves_all_updates_and_its_name_goes_with_the_first(transport: SharedMemory, tmp_path: Path) -> None:
    paths = set()
    found: dict[str, torch.Tensor] = {}
    for seed in range(3):
        transport.stage(weights(seed))
        with transport.staged() as source:
            paths.add(source["path"])
            found = found or mapped(Path(source["path"]))
            expect(found, weights(seed))
        assert names(tmp_path) == []
    assert len(paths) == 1
    transport.close()
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_other_shapes_get_a_file_of_another_name(transport: SharedMemory) -> None:
    transport.stage(weights(0))
    with transport.staged() as first:
        pass
    transport.stage(weights(1, rows=8))
    with transport.staged() as second:
        assert second["path"] != first["path"]
        expect(mapped(Path(second["path"])), weights(1, rows=8))


def test_after_a_failure_nothing_is_left_and_the_next_update_makes_a_file(
    transport: SharedMemory, tmp_path: Path
) -> None:
    transport.stage(weights(0))
    with pytest.raises(KeyError), transport.staged() as failed:
        raise KeyError
    assert names(tmp_path) == []
    transport.stage(weights(1))
    with transport.staged() as source:
        assert source["path"] != failed["path"]
        expect(mapped(Path(source["path"])), weights(1))


def test_staged_weights_that_are_never_taken_are_removed(transport: SharedMemory, tmp_path: Path) -> None:
    transport.stage(weights(0))
    assert len(names(tmp_path)) == 1
    transport.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_given_back_with_the_last_reader(transport: SharedMemory, tmp_path: Path) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(tmp_path))

    transport.stage(weights(0))
    with transport.staged() as source:
        found = mapped(Path(source["path"]))
    assert mappings() == 2
    transport.close()
    del found
    assert mappings() == 0
    assert not [fd for fd in os.listdir("/proc/self/fd") if str(tmp_path) in _target(fd)]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@pytest.mark.parametrize("kind", ["same process", "shared memory"])
def test_weights_are_taken_once(kind: str, transport: SharedMemory) -> None:
    used = SameProcess() if kind == "same process" else transport
    with pytest.raises(AssertionError, match="no weights were staged"), used.staged():
        pass
    used.stage(weights(0))
    with used.staged() as source:
        assert set(source) == {"tensors" if kind == "same process" else "path"}
    with pytest.raises(AssertionError, match="no weights were staged"), used.staged():
        pass
