"""Memory of a GPU that torch keeps for its next tensors, and that others on the GPU could use meanwhile."""

from __future__ import annotations

from typing import Any

import torch


def release_cached_memory(learner: Any) -> None:
    """Gives it back to the GPU; nothing on a CPU.

    Args:
        learner: The learner whose process it is; it keeps all its tensors.
    """
    del learner
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
