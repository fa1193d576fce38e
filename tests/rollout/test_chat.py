from typing import Any

import pytest
from transformers import AutoTokenizer

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout.chat import Chat


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("missing", ["chat_template", "eos_token"])
def test_a_tokenizer_that_cannot_chat_is_refused(missing: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    setattr(tokenizer, missing, None)
    with pytest.raises(ValueError, match=f"policy_model=.*{missing}"):
        Chat(tokenizer)
