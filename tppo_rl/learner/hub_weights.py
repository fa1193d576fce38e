"""Weights under the names and in the layout of the model's files on a hub, which every engine can load.

transformers may keep a model otherwise than its files do: mixtures of experts have all experts of a layer in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tppo_rl.learner.transformers_internals import conversions_to_files, to_file_layout


class HubLayout:
    """How the weights of a model are laid out in its files.

    Args:
        model: transformers language model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_other = conversions_to_files(model)
        # Engines tie these weights themselves, and some refuse the second name.
        self._tied = frozenset(getattr(model, "all_tied_weights_keys", {}))

    def of(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns whole weights as the model's files have them; each tensor once, as a view where that is possible.

        Args:
            weights: Whole weights of the model, without adapters, by their names in transformers.
        """
        own = {name: weight for name, weight in weights.items() if name not in self._tied}
        if not self._is_other:
            return own
        tensors = to_file_layout(self._model, {name: torch.from_numpy(weight) for name, weight in own.items()})
        return {name: tensor.numpy() for name, tensor in tensors.items()}
