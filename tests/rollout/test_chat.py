import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout.chat import Chat


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))


def test_a_conversation_is_what_the_template_makes_of_it(tokenizer: Any) -> None:
    chat = Chat(tokenizer)
    turns = [
        {"role": "user", "content": "a1="},
        {"role": "assistant", "content": "#1"},
        {"role": "user", "content": "and b2="},
    ]
    whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    pieces = [*chat.prompt("a1="), *tokenizer.encode("#1"), *chat.end_of_turn, *chat.user_turn("and b2=")]
    assert tokenizer.decode(pieces) == whole


def test_text_is_without_special_tokens(tokenizer: Any) -> None:
    chat = Chat(tokenizer)
    assert chat.text([*tokenizer.encode("a3=3;#3"), *chat.end_of_turn]) == "a3=3;#3"
    assert max(chat.prompt("zZ09~\n")) < chat.vocabulary_size


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"policy_model=.*no chat template"):
        Chat(tokenizer)


GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture
def gemma_like(tmp_path: Path) -> Path:
    """The shipped model in Gemma's clothes: turns end by a special token that is not the tokenizer's eos."""
    folder = Path(shutil.copytree(resolve_model("tppo_rl/arithmetic-chain"), tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_a_turn_ends_by_every_token_that_says_so(gemma_like: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gemma_like)
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = gemma_like / "generation_config.json"
    for named, expected in ((None, {1}), (9, {1, 9}), ([1, 7, 9], {1, 7, 9})):
        config.write_text(json.dumps({} if named is None else {"eos_token_id": named}), encoding="utf-8")
        assert set(Chat.from_pretrained(str(gemma_like)).end_of_turn) == {*expected, end_of_turn}
    config.unlink()
    assert set(Chat.from_pretrained(str(gemma_like)).end_of_turn) == {1, end_of_turn}


def test_the_next_turn_follows_the_token_that_closed_the_last(gemma_like: Path) -> None:
    chat = Chat.from_pretrained(str(gemma_like))
    tokenizer = AutoTokenizer.from_pretrained(gemma_like)
    closing = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert tokenizer.decode([*chat.prompt("a1="), *tokenizer.encode("#1"), closing, *chat.user_turn("b2=")]) == (
        "<start_of_turn>user\na1=<end_of_turn>\n<start_of_turn>model\n#1<end_of_turn>\n"
        "<start_of_turn>user\nb2=<end_of_turn>\n<start_of_turn>model\n"
    )
    assert chat.text([*tokenizer.encode("#1"), closing]) == "#1"


def test_a_space_before_the_closing_token_is_no_part_of_the_next_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}"
    chat = Chat(tokenizer)
    assert tokenizer.decode([*chat.end_of_turn, *chat.user_turn("b")]) == "<eos>b <eos>"


def test_without_any_token_that_ends_a_turn_a_model_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"policy_model=.*nothing says how its turns end"):
        Chat(tokenizer)
    assert Chat(tokenizer, [3]).end_of_turn == [3]
