"""The value head of a critic on file: `value_head.safetensors` beside its backbone, with the head's form in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VALUE_HEAD_FILE = "value_head.safetensors"
_FORM = "value_form"
SEES_ANSWER = "sees_answer"
"""Key of a form whose critic reads the known answer before the prompt."""
SQUARED_ERROR: dict[str, Any] = {"loss": "squared_error"}
"""Form of heads without one on file."""


def form_metadata(form: dict[str, Any] | None) -> dict[str, str]:
    """Returns the metadata of a file for a head of this form (`maths.value_forms.value_form`)."""
    return {_FORM: json.dumps(form or SQUARED_ERROR)}


def form_on_file(folder: Path) -> dict[str, Any] | None:
    """Returns the form of the value head in a folder; None: there is no head."""
    from safetensors import safe_open

    file = folder / VALUE_HEAD_FILE
    if not file.is_file():
        return None
    with safe_open(file, framework="numpy") as opened:
        return dict(json.loads((opened.metadata() or {}).get(_FORM, json.dumps(SQUARED_ERROR))))


def form_text(form: dict[str, Any]) -> str:
    """Returns the options that give a form, for messages."""
    keys = {"loss": "critic_loss", "bins": "value_bins", SEES_ANSWER: "critic_sees_answer"}
    parts = [f"{keys[key]}={value!r}" for key, value in form.items() if key in keys]
    if "low" in form:
        parts.append(f"value_range={[form['low'], form['high']]}")
    return ", ".join(parts)
