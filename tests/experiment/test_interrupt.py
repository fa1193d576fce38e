"""What Ctrl-C says and does, by what is under way."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tppo_rl.core.checkpoint_files import write_checkpoint
from tppo_rl.core.waiting import Cut, Stage, StageCut
from tppo_rl.experiment.checkpoints import checkpoint_path
from tppo_rl.experiment.interrupt import StopSwitch


class Display:
    def __init__(self) -> None:
        self.in_update = False
        self.stop_asked = False
        self.stage: Stage | None = None
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def make(folder: Path, cut: Cut | None, *, trained: bool = True) -> tuple[StopSwitch, Display]:
    display = Display()
    display.stage = None if cut is None else Stage("stage", cut=cut)
    switch = StopSwitch(display, folder, lambda: 2_300_000_000, iteration=4)
    switch.has_trained = trained
    return switch, display


@pytest.mark.parametrize("cut", ["at_once", "soon", None])
def test_before_the_first_update_it_ends_at_once(tmp_path: Path, cut: Cut | None) -> None:
    write_checkpoint(checkpoint_path(tmp_path, 4), {}, {})
    switch, display = make(tmp_path, cut, trained=False)
    with pytest.raises(StageCut):
        switch.ask(signal.SIGINT)
    (line,) = display.said
    assert "nothing is saved" in line
    assert f"the newest checkpoint is {checkpoint_path(tmp_path, 4)}, of iteration 4" in line
    assert switch.at_once
    assert display.stop_asked


def test_an_evaluation_is_dropped_and_what_was_trained_is_saved(tmp_path: Path) -> None:
    switch, display = make(tmp_path, "at_once")
    display.in_update = True
    with pytest.raises(StageCut):
        switch.ask(signal.SIGINT)
    (line,) = display.said
    assert "drops the stage under way" in line
    assert f"saves {checkpoint_path(tmp_path, 5)} (about 2.3 GB)" in line
    assert not switch.at_once


@pytest.mark.parametrize(
    ("cut", "in_update", "words", "iteration"),
    [
        ("soon", False, "stops sampling now", 4),
        ("after", False, "finishes iteration 5 (stage)", 5),
        (None, True, "finishes iteration 5,", 5),
    ],
)
def test_updates_are_finished_and_asynchronous_sampling_is_not(
    tmp_path: Path, cut: Cut | None, in_update: bool, words: str, iteration: int
) -> None:
    switch, display = make(tmp_path, cut)
    display.in_update = in_update
    switch.ask(signal.SIGINT)
    (line,) = display.said
    assert words in line
    assert f"saves {checkpoint_path(tmp_path, iteration)} (about 2.3 GB)" in line
    assert "without a last evaluation" in line
    assert f"Once more ends at once; then there is no checkpoint in {tmp_path}" in line


def test_the_first_update_is_finished_as_well(tmp_path: Path) -> None:
    switch, display = make(tmp_path, "after", trained=False)
    switch.ask(signal.SIGINT)
    assert "finishes iteration 5" in display.said[0]


def test_a_second_one_ends_at_once_and_says_what_is_there(tmp_path: Path) -> None:
    write_checkpoint(checkpoint_path(tmp_path, 2), {}, {})
    switch, display = make(tmp_path, "after")
    switch.ask(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        switch.ask(signal.SIGINT)
    assert switch.at_once
    assert display.said[0].startswith("SIGTERM: ")
    assert display.said[1] == (
        f"Ctrl-C again: ends at once; the newest checkpoint is {checkpoint_path(tmp_path, 2)}, of iteration 2"
    )


def test_what_is_kept_elsewhere_is_said_too(tmp_path: Path) -> None:
    display = Display()
    display.stage = Stage("copying to s3://bucket/run", cut="after")
    switch = StopSwitch(display, tmp_path, lambda: 1, elsewhere=lambda: "s3://bucket/run holds no checkpoint")
    switch.has_trained, switch.doing = True, "saved"
    switch.ask(signal.SIGINT)
    (line,) = display.said
    assert "Ctrl-C: finishes copying to s3://bucket/run; the run has ended, and there is no checkpoint in" in line
    assert line.endswith("; s3://bucket/run holds no checkpoint")


def test_a_checkpoint_that_is_being_saved_is_finished(tmp_path: Path) -> None:
    switch, display = make(tmp_path, "after")
    switch.doing = "saving"
    switch.ask(signal.SIGINT)
    assert "finishes the checkpoint that is being saved (about 2.3 GB)" in display.said[0]


def test_the_last_evaluation_is_dropped_with_everything_saved(tmp_path: Path) -> None:
    write_checkpoint(checkpoint_path(tmp_path, 4), {}, {})
    switch, display = make(tmp_path, "at_once")
    switch.doing = "saved"
    with pytest.raises(StageCut):
        switch.ask(signal.SIGINT)
    assert "drops the stage under way; the run has ended, and the newest checkpoint is" in display.said[0]
