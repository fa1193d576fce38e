"""Tiny random models of the families that users bring: configs, chat templates and ends of turns as the families have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from tppo_rl.base_models import resolve_model


class Family(NamedTuple):
    """A family of models."""

    model_type: str
    end_of_turn: str
    """Token with which the template closes a turn of the model."""
    template: str | None
    """Body of the template for one message `m`, and the generation prompt; None: a base model without a template."""
    generation_prompt: str = ""
    begin: str | None = None
    config: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple is immutable)


_CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
_GEMMA = "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
_THINKING = "<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>\n"

FAMILIES: dict[str, Family] = {
    "qwen2": Family("qwen2", "<|im_end|>", _CHATML, "<|im_start|>assistant\n"),
    "qwen3": Family(
        "qwen3",
        "<|im_end|>",
        _THINKING,
        "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
        config={"head_dim": 32},
    ),
    "qwen3_moe": Family(
        "qwen3_moe", "<|im_end|>", _CHATML, "<|im_start|>assistant\n", config=_EXPERTS | {"head_dim": 32}
    ),
    "llama3": Family(
        "llama",
        "<|eot_id|>",
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        begin="<|begin_of_text|>",
    ),
    "gemma2": Family(
        "gemma2",
        "<end_of_turn>",
        _GEMMA,
        "<start_of_turn>model\n",
        begin="<bos>",
        config={"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "tie_word_embeddings": True},
    ),
    "gemma3": Family(
        "gemma3_text",
        "<end_of_turn>",
        _GEMMA,
        "<start_of_turn>model\n",
        begin="<bos>",
        config={"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "tie_word_embeddings": True},
    ),
    "mistral": Family(
        "mistral",
        "</s>",
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}",
        begin="<s>",
        config={"sliding_window": None},
    ),
    "mixtral": Family(
        "mixtral",
        "</s>",
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}",
        begin="<s>",
        config={"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "phi3": Family(
        "phi3", "<|end|>", "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n", config={"pad_token_id": 0}
    ),
    "gpt_neox": Family("gpt_neox", "<|endoftext|>", None, config={"num_key_value_heads": None}),
    "gpt2": Family(
        "gpt2",
        "<|endoftext|>",
        None,
        config={"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, "tie_word_embeddings": True},
    ),
}


def make_family(name: str, folder: Path, *, seed: int = 0, wide: bool = False) -> Path:
    """Saves a random model of a family with a tokenizer in its clothes, and returns the folder; it is 64 or 256 wide.

    The tokenizer's own eos is another token than the one that ends a turn, as in Gemma, Phi-3 and Llama 3.
    """
    family = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    special = [family.end_of_turn, *([family.begin] if family.begin else [])]
    marks = ["<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>"]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in [*special, *marks]])
    tokenizer.add_tokens(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz .,:?!|<>[]/_'\n"))
    begin = "{{ bos_token }}" if family.begin else ""
    tokenizer.chat_template = family.template and (
        f"{begin}{{% for m in messages %}}{family.template}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{family.generation_prompt}{{% endif %}}"
    )
    if family.begin:
        tokenizer.bos_token = family.begin
    if family.template is None:
        tokenizer.eos_token = family.end_of_turn
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if wide:
        sizes |= {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 1024}
    values = {key: value for key, value in (sizes | family.config).items() if value is not None}
    if family.model_type == "gpt2":
        values = {key: value for key, value in values.items() if key not in _NOT_OF_GPT2}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family.model_type](**values), dtype=torch.float32)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    if tokenizer.chat_template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


_NOT_OF_GPT2 = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
}
