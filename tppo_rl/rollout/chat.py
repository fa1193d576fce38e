"""Text to tokens and back, by the tokenizer's chat template or a template for base models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.config.sections.chat import PROMPT, ChatOptions
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.errors import OptionError
from tppo_rl.envs.text_env import SPLITS, Split
from tppo_rl.rollout.tool_texts import tool_text, turns_and_tools, with_system_text

Message = Mapping[str, str]
"""A turn: `role` and `content`."""

_FEWEST_TOKENS = 8
"""Where a folder has no tokenizer, transformers may make one of a few special tokens."""
_PLACEHOLDER = "\x00turn\x00"
_CHECKED_PROMPTS = 256
"""Longest prompts by characters whose tokens are counted before a run starts."""
_BETWEEN_TURNS = "\n\n"
"""Text between the turns of a base model."""


class Chat:
    """Formats prompts and turns for one tokenizer.

    A prompt is one user message, after others if the environment brings them, followed by the generation prompt. A further
    user turn is the template's text from the end of the model's turn to the end of the next generation prompt. What the model
    has said is never formatted again.

    The model ends a turn with the tokenizer's eos token, with a token that its generation config names, with the special
    token by which the template closes a turn of the assistant, or with what `options` name.

    Args:
        tokenizer: The model's tokenizer.
        eos_token_ids: End tokens of the model's generation config.
        options: System prompt, templates and ends of turns.

    Raises:
        OptionError: the tokenizer has no chat template and the options have none either, the template refuses the system
            prompt or the arguments, or no token is known to end a turn.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Iterable[int] = (), options: ChatOptions | None = None) -> None:
        self._options = options = options or ChatOptions()
        self._model = f"policy_model={tokenizer.name_or_path!r}"
        if len(tokenizer) < _FEWEST_TOKENS:
            raise OptionError(f"{self._model}: has no tokenizer; copy the model's tokenizer files into the folder")
        if tokenizer.chat_template is None and options.prompt_template is None:
            raise OptionError(
                f"{self._model}: its tokenizer has no chat template; use an instruction-tuned model, add a "
                f'chat_template.jinja to the folder, or set prompt_template, for example "Question: {PROMPT}\\nAnswer:"'
            )
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}
        self._begin = self._begin_of_text()
        self._closing = self._closing_token()
        own = [self._token_id(token) for token in options.end_of_turn]
        ends = {tokenizer.eos_token_id, self._closing, *eos_token_ids, *own} - {None}
        if not ends:
            raise OptionError(
                f"{self._model}: nothing says how its turns end: the tokenizer has no eos_token, the generation config no "
                "eos_token_id, and the chat template closes a turn with no special token; set end_of_turn"
            )
        self._end_of_turn = sorted(map(int, ends))
        self._special.update(self._end_of_turn)
        self._longest_stop = max(map(len, options.stop), default=0)

    @classmethod
    def from_pretrained(cls, model: str, options: ChatOptions | None = None) -> Chat:
        """Loads the tokenizer and the generation config of a folder or hub id."""
        from transformers import AutoTokenizer, GenerationConfig

        try:
            ids = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:
            ids = None
        ends = [] if ids is None else [ids] if isinstance(ids, int) else ids
        return cls(AutoTokenizer.from_pretrained(model), ends, options)

    @classmethod
    def of(cls, options: Options) -> Chat:
        """Returns the chat of a run's policy."""
        return cls.from_pretrained(resolve_model(str(options.models.policy_model)), options.chat)

    @property
    def end_of_turn(self) -> list[int]:
        """Token ids that end the model's turn, ascending."""
        return self._end_of_turn

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids; all are below it."""
        return len(self._tokenizer)

    @property
    def has_stops(self) -> bool:
        """Whether a turn may end by its text."""
        return self._longest_stop > 0

    def prompt(self, text: str, earlier: Sequence[Message] = (), tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Returns the token ids of a conversation that ends with this user message, generation prompt included.

        Args:
            text: The user message.
            earlier: Messages before it; a system prompt among them takes the place of the option's.
            tools: JSON schemas of tools, which go to the template; one that knows no tools gets them as a system text.
        """
        conversation = [*earlier, {"role": "user", "content": text}]
        return [*self._begin, *self._encode(self._render(conversation, begins=True, tools=tools))]

    def user_turn(self, text: str, *, is_closed: bool = True) -> list[int]:
        """Returns the token ids after the model's turn, next generation prompt included.

        Args:
            text: The user message.
            is_closed: Whether the model's turn ended with a token that closes it; else one is put in front.
        """
        rest = self._after_turn(text)
        if is_closed and self._closing is not None:
            rest = rest.lstrip().removeprefix(self._tokenizer.convert_ids_to_tokens(self._closing))
        return self._encode(rest)

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of sampled tokens, without special tokens and without what stands after a stop text."""
        text = str(self._tokenizer.decode([token for token in tokens if token not in self._special]))
        ends = [place for stop in self._options.stop if (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def is_stopped(self, earlier: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether a turn reaches a stop text with its newest tokens.

        Args:
            earlier: Tokens of the turn before, without a stop text.
            tokens: Its newest tokens.
        """
        # A stop text has at most as many tokens as bytes.
        text = str(self._tokenizer.decode([*earlier[-4 * self._longest_stop :], *tokens]))
        return any(stop in text for stop in self._options.stop)

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

    def _begin_of_text(self) -> list[int]:
        """Returns the token that begins every text of a base model; a chat template writes it itself."""
        begin = self._tokenizer.bos_token_id
        if self._options.prompt_template is None or begin is None:
            return []
        return [begin] if self._tokenizer.encode("")[:1] == [begin] else []

    def _token_id(self, token: int | str) -> int:
        vocabulary = self._tokenizer.get_vocab()
        if isinstance(token, str) and token in vocabulary:
            return int(vocabulary[token])
        if isinstance(token, int) and 0 <= token < len(self._tokenizer):
            return token
        raise OptionError(
            f"end_of_turn={token!r}: the vocabulary of {self._model} has no such token; give an id below "
            f"{len(self._tokenizer)} or the text of one token. A text of several tokens goes into `stop`"
        )

    def _render(
        self, conversation: Sequence[Message], *, begins: bool = False, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        system = self._options.system_prompt
        if begins and system is not None and all(message["role"] != "system" for message in conversation):
            conversation = [{"role": "system", "content": system}, *conversation]
        arguments = dict(self._options.chat_template_args)
        if tools and self._options.prompt_template is None and _knows_tools(self._tokenizer.chat_template):
            arguments["tools"] = list(tools)
        elif tools:
            conversation = with_system_text(conversation, tool_text(tools))
        if self._options.prompt_template is not None:
            return self._render_plainly(conversation, self._options.prompt_template)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(conversation),
                    tokenize=False,
                    add_generation_prompt=True,
                    **arguments,
                )
            )
        except (TemplateError, TypeError) as error:
            raise OptionError(
                f"{self._model}: its chat template refuses roles {[message['role'] for message in conversation]} with "
                f"chat_template_args={self._options.chat_template_args!r}: {error}; leave out system_prompt, or the argument"
            ) from None

    def _render_plainly(self, conversation: Sequence[Message], template: str) -> str:
        """Returns the conversation for a base model: user turns in the template, all others as they are."""
        turns = [
            template.replace(PROMPT, message["content"]) if message["role"] == "user" else message["content"]
            for message in conversation
        ]
        text = ""
        for message, turn in zip(conversation, turns, strict=True):
            # The model's turn goes on where the template of the user's turn ends.
            text += turn if message["role"] == "assistant" or not text else _BETWEEN_TURNS + turn
        return text

    def plain(self, text: str) -> list[int]:
        """Returns the token ids of a text alone, without anything of the template."""
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _knows_tools(template: Any) -> bool:
    """Whether a chat template, or one of several by name, writes tools."""
    texts = template.values() if isinstance(template, Mapping) else [template]
    return any("tools" in str(text) for text in texts)


def check_chat(options: Options) -> None:
    """Checks templates, system prompt, ends of turns and the longest prompts with the model's own tokenizer.

    Raises:
        OptionError: names key, value and remedy.
    """
    chat = Chat.of(options)
    chat.prompt("?")
    for split in SPLITS:
        check_prompt_lengths(chat, options, split)


def check_prompt_lengths(chat: Chat, options: Options, split: Split) -> None:
    """Checks the longest prompts of an environment that knows which they are (`longest_prompts`).

    Raises:
        OptionError: one of them is longer than `max_prompt_length`.
    """
    limit = options.rollout.max_prompt_length
    env = make_text_env(options.environment, split)
    longest = getattr(env.unwrapped, "longest_prompts", None)
    problems = [] if longest is None else longest(_CHECKED_PROMPTS)
    lengths = [len(chat.prompt(one.prompt, *turns_and_tools(one.details))) for one in problems]
    env.close()
    if (most := max(lengths, default=0)) > limit:
        long = sum(length > limit for length in lengths)
        raise OptionError(
            f"max_prompt_length={limit}: {long} or more {split} prompts are longer, the longest has {most} tokens; raise "
            f"max_prompt_length to {most}, or drop long prompts with env_config.max_prompt_characters"
        )
