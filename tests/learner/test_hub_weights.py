"""Weights for engines are those that transformers writes into a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, make_family
from safetensors.torch import load_file

from tppo_rl.learner.hub_weights import HubLayout
from tppo_rl.learner.models import load_causal_lm


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("origin", ["loaded", "new"])
def test_names_and_shapes_are_those_of_the_files(name: str, origin: str, tmp_path: Path) -> None:
    folder = make_family(name, tmp_path / "model")
    model: Any = load_causal_lm(str(folder), torch.float32)
    if origin == "new":
        model = type(model)(model.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "written")
    written = load_file(tmp_path / "written" / "model.safetensors")
    ours = HubLayout(model).of({key: weight.numpy() for key, weight in model.state_dict().items()})
    assert ours.keys() == written.keys()
    for key, weight in written.items():
        np.testing.assert_array_equal(ours[key], weight.numpy(), err_msg=key)
