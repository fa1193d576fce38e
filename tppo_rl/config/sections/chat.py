"""Options of the text around prompts and turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from tppo_rl.config.section import Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

PROMPT = "{prompt}"


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str | int) else value


class ChatOptions(Section):
    """The text around prompts, and the ends of turns."""

    system_prompt: str | None = option(None, "Text of a system turn before every prompt that brings none of its own.")
    prompt_template: str | None = option(
        None,
        "Text with `{prompt}` that is used instead of the chat template, for base models: for example "
        '`"Question: {prompt}\\nAnswer:"`; None: the tokenizer\'s chat template.',
    )
    chat_template_args: dict[str, Any] = option(
        {}, "Keyword arguments of the chat template, such as `{enable_thinking: false}` (Qwen3)."
    )
    end_of_turn: Annotated[tuple[int | str, ...], BeforeValidator(_as_tuple)] = option(
        (),
        "Tokens that end a turn, as ids or as text, beside those of the tokenizer, the generation config and the chat "
        "template.",
    )
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = option(
        (),
        "Texts that end a turn. The environment does not see them; their tokens are trained like all others.",
    )

    def check(self, options: Options) -> None:
        """Checks the template and the texts that end a turn."""
        if self.prompt_template is not None and PROMPT not in self.prompt_template:
            refuse("prompt_template", self.prompt_template, f"must contain {PROMPT}, where the environment's text goes")
        if self.prompt_template is not None and self.chat_template_args:
            refuse(
                "chat_template_args",
                self.chat_template_args,
                "no chat template is used with prompt_template; leave one of them out",
            )
        if "" in self.stop:
            refuse("stop", list(self.stop), "an empty text would end every turn at once; remove it")
