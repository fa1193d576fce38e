"""Sharded learners write and read checkpoints themselves; the driver sends them the folder, and gets no tensor.

    driver                                  learners
    write_slices(ask, folder)  ──▶  each writes its slices (`slices.TakenSlices`)
                               ◀──  what stands for the tensors; sizes and checksums of the files
    begin_slices(ask, folder)  ──▶  each copies its slices, and begins to write them in a thread
                               ◀──  what stands for the tensors
    end_slices(ask, folder)    ──▶  are they written? Again and again, between updates
                               ◀──  sizes and checksums of the files
    load_slices(ask, folder)   ──▶  each checks the sizes of all files, and the checksums of its share
                               ──▶  only if all are right: each loads its rows

| step | waits for |
|---|---|
| a learner that writes, checks or loads | nothing: there is no exchange among learners |
| the driver | the answers of all learners |
| the driver's thread in `end_slices` | the threads of all learners; the driver trains on |

So a folder that not every learner sees is an error of every learner that does not see it, before a weight is changed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tppo_rl.core.checkpoint_files import check_learner_files, learner_files, learner_state
from tppo_rl.core.errors import OptionError, portable
from tppo_rl.learner.collective import current_collective

Ask = Callable[[Callable[[Any], Any]], list[Any]]
"""Calls a function with every learner, where it is, and returns the results in their order."""
_Facts = dict[str, dict[str, Any]]
_POLL_S = 0.2
"""Time between two questions whether files are written."""


def check_seen(ask: Ask, folder: Path) -> None:
    """Checks that all learners see a folder of the driver.

    Raises:
        OptionError: one does not.
    """
    _answers(ask, partial(_see, paths=[str(folder)]))


def write_slices(ask: Ask, folder: Path) -> tuple[dict[str, Any], _Facts]:
    """Lets sharded learners write their slices.

    Args:
        ask: `TPPOLearnerGroup.ask`.
        folder: Is there.

    Returns:
        The learners' state with a `Sliced` in the place of each array, and `Fingerprint.facts` of all files.

    Raises:
        OptionError: a learner does not see the folder, or the driver does not see what a learner has written.
        OSError: a learner cannot write.
    """
    answers = _answers(ask, partial(_write, folder=str(folder)))
    (state,) = [state for state, _, _ in answers if state is not None]
    return state, _all_files(folder, [(files, node) for _, files, node in answers])


def begin_slices(ask: Ask, folder: Path) -> dict[str, Any]:
    """Lets sharded learners copy their slices and begin to write them. They may train on; `end_slices` waits for them.

    Returns:
        What `write_slices` returns as the state.

    Raises:
        OptionError: a learner does not see the folder.
    """
    (state,) = [state for state in _answers(ask, partial(_begin, folder=str(folder))) if state is not None]
    return dict(state)


def end_slices(ask: Ask, folder: Path) -> _Facts:
    """Waits until all learners have written what `begin_slices` has begun, and returns `Fingerprint.facts` of all files.

    Args:
        ask: As `TPPOLearnerGroup.ask`, for this thread; it may wait for updates.
        folder: That of `begin_slices`.

    Raises:
        OptionError: the driver does not see what a learner has written.
        OSError: a learner could not write.
    """
    while None in (answers := ask(partial(_attempt, work=_written))):
        time.sleep(_POLL_S)
    return _all_files(folder, _checked(answers))


def _all_files(folder: Path, answers: Sequence[tuple[_Facts, str]]) -> _Facts:
    """Puts the files of all learners together, if the driver sees them."""
    for rank, (files, node) in enumerate(answers):
        for name, facts in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != facts["size"]:
                raise _not_shared(
                    folder / name, f"what learner {rank} has written on node {node!r}, is not there on the driver's"
                )
    return {name: facts for files, _ in answers for name, facts in files.items()}


def load_slices(ask: Ask, folder: Path) -> None:
    """Lets sharded learners load a checkpoint, whatever learners have written it.

    Args:
        ask: `TPPOLearnerGroup.ask`.
        folder: Of the checkpoint.

    Raises:
        OptionError: a file is not as it was written, or a learner does not see it; all learners are left as they were.
        RuntimeError: the weights are those of another model.
    """
    _answers(ask, partial(_check, folder=str(folder), files=learner_files(folder)))
    _answers(ask, partial(_load, folder=str(folder)))


def _answers(ask: Ask, work: Callable[[Any], Any]) -> list[Any]:
    return _checked(ask(partial(_attempt, work=work)))


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _attempt(learner: Any, *, work: Callable[[Any], Any]) -> Any:
    """Returns the error as a result: Ray would give it back as one of its own, with a traceback for a message."""
    try:
        return work(learner)
    except Exception as error:
        return portable(error, f"learner {current_collective().rank}")


def _see(_: Any, *, paths: Sequence[str]) -> None:
    for path in paths:
        if not Path(path).exists():
            where = f"node {socket.gethostname()!r} of learner {current_collective().rank}"
            raise _not_shared(Path(path), f"is not there on {where}")


def _write(learner: Any, *, folder: str) -> tuple[dict[str, Any] | None, _Facts, str]:
    _see(learner, paths=[folder])
    state, files = learner.write_state(Path(folder))
    # It is the same on all learners.
    return state if current_collective().rank == 0 else None, files, socket.gethostname()


def _begin(learner: Any, *, folder: str) -> dict[str, Any] | None:
    _see(learner, paths=[folder])
    state: dict[str, Any] = learner.begin_state(Path(folder))
    return state if current_collective().rank == 0 else None


def _written(learner: Any) -> tuple[_Facts, str] | None:
    files = learner.written_files()
    return None if files is None else (files, socket.gethostname())


def _check(learner: Any, *, folder: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    _see(learner, paths=[f"{folder}/{name}" for name in files])
    collective = current_collective()
    check_learner_files(Path(folder), files, sorted(files)[collective.rank :: collective.size])


def _load(learner: Any, *, folder: str) -> None:
    learner.set_state(learner_state(Path(folder), lazily=True))


def _not_shared(path: Path, what: str) -> OptionError:
    return OptionError(
        f"checkpoint={str(path)!r}: {what}; sharded learners (distributed='fsdp') write and read checkpoints themselves, so "
        "put the run's folder on a disk that all nodes share under the same name, or all learners on the driver's node"
    )
