from __future__ import annotations

import pickle
import warnings

import click
from click.testing import CliRunner

from tppo_rl.core.errors import OptionError, OptionWarning, RunError, portable
from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.experiment.interrupt import RunInterrupted
from tppo_rl.rollout.failure_watch import RewardsFailed


class Unpicklable(Exception):
    """Its constructor takes two arguments and passes one on, so that a copy cannot be made."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_an_error_stays_what_it_is_and_tells_where_it_was() -> None:
    error = portable(raised(OptionError("lr=-1: must be positive")), "env-runner 3")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, OptionError)
    assert str(copy) == "lr=-1: must be positive"
    (note,) = copy.__notes__
    assert note.startswith("In env-runner 3:\nTraceback")
    assert "in raised" in note


def test_the_place_is_told_once() -> None:
    error = portable(raised(ValueError("x")), "env-runner 3")
    assert portable(raised(error), "env-runner 3") is error
    assert len(error.__notes__) == 1


def test_what_cannot_travel_is_told_in_words() -> None:
    error = portable(raised(Unpicklable("no room ", "for keys")), "env-runner 1")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RuntimeError
    assert str(copy) == "env-runner 1: Unpicklable: no room for keys"
    assert "in raised" in copy.__notes__[0]


def test_what_ends_a_run_is_one_message_on_the_command_line() -> None:
    @click.command()
    @one_clear_error
    def fails() -> None:
        raise RunError("max_failed_fraction=0.5: nothing could be scored")

    run = CliRunner().invoke(fails)
    assert run.exit_code == 1
    assert run.output == "error: max_failed_fraction=0.5: nothing could be scored\n"
    assert issubclass(RewardsFailed, RunError)


def test_warnings_of_ours_are_their_message_and_others_are_python_s() -> None:
    @click.command()
    @one_clear_error
    def warns() -> None:
        warnings.warn("source=rows.jsonl: 1 bad row", OptionWarning, stacklevel=1)

    run = CliRunner().invoke(warns)
    assert run.exit_code == 0
    assert run.output == "warning: source=rows.jsonl: 1 bad row\n"


def test_ctrl_c_is_a_status_without_a_traceback() -> None:
    @click.command()
    @click.option("--kind", type=int)
    @one_clear_error
    def interrupted(kind: int | None) -> None:
        raise KeyboardInterrupt if kind is None else RunInterrupted(kind, at_once=False)

    run = CliRunner().invoke(interrupted)
    assert (run.exit_code, run.output) == (130, "Ctrl-C: stopped\n")
    run = CliRunner().invoke(interrupted, ["--kind", "15"])
    assert (run.exit_code, run.output) == (143, "")
