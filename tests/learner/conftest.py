from __future__ import annotations

import pytest
import torch
from learner_helpers import save_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Qwen2 with 2 layers, 32 wide, 50 tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


# 25 million parameters in float32; a block has 12 MiB, embedding and output layer 24 MiB each, which are read by rows.
SIZES = {
    "vocab_size": 12288,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1366,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Qwen2 of 96 MiB."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("large")
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on more threads, and results then depend on the machine."""
    torch.set_num_threads(1)
