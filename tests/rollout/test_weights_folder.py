"""The folder by which an engine's processes get weights: it is there while it is read, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout import weights_folder
from tppo_rl.rollout.packed_weights import places_of
from tppo_rl.rollout.weights_folder import NoRoomForWeights, WeightsFolder, clear_folders_without_owner

MODEL = resolve_model("tppo_rl/arithmetic-chain")


def test_the_folder_goes_with_its_files(tmp_path: Path) -> None:
    folder = WeightsFolder(MODEL, "float32", tmp_path)
    places, size = places_of({"a": torch.ones(3)})
    names = {folder.new_file(places, size).path for _ in range(2)}
    assert len(names) == 2
    assert set(folder.path.iterdir()) == names
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_leaves_nothing_for_good(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from tppo_rl.rollout.weights_folder import WeightsFolder\n"
        f"WeightsFolder({MODEL!r}, 'float32', Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    own = WeightsFolder(MODEL, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == [own.path]
    assert left != own.path


def test_folders_of_others_stay(tmp_path: Path) -> None:
    own = WeightsFolder(MODEL, "float32", tmp_path).path
    namespace, process, started = own.name.split("-")[3:6]
    other_container = tmp_path / f"tppo-rl-weights-{int(namespace) + 1}-{2**22 + 1}-5-x"
    used_again = tmp_path / f"tppo-rl-weights-{namespace}-{process}-{int(started) + 1}-x"
    unknown = tmp_path / "tppo-rl-weights-old"
    for folder in (other_container, used_again, unknown):
        folder.mkdir()
    clear_folders_without_owner(tmp_path)
    assert set(tmp_path.iterdir()) == {own, other_container, unknown}


def test_a_memory_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(NoRoomForWeights, match=rf"no room for new weights in {tmp_path}: .* and 0\.001 GB are free"):
        WeightsFolder(MODEL, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted")
def test_a_full_memory_is_one_message_with_folder_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"', "sh"]
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from tppo_rl.rollout import weights_folder\n"
        "from tppo_rl.rollout.packed_weights import places_of\n"
        "from tppo_rl.rollout.weights_folder import NoRoomForWeights, WeightsFolder\n"
        f"folder = WeightsFolder({MODEL!r}, 'float32', Path(sys.argv[1]))\n"
        # Another process may fill the memory between the look and the write.
        "weights_folder._check_room = lambda *_: None\n"
        "try:\n"
        "    folder.new_file(*places_of({'a': torch.zeros(2**20)})); raise SystemExit('it fits')\n"
        "except NoRoomForWeights as error:\n"
        "    print(error, [file.name for file in folder.path.iterdir()])\n"
    )
    program = f"from tppo_rl.rollout import weights_folder\nweights_folder._num_bytes = lambda *_: 0\n{program}"
    run = subprocess.run(
        [*mount, sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True, text=True
    )
    if "unshare" in run.stderr or "mount:" in run.stderr:
        pytest.skip(run.stderr)
    assert run.returncode == 0, run.stderr
    assert "4194304 bytes" in run.stdout
    assert run.stdout.strip().endswith("[]")


def test_the_model_is_counted_in_the_number_format_of_the_engine() -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODEL)
    assert weights_folder._num_bytes(config, torch.float32) == 2 * weights_folder._num_bytes(config, torch.bfloat16)
