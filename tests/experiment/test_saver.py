"""Checkpoints that are written while a run goes on: waited for, put in their place, and no error is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from storages import watched_storage

from tppo_rl.config.options import Options
from tppo_rl.config.run_files import CheckpointConfig
from tppo_rl.core.checkpoint_files import checkpoint_state, take_checkpoint
from tppo_rl.core.errors import ProcessDied, RunError
from tppo_rl.experiment.checkpoints import checkpoint_path, find_newest_checkpoint
from tppo_rl.experiment.mirror import Mirror
from tppo_rl.experiment.run import _Run
from tppo_rl.experiment.saver import Saver, memory_of_saving
from tppo_rl.plan.memory import Memory, Part, host_memory, memory_of, with_checkpoint


class Trained:
    """Something to save; what writes its checkpoints does more before it."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.counts = {"trained": 0, "seen": [0]}
        self._before = before

    def train(self) -> None:
        self.counts["trained"] += 1
        self.counts["seen"].append(self.counts["trained"])

    def begin_checkpoint(self, folder: Path) -> Callable[[], None]:
        taken = take_checkpoint({"counts": self.counts, "w": np.full(9, self.counts["trained"])})

        def write() -> None:
            self._before()
            taken.write(folder, facts={})

        return write


def saver(num_to_keep: int | None = 2, mirror: Mirror | None = None, **more: Any) -> Saver:
    return Saver(num_to_keep, mirror, in_background=True, say=more.pop("say", print), **more)


def full() -> None:
    raise OSError(28, "No space left on device")


def test_the_run_goes_on_and_the_next_checkpoint_waits(tmp_path: Path) -> None:
    may_go_on, under_way = threading.Event(), []

    def before() -> None:
        under_way.append(threading.active_count())
        assert may_go_on.wait(20)

    run, first, second = Trained(before), checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2)
    with saver() as saving:
        saving.save(run, first)
        run.train()
        saving.check()
        assert find_newest_checkpoint(tmp_path) is None, "the file is not written yet"
        threading.Timer(0.2, may_go_on.set).start()
        saving.save(run, second)
        assert find_newest_checkpoint(tmp_path) is not None, "the next one waits for this one"
        run.train()
    assert [checkpoint_state(path)["counts"] for path in (first, second)] == [
        {"trained": 0, "seen": [0]},
        {"trained": 1, "seen": [0, 1]},
    ]
    assert len(under_way) == 2


@pytest.mark.parametrize("through", ["check", "save", "wait", "end"])
def test_an_error_is_raised_where_the_run_looks_next(tmp_path: Path, through: str) -> None:
    run, ended = Trained(), threading.Event()
    with saver() as saving:
        saving.save(run, checkpoint_path(tmp_path, 1))
    run = Trained(lambda: (ended.set(), full())[1])
    message = r"iteration_000002: there is no room left .* the newest one is .*iteration_000001; make room"
    with pytest.raises(RunError, match=message), saver() as saving:  # noqa: PT012
        saving.save(run, checkpoint_path(tmp_path, 2))
        assert ended.wait(20)
        while through == "check":
            saving.check()
        if through != "end":
            {"save": lambda: saving.save(run, checkpoint_path(tmp_path, 3)), "wait": saving.wait}[through]()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration_000001"]


def test_an_error_beside_another_one_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ProcessDied), saver(say=said.append) as saving:  # noqa: PT012
        saving.save(Trained(full), checkpoint_path(tmp_path, 2))
        raise ProcessDied("a learner")
    assert len(said) == 1
    assert "iteration_000002 was not saved: " in said[0]
    assert "there is no room left on the disk" in said[0]


def test_what_ends_the_run_waits_for_the_checkpoint_but_for_an_end_at_once(tmp_path: Path) -> None:
    may_go_on = threading.Event()
    run = Trained(lambda: None if may_go_on.wait(20) else full())
    with saver(at_once=lambda: True) as saving:
        saving.save(run, checkpoint_path(tmp_path, 1))
    assert find_newest_checkpoint(tmp_path) is None
    may_go_on.set()
    saving.wait()
    with pytest.raises(ProcessDied), saver() as saving:  # noqa: PT012
        saving.save(run, checkpoint_path(tmp_path, 2))
        raise ProcessDied("an engine")
    assert find_newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 2)


def test_a_copy_to_a_uri_begins_with_whole_checkpoints(tmp_path: Path) -> None:
    may_go_on, folder = threading.Event(), tmp_path / "here"
    storage = watched_storage(tmp_path / "there", lambda words: None)
    run = Trained(lambda: None if may_go_on.wait(20) else full())
    with Mirror(folder, storage, 2, say=print) as mirror:
        with saver(mirror=mirror) as saving:
            saving.save(run, checkpoint_path(folder, 1))
            assert not any("iteration" in name for name in storage.sizes())
            may_go_on.set()
            saving.wait()
        mirror.wait()
        assert mirror.holds().endswith("of iteration 1")


def test_a_run_that_ends_has_its_checkpoint(tmp_path: Path) -> None:
    run = Trained(lambda: time.sleep(0.3))

    def train() -> dict[str, Any]:
        Trained.train(run)
        return {"training_iteration": run.counts["trained"]}

    algorithm = SimpleNamespace(train=train, begin_checkpoint=run.begin_checkpoint)
    parts: dict[str, Any] = {field.name: None for field in fields(_Run)}
    config, ignore = CheckpointConfig(checkpoint_frequency=1), SimpleNamespace(show=print, see=print)
    parts |= {
        "experiment": SimpleNamespace(name="a", checkpoint_config=config, stop={"training_iteration": 2}),
        "folder": tmp_path,
        "switch": SimpleNamespace(iteration=0, asked=False),
        "display": ignore,
        "forecaster": ignore,
        "last": {},
        "saver": saver(),
    }
    _, saved = _Run(**parts)._iterations(algorithm)
    assert saved == find_newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 2)
    assert checkpoint_state(saved)["counts"]["trained"] == 2


def options_with(**more: Any) -> Options:
    return Options.of(policy_model="tppo_rl/arithmetic-chain", num_learners=2, num_env_runners=1, **more)


MEMORY = Memory((Part("driver", "process", 10, ""), Part("learner", "policy", 200, "")), {"driver": 1, "learner": 2})


def test_the_copy_is_planned_and_made_where_it_fits() -> None:
    options = options_with()
    memory = memory_of(options)
    (policy,) = [part.size for part in memory.parts if part.name == "policy"]
    (copy,) = [part for part in with_checkpoint(memory, options).parts if part.name == "checkpoint"]
    # Weights and two moments of policy and critic, without gradients.
    assert (copy.process, copy.size) == ("driver", 2 * policy * 3 // 4)
    sharded = options_with(distributed="fsdp")
    (of_slices,) = [part for part in with_checkpoint(memory, sharded).parts if part.name == "checkpoint"]
    assert (of_slices.process, of_slices.size) == ("learner", copy.size // 2)
    needed = memory.total + copy.size
    often = CheckpointConfig(checkpoint_frequency=1)
    assert memory_of_saving(often, memory, options, needed)[:2] == (with_checkpoint(memory, options), True)
    assert memory_of_saving(often, memory, options, needed - 1)[:2] == (memory, False)
    assert "does not fit" in memory_of_saving(often, memory, options, needed - 1)[2]
    wanted = CheckpointConfig(checkpoint_frequency=1, in_background=True)
    assert memory_of_saving(wanted, memory, options, needed - 1)[1:] == (True, "")
    for off in (CheckpointConfig(), CheckpointConfig(checkpoint_frequency=1, in_background=False)):
        assert memory_of_saving(off, memory, options, needed) == (memory, False, "")


def test_what_is_on_gpus_is_not_in_the_way() -> None:
    options = options_with()
    assert host_memory(MEMORY, options) == MEMORY.total == 410
    on_gpus = options_with(num_gpus_per_learner=1)
    assert host_memory(MEMORY, on_gpus) == 10
