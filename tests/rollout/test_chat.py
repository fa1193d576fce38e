import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from families import make_family
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.config.sections.chat import ChatOptions
from tppo_rl.core.errors import OptionError
from tppo_rl.rollout.chat import Chat, check_chat


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


@pytest.fixture
def qwen3(tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(make_family("qwen3", tmp_path / "model"))


def decoded(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens))


def test_a_system_prompt_stands_first_unless_the_environment_brings_one(qwen3: Any) -> None:
    chat = Chat(qwen3, options=ChatOptions(system_prompt="Be short."))
    begin, end = "<|im_start|>", "<|im_end|>\n"
    assert decoded(qwen3, chat.prompt("1+1?")) == (
        f"{begin}system\nBe short.{end}{begin}user\n1+1?{end}{begin}assistant\n"
    )
    earlier = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert decoded(qwen3, chat.prompt("1+1?", earlier)) == (
        f"{begin}system\nBe kind.{end}{begin}user\n2+2?{end}{begin}assistant\n4{end}{begin}user\n1+1?{end}{begin}assistant\n"
    )
    assert "system" not in decoded(qwen3, chat.user_turn("and 2+2?"))


def test_arguments_go_to_the_chat_template(qwen3: Any) -> None:
    chat = Chat(qwen3, options=ChatOptions(chat_template_args={"enable_thinking": False}))
    assert decoded(qwen3, chat.prompt("1+1?")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert decoded(qwen3, chat.user_turn("2?")).endswith("2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_refuses_a_system_prompt_is_one_message(qwen3: Any) -> None:
    qwen3.chat_template = "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}" + GEMMA
    with pytest.raises(
        OptionError, match=r"policy_model=.*roles \['system', 'user'\].*not supported.*leave out system_prompt"
    ):
        Chat(qwen3, [1], ChatOptions(system_prompt="Be short.")).prompt("?")


def test_a_base_model_gets_its_own_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    options = ChatOptions(prompt_template="Q: {prompt}\nA:", system_prompt="Sums.")
    chat = Chat(tokenizer, options=options)
    tokens = [*chat.prompt("a1="), *tokenizer.encode(" #1"), *chat.user_turn("b2=", is_closed=False)]
    whole = "Sums.\n\nQ: a1=\nA: #1\n\nQ: b2=\nA:"
    assert tokens == tokenizer.encode(whole, add_special_tokens=False)


def test_a_base_model_that_begins_texts_with_a_token_gets_it_once(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_family("llama3", tmp_path / "model"))
    tokenizer.chat_template = None
    begin = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, begin)]
    )
    chat = Chat(tokenizer, options=ChatOptions(prompt_template="{prompt}"))
    assert chat.prompt("a1=") == [begin, *tokenizer.encode("a1=", add_special_tokens=False)]
    assert begin not in chat.user_turn("b2=")


def test_ends_of_turn_may_be_named(tokenizer: Any) -> None:
    named = tokenizer.convert_tokens_to_ids("#")
    assert Chat(tokenizer, options=ChatOptions(end_of_turn=("#", 3))).end_of_turn == sorted({1, 3, named})
    for wrong in ("no such token", 10**6, -1):
        with pytest.raises(OptionError, match=r"end_of_turn=.*no such token"):
            Chat(tokenizer, options=ChatOptions(end_of_turn=(wrong,)))


def test_a_stop_text_is_found_where_it_ends_and_is_not_part_of_the_text(tokenizer: Any) -> None:
    chat = Chat(tokenizer, options=ChatOptions(stop=(";#", "99")))
    said = tokenizer.encode("a3=3;b9=9;#", add_special_tokens=False)
    ends = [end for end in range(1, len(said) + 1) if chat.is_stopped(said[: end - 1], said[end - 1 : end])]
    assert ends == [len(said)]
    assert chat.text(said) == "a3=3;b9=9"
    assert not Chat(tokenizer).has_stops


def test_wrong_texts_are_refused() -> None:
    for values, words in (
        ({"prompt_template": "Q:"}, r"prompt_template='Q:': must contain \{prompt\}"),
        ({"stop": ["", "x"]}, r"stop=\['', 'x'\]: an empty text"),
        (
            {"prompt_template": "{prompt}", "chat_template_args": {"a": 1}},
            r"chat_template_args=.*no chat template is used",
        ),
    ):
        options = Options.of(values)
        with pytest.raises(OptionError, match=words):
            options.chat.check(options)


def test_what_the_model_said_stays_where_the_template_would_rewrite_it(qwen3: Any) -> None:
    """Qwen3's template drops what was thought in earlier turns; the sampled tokens are context and stay."""
    chat = Chat(qwen3)
    said = qwen3.encode("<think>1 and 1</think>2", add_special_tokens=False)
    closing = qwen3.convert_tokens_to_ids("<|im_end|>")
    tokens = [*chat.prompt("1+1?"), *said, closing, *chat.user_turn("2+2?")]
    turns = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>1 and 1</think>2"},
        {"role": "user", "content": "2+2?"},
    ]
    rewritten = qwen3.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert "<think>" not in rewritten
    assert decoded(qwen3, tokens) == rewritten.replace("assistant\n2", "assistant\n<think>1 and 1</think>2")


def test_the_longest_prompts_of_a_data_set_are_measured_before_a_run(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{index:02d}+" + "1+" * index + "1=", "answer": index} for index in range(60)]
    rows.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    options = Options.of(
        env="tppo_rl/Dataset-v0",
        env_config={"source": str(rows), "answer": "answer", "heldout": {"fraction": 0.2}},
        policy_model="tppo_rl/arithmetic-chain",
        max_prompt_length=300,
    )
    check_chat(options)
    chat = Chat.of(options)
    lengths = sorted(len(chat.prompt(str(line["prompt"]))) for line in lines)
    check_chat(options.replace(max_prompt_length=lengths[-1]))
    with pytest.raises(
        OptionError, match=rf"max_prompt_length={lengths[-1] - 1}: .*raise max_prompt_length to {lengths[-1]}"
    ):
        check_chat(options.replace(max_prompt_length=lengths[-1] - 1))
