"""Schemas of tools stand in the prompt, whatever the chat template knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import make_family
from transformers import AutoTokenizer

from tppo_rl.config.sections.chat import ChatOptions
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.tool_texts import turns_and_tools

TOOLS = [{"type": "function", "function": {"name": "listen", "description": "Hear.", "parameters": {}}}]
KNOWS_TOOLS = (
    "{% if tools %}[{% for tool in tools %}{{ tool.function.name }}{% endfor %}]{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def qwen3(tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(make_family("qwen3", tmp_path / "model"))


def test_a_template_that_knows_tools_gets_them_once(qwen3: Any) -> None:
    qwen3.chat_template = KNOWS_TOOLS
    chat = Chat(qwen3)
    assert qwen3.decode(chat.prompt("?", (), TOOLS)) == "[listen]<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    assert "listen" not in qwen3.decode(chat.user_turn("<tool_response>\n1\n</tool_response>"))
    assert "[" not in qwen3.decode(chat.prompt("?"))


@pytest.mark.parametrize("system", [None, "Be short."])
def test_any_other_template_gets_a_system_text(qwen3: Any, system: str | None) -> None:
    qwen3.chat_template = KNOWS_TOOLS.partition("{% endif %}")[2]
    text = qwen3.decode(Chat(qwen3, options=ChatOptions(system_prompt=system)).prompt("?", (), TOOLS))
    assert text.startswith(f"<|im_start|>system\n{'Be short.' if system else 'You can call tools.'}")
    assert text.count("<|im_start|>system") == 1
    assert '"name": "listen", "description": "Hear."' in text
    assert "<tool_call>" in text


def test_a_base_model_reads_of_the_tools_before_the_question(qwen3: Any) -> None:
    options = ChatOptions(prompt_template="Question: {prompt}\nAnswer:")
    text = qwen3.decode(Chat(qwen3, options=options).prompt("?", (), TOOLS))
    assert text.startswith("You can call tools.")
    assert text.endswith("Question: ?\nAnswer:")


def test_what_an_environment_says_of_turns_and_tools() -> None:
    assert turns_and_tools({"tool_schemas": TOOLS}) == ((), TOOLS)
    assert turns_and_tools({"tools": TOOLS}) == ((), ())
