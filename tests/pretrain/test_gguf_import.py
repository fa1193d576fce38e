"""GGUF files of our own making, and what stands in the way of one."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tppo_rl.cli import main
from tppo_rl.core.errors import OptionError
from tppo_rl.pretrain.gguf_import import import_gguf
from tppo_rl.rollout.chat import Chat

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"
)
TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>", *(chr(33 + index) for index in range(94)), "Ċ", "Ġ", "12", "Ġ1"]


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: the two halves of each head's rotary pairs alternate."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, file: Path, *, pre: str = "smollm") -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["1 2", "Ġ 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = tensor.numpy()
        if "q_proj" in name:
            weight = interleaved(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_folder_holds_the_same_model(tmp_path: Path) -> None:
    model = small_llama()
    write_gguf(model, tmp_path / "small.gguf")
    result = CliRunner().invoke(main, ["import-model", str(tmp_path / "small.gguf"), str(tmp_path / "new" / "small")])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "small"
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    found = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(3, len(TOKENS), (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Digits stand alone: neither of the merges may happen.
    assert tokenizer.tokenize("a 12") == ["a", "Ġ", "1", "2"]
    chat = Chat.from_pretrained(str(folder))
    assert chat.end_of_turn == [2]
    assert tokenizer.decode(chat.prompt("1+1?")) == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant"


def test_a_pre_tokenizer_that_nobody_knows_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_gguf(small_llama(), tmp_path / "small.gguf", pre="new-scheme")
    import_gguf(tmp_path / "small.gguf", tmp_path / "small")
    assert "pre-tokenizer 'new-scheme'" in caplog.text


def test_what_cannot_be_imported_is_one_message(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    good = tmp_path / "small.gguf"
    write_gguf(small_llama(), good)
    for file, folder, words in (
        (tmp_path / "none.gguf", tmp_path / "a", "no such file"),
        (text, tmp_path / "b", "not in the GGUF format"),
        (good, full, "not empty"),
    ):
        with pytest.raises(OptionError, match=words):
            import_gguf(file, folder)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(good.read_bytes()[:400])
    with pytest.raises(OptionError, match="cannot read it"):
        import_gguf(broken, tmp_path / "c")
    assert not (tmp_path / "c").exists()
