"""The small model and its tokenizer, before any training: ordinary Hugging Face classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

PAD, END, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", "\t"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}<eos>"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MAX_POSITIONS = 1024


def build_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer with one token per printable ASCII character, newline and tab, and four special tokens.

    It is Qwen2's byte-level BPE without merges, because transformers and vLLM load the tokenizer of any Qwen2
    model as that class, whatever the folder says. Characters that it does not know are left out.
    """
    byte_symbols = bytes_to_unicode()
    symbols = [byte_symbols[ord(character)] for character in CHARACTERS]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([PAD, END, USER, ASSISTANT, *symbols])},
        merges=[],
        pad_token=PAD,
        eos_token=END,
        unk_token=None,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of 0.6 million float32 parameters with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.08,  # at this width the usual 0.02 learns far worse
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def encode_prompts(tokenizer: Qwen2Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of one user turn each and of the beginning of the answer, as the chat template writes them."""
    return cast(list[list[int]], tokenizer([f"{USER}{prompt}{ASSISTANT}" for prompt in prompts])["input_ids"])


def answered(dialog: str, answer: str) -> str:
    """A dialog whose last turn is the model's, closed, and the environment's answer to it."""
    return f"{dialog}{END}{USER}{answer}"
