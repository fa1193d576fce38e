"""Text to tokens and back, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_PLACEHOLDER = "\x00turn\x00"


class Chat:
    """Formats prompts and turns for one tokenizer.

    A prompt is one user message followed by the generation prompt. A further user turn is the template's text from the
    end of the model's turn to the end of the next generation prompt.

    The model ends a turn with the tokenizer's eos token, with a token that its generation config names, or with the special
    token by which the template closes a turn of the assistant.

    Args:
        tokenizer: The model's tokenizer.
        eos_token_ids: End tokens of the model's generation config.

    Raises:
        ValueError: the tokenizer has no chat template, or no token is known to end a turn.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Iterable[int] = ()) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"policy_model={tokenizer.name_or_path!r}: its tokenizer has no chat template; "
                "use an instruction-tuned model or add a chat_template.jinja to the folder"
            )
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}
        self._closing = self._closing_token()
        ends = {tokenizer.eos_token_id, self._closing, *eos_token_ids} - {None}
        if not ends:
            raise ValueError(
                f"policy_model={tokenizer.name_or_path!r}: nothing says how its turns end: the tokenizer has no eos_token, the "
                "generation config no eos_token_id, and the chat template closes a turn with no special token; set eos_token in "
                "tokenizer_config.json"
            )
        self._end_of_turn = sorted(map(int, ends))
        self._special.update(self._end_of_turn)

    @classmethod
    def from_pretrained(cls, model: str) -> Chat:
        """Loads the tokenizer and the generation config of a folder or hub id."""
        from transformers import AutoTokenizer, GenerationConfig

        try:
            ids = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:
            ids = None
        return cls(AutoTokenizer.from_pretrained(model), [] if ids is None else [ids] if isinstance(ids, int) else ids)

    @property
    def end_of_turn(self) -> list[int]:
        """Token ids that end the model's turn, ascending."""
        return self._end_of_turn

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids; all are below it."""
        return len(self._tokenizer)

    def prompt(self, text: str) -> list[int]:
        """Returns the token ids of a conversation that begins with this user message, generation prompt included."""
        return self._encode(self._render([{"role": "user", "content": text}]))

    def user_turn(self, text: str) -> list[int]:
        """Returns the token ids after the one that ended the model's turn, next generation prompt included."""
        rest = self._after_turn(text)
        if self._closing is not None:
            rest = rest.lstrip().removeprefix(self._tokenizer.convert_ids_to_tokens(self._closing))
        return self._encode(rest)

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of sampled tokens, without special tokens."""
        return str(self._tokenizer.decode([token for token in tokens if token not in self._special]))

    def _after_turn(self, text: str) -> str:
        """Returns the template's text after the assistant's text, given the user's next message."""
        conversation = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PLACEHOLDER},
            {"role": "user", "content": text},
        ]
        return self._render(conversation).partition(_PLACEHOLDER)[2]

    def _closing_token(self) -> int | None:
        """Returns the special token with which the template closes a turn of the assistant; None if it uses none."""
        first = self._encode(self._after_turn("?").lstrip())[:1]
        return first[0] if first and first[0] in self._special else None

    def _render(self, conversation: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
