"""Text to tokens and back, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_PLACEHOLDER = "\x00turn\x00"


class Chat:
    """Formats prompts and turns for one tokenizer.

    A prompt is one user message followed by the generation prompt. A further user turn is what the template puts
    between the end of the model's turn and the next generation prompt.

    Raises:
        ValueError: the tokenizer has no chat template or no end-of-turn token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"policy_model={tokenizer.name_or_path!r}: its tokenizer has no chat template; "
                "use an instruction-tuned model or add a chat_template.jinja to the folder"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"policy_model={tokenizer.name_or_path!r}: its tokenizer has no eos_token; "
                "set eos_token in tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)

    @classmethod
    def from_pretrained(cls, model: str) -> Chat:
        """Loads the tokenizer of a folder or hub id."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(model))

    @property
    def end_of_turn(self) -> list[int]:
        """Token ids that end the model's turn."""
        return [int(self._tokenizer.eos_token_id)]

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it."""
        return len(self._tokenizer)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a conversation that begins with this user message, generation prompt included."""
        return self._encode(self._render([{"role": "user", "content": text}]))

    def user_turn(self, text: str) -> list[int]:
        """Token ids that follow the model's end-of-turn token up to the next generation prompt."""
        conversation = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PLACEHOLDER},
            {"role": "user", "content": text},
        ]
        _, _, rest = self._render(conversation).partition(_PLACEHOLDER)
        return self._encode(rest.removeprefix(self._tokenizer.eos_token))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return str(self._tokenizer.decode([token for token in tokens if token not in self._special]))

    def _render(self, conversation: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
