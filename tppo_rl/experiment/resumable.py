"""Whether a run can go on from its checkpoint, found out before anything is started."""

from __future__ import annotations

from pathlib import Path

from tppo_rl.algorithms.checkpoint_contents import check_facts
from tppo_rl.config.options import Options
from tppo_rl.config.value_forms import check_saved_form, value_form_settings
from tppo_rl.core.checkpoint_files import check_every_file, checkpoint_facts
from tppo_rl.core.errors import OptionError
from tppo_rl.core.storage import Storage, first_line
from tppo_rl.experiment.checkpoints import checkpoint_in
from tppo_rl.experiment.export import options_in, options_of
from tppo_rl.experiment.stored_runs import stored_to_resume


def check_resumable(checkpoint: Path, options: Options, algorithm: str) -> None:
    """Checks that a run can go on from a checkpoint, and reads all of it.

    Raises:
        OptionError: files are missing or changed, or it is of another algorithm, model or form of the critic.
    """
    check_facts(checkpoint_facts(checkpoint), options, algorithm, str(checkpoint))
    check_saved_form(options, value_form_settings(options_of(checkpoint)))
    check_every_file(checkpoint)


def check_resume(run: Path | Storage, options: Options, algorithm: str) -> str:
    """Checks that a run can go on from its newest checkpoint, and says which one that is. Nothing is written.

    Of a checkpoint at a URI the manifest is read, and the sizes of the files are compared with it.

    Args:
        run: Its folder, or that at a URI.
        options: With which it is to go on.
        algorithm: Of the run.

    Raises:
        OptionError: there is no checkpoint, or see `check_resumable`.
    """
    if isinstance(run, Path):
        checkpoint = checkpoint_in(run)
        check_resumable(checkpoint, options, algorithm)
        return str(checkpoint)
    try:
        sizes = run.sizes()
        newest = stored_to_resume(run, sizes, "--resume")
    except OSError as error:
        raise OptionError(f"--results={run.shown!r}: cannot be read: {first_line(error)}") from None
    check_facts(newest.manifest, options, algorithm, newest.place)
    check_saved_form(options, value_form_settings(options_in(newest.manifest)))
    return f"{run.shown}: {newest.place}"
