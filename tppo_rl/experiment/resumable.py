"""Whether a run can go on from its checkpoint, found out before anything is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tppo_rl.algorithms.checkpoint_contents import check_facts
from tppo_rl.config.options import OPTIONS, Options
from tppo_rl.config.value_forms import check_saved_form, value_form_settings
from tppo_rl.core.checkpoint_files import check_every_file, checkpoint_facts
from tppo_rl.core.errors import OptionError
from tppo_rl.core.storage import Storage, first_line
from tppo_rl.experiment.checkpoints import checkpoint_in
from tppo_rl.experiment.export import options_in
from tppo_rl.experiment.stored_runs import stored_to_resume


def changed_since(manifest: Mapping[str, Any], options: Options) -> str:
    """Returns what differs from the options of a checkpoint, for the user; empty: nothing. Where results go is no difference."""
    before, now = options_in(manifest).flat(), options.flat()
    compared = [key for key in now if OPTIONS[key].section != "run" and key not in manifest.get("not_saved", ())]
    changed = [key for key in compared if now[key] != before[key] and _as_saved(now[key]) != _as_saved(before[key])]
    return ", ".join(f"{key}={now[key]!r} (was {before[key]!r})" for key in changed)


def check_resumable(checkpoint: Path, options: Options, algorithm: str) -> str:
    """Checks that a run can go on from a checkpoint, and reads all of it.

    Returns:
        What differs from the options of the checkpoint (`changed_since`).

    Raises:
        OptionError: files are missing or changed, or it is of another algorithm, model or form of the critic.
    """
    manifest = checkpoint_facts(checkpoint)
    check_facts(manifest, options, algorithm, str(checkpoint))
    check_saved_form(options, value_form_settings(options_in(manifest)))
    check_every_file(checkpoint)
    return changed_since(manifest, options)


def _as_saved(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def check_resume(run: Path | Storage, options: Options, algorithm: str) -> str:
    """Checks that a run can go on from its newest checkpoint, and says which one that is, and with what other options. Nothing is written.

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
        return _with_changes(str(checkpoint), check_resumable(checkpoint, options, algorithm))
    try:
        sizes = run.sizes()
        newest = stored_to_resume(run, sizes, "--resume")
    except OSError as error:
        raise OptionError(f"--results={run.shown!r}: cannot be read: {first_line(error)}") from None
    check_facts(newest.manifest, options, algorithm, newest.place)
    check_saved_form(options, value_form_settings(options_in(newest.manifest)))
    return _with_changes(f"{run.shown}: {newest.place}", changed_since(newest.manifest, options))


def _with_changes(place: str, changed: str) -> str:
    return f"{place}, with {changed}" if changed else place
