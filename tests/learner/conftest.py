from __future__ import annotations

import pytest
import torch
from learner_helpers import save_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Qwen2 with 2 layers, 32 wide, 50 tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on more threads, and results then depend on the machine."""
    torch.set_num_threads(1)
