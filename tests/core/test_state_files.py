"""States in files that hold data alone."""

from __future__ import annotations

import json
import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tppo_rl.core.array_files import write_arrays
from tppo_rl.core.fingerprints import fingerprint
from tppo_rl.core.sliced_arrays import DamagedState, Sliced, StoredArray, slice_file, write_slices
from tppo_rl.core.state_files import (
    MANIFEST,
    _digest,
    files_of_part,
    read_manifest,
    read_state,
    take_state,
    write_state,
)

STATE = {
    "weights": {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int64)},
    "moments": {0: {"exp_avg": torch.full((2,), 0.5, dtype=torch.bfloat16)}, 1: {}},
    "numbers": [1, 2.5, None, True, "text", float("inf"), np.float64(0.1), np.int32(3)],
    "kinds": ((1, 2), deque([3, 4]), {5, 6}),
    "tables": {"queue": pa.table({"x": [1, 2]}), "other": {"queue": pa.table({"y": [[1.5], []]})}},
    "odd": {"!array": 1},
    "empty": {},
}


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple | deque):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, pa.Table):
        assert left.equals(right)
    elif isinstance(left, np.ndarray | torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert (left == right).all()
    else:
        assert left == right or (left != left and right != right)  # noqa: PLR0124


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    write_state(tmp_path, STATE, facts={"algorithm": "TPPO"}, files={"weights": "policy"})
    assert_same(read_state(tmp_path), STATE)
    assert read_manifest(tmp_path)["algorithm"] == "TPPO"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "arrays.safetensors",
        "manifest.json",
        "policy.safetensors",
        "queue.arrow",
        "queue_2.arrow",
        "state.json",
    }
    assert_same(read_state(tmp_path, part="weights"), STATE["weights"])
    from safetensors.numpy import load_file

    assert set(load_file(tmp_path / "policy.safetensors")) == {"a.weight", "b"}


def test_a_state_that_was_taken_may_change_before_it_is_written(tmp_path: Path) -> None:
    def state() -> dict[str, Any]:
        return {"counts": {"a": 1}, "list": [1], "deque": deque([1]), "w": np.ones(3), "t": torch.ones(3), "set": {1}}

    write_state(tmp_path / "expected", state(), facts={})
    changed = state()
    taken = take_state(changed)
    changed["counts"]["a"] = 2
    changed["list"].append(2)
    changed["deque"].append(2)
    changed["set"].add(2)
    changed["w"] += 1
    changed["t"] += 1
    taken.write(tmp_path / "found", facts={})
    assert files_in(tmp_path / "found") == files_in(tmp_path / "expected")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
        np.frombuffer(b"read-only bytes!", np.uint64),
    ],
    ids=str,
)
def test_arrays_are_as_safetensors_reads_them(tmp_path: Path, array: Any) -> None:
    facts = write_arrays(tmp_path / "a.safetensors", {"x": array, "y": np.ones(1)})
    assert facts == fingerprint(tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")["x"]
    expected = array if isinstance(array, torch.Tensor) else torch.from_numpy(array.copy())
    assert loaded.dtype == expected.dtype
    assert torch.equal(loaded, expected)


def test_arrays_that_have_no_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^x: a checkpoint holds no arrays of complex64"):
        write_arrays(tmp_path / "a.safetensors", {"x": np.ones(1, np.complex64)})


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    tied = np.ones((100, 100), np.float32)
    write_state(tmp_path, {"embedding": tied, "head": tied, "other": tied.copy()}, facts={})
    assert (tmp_path / "arrays.safetensors").stat().st_size < 2.1 * tied.nbytes
    assert_same(read_state(tmp_path), {"embedding": tied, "head": tied, "other": tied})


LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_any_tree_comes_back(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("state")
    write_state(folder, tree, facts={})
    assert_same(read_state(folder), tree)


ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)


def write_sliced(folder: Path, first: int = 3, *, bias: bool = True) -> None:
    """Writes a state of which two processes have written rows, the second one from row `first` on, as it says."""
    folder.mkdir(exist_ok=True)
    own = [{"a": torch.from_numpy(ROWS[:3]), "b": torch.tensor(3.5)}, {"a": torch.from_numpy(ROWS[3:])}]
    if bias:
        own[1]["c"] = torch.ones(2, dtype=torch.bfloat16)
    written = {
        slice_file("moments", part, 2): write_slices(
            folder / slice_file("moments", part, 2), rows, {"a": first} if part else {}
        )
        for part, rows in enumerate(own)
    }
    shapes = {"a": (5, 2), "b": (), "c": (2,)}
    sliced = {key: Sliced("moments", 2, key, shape) for key, shape in shapes.items()}
    write_state(folder, {"moments": sliced, "weights": {"w": ROWS}}, facts={}, written=written)


def test_rows_in_several_files_are_one_array(tmp_path: Path) -> None:
    write_sliced(tmp_path)
    expected = {"a": ROWS, "b": np.array(3.5, np.float32), "c": np.ones(2, np.float32)}
    assert_same(read_state(tmp_path), {"moments": expected, "weights": {"w": ROWS}})
    assert_same(read_state(tmp_path, without="weights"), {"moments": expected})
    lazily = read_state(tmp_path, lazily=True)
    for array in (lazily["moments"]["a"], lazily["weights"]["w"]):
        assert isinstance(array, StoredArray)
        assert array.shape == (5, 2)
        for start in range(6):
            for stop in range(start, 6):
                assert_same(array[start:stop], ROWS[start:stop])
        assert_same(np.array(array), ROWS)
    assert files_of_part(tmp_path, "moments").keys() == {"moments_0_of_2.safetensors", "moments_1_of_2.safetensors"}
    # Other programs read these files too.
    from safetensors.numpy import load_file

    assert_same(load_file(tmp_path / "moments_0_of_2.safetensors"), {"a": ROWS[:3], "b": np.array(3.5, np.float32)})


@pytest.mark.parametrize("first", [2, 4])
def test_rows_that_are_there_twice_or_not_at_all_are_noticed(tmp_path: Path, first: int) -> None:
    write_sliced(tmp_path, first)
    with pytest.raises(DamagedState, match=r"^a: its slices do not make up an array of shape \(5, 2\)"):
        read_state(tmp_path, lazily=True)


def test_rows_of_which_some_are_there_twice_and_others_not_are_noticed(tmp_path: Path) -> None:
    """Their number is right."""
    written = {}
    for part, (first, rows) in enumerate([(0, ROWS[:2]), (1, ROWS[2:4]), (4, ROWS[4:])]):
        name = slice_file("moments", part, 3)
        written[name] = write_slices(tmp_path / name, {"a": torch.from_numpy(rows)}, {"a": first})
    write_state(tmp_path, {"a": Sliced("moments", 3, "a", (5, 2))}, facts={}, written=written)
    with pytest.raises(DamagedState, match=r"^a: its slices do not make up"):
        read_state(tmp_path)


def test_an_array_that_no_process_has_written_is_noticed(tmp_path: Path) -> None:
    write_sliced(tmp_path, bias=False)
    with pytest.raises(DamagedState, match=r"^c: its slices do not make up"):
        read_state(tmp_path)


def test_what_is_no_data_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/b: a checkpoint holds data alone, and no object"):
        write_state(tmp_path, {"a": {"b": object()}}, facts={})


@pytest.mark.parametrize("sliced", [False, True])
def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path, sliced: bool) -> None:
    if sliced:
        write_sliced(tmp_path)
    else:
        write_state(tmp_path, STATE, facts={}, files={"weights": "policy"})
    generator = random.Random(0)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for _ in range(20):
            data = bytearray(whole)
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            path.write_bytes(data)
            if path.name != MANIFEST:
                with pytest.raises(DamagedState, match=path.name):
                    read_state(tmp_path)
            elif _means_another(whole, bytes(data)):
                with pytest.raises(DamagedState):
                    read_state(tmp_path)
            path.write_bytes(whole[: generator.randrange(len(whole))])
            with pytest.raises(DamagedState):
                read_state(tmp_path)
        path.unlink()
        with pytest.raises(DamagedState, match=path.name):
            read_state(tmp_path)
        path.write_bytes(whole)
    read_state(tmp_path)


def _means_another(whole: bytes, changed: bytes) -> bool:
    try:
        return bool(json.loads(whole) != json.loads(changed))
    except ValueError:
        return True


def test_no_file_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    write_state(tmp_path / "in", {"queue": pa.table({"x": [1]})}, facts={})
    manifest = json.loads((tmp_path / "in" / MANIFEST).read_text())
    manifest["files"]["../out"] = {"size": 0, "blake2b": ""}
    manifest["checksum"] = _digest(manifest)
    (tmp_path / "in" / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "out").touch()
    with pytest.raises(DamagedState, match="is missing"):
        read_state(tmp_path / "in")
