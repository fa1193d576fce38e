"""TRL's reward models: a sequence classifier with one label, whose logit is the reward.

    rewards: {type: model, model: FOLDER_OR_ID}

The model reads prompt and response by its own chat template; where its tokenizer has none, their texts one after the other. It
is loaded in every env-runner, when that starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from tppo_rl.base_models import resolve_model
from tppo_rl.config.model_files import load_model_config
from tppo_rl.core.errors import OptionError
from tppo_rl.rollout.reward_terms import Term


class RewardModel(Term):
    """The first logit of a sequence classifier with one label."""

    model: str
    """Folder or hub id."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(8, ge=1)
    """Responses of one forward pass."""
    max_length: int | None = Field(None, ge=1)
    """Tokens beyond which the beginning is cut off; None: what the model holds."""
    _loaded: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("model")
    @classmethod
    def _is_a_reward_model(cls, model: str) -> str:
        try:
            config = load_model_config("model", model)
        except OptionError:
            raise ValueError(
                "no such folder with a config.json, and no hub id that can be reached; give a reward model"
            ) from None
        architectures = config.get("architectures") or ["unknown"]
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise ValueError(
                f"is a {', '.join(architectures)}; give a model for sequence classification with one label, as TRL's reward "
                "models are"
            )
        labels = config.get("num_labels", len(config.get("id2label") or {}) or 2)
        if labels != 1:
            raise ValueError(f"has {labels} labels, and a reward model has one; give another model")
        return model

    def load(self) -> None:
        """Loads model and tokenizer."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = resolve_model(self.model)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=getattr(torch, self.dtype)
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            # The classifier reads the last token that is no padding, so it must know the padding.
            model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.truncation_side = "left"
        self._loaded.update(model=model.to(self.device).eval(), tokenizer=tokenizer)

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Returns the logit of each response."""
        if not self._loaded:
            self.load()
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return [logit for start in range(0, len(texts), self.batch_size) for logit in self._logits(texts, start)]

    def _logits(self, texts: Sequence[str], start: int) -> Iterator[float]:
        import torch

        inputs = self._loaded["tokenizer"](
            list(texts[start : start + self.batch_size]),
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_length or self._context(),
        ).to(self.device)
        with torch.inference_mode():
            yield from self._loaded["model"](**inputs).logits[:, 0].float().tolist()

    def _context(self) -> int:
        config = self._loaded["model"].config
        return int(getattr(config, "max_position_embeddings", None) or self._loaded["tokenizer"].model_max_length)

    def _text(self, prompt: Any, completion: Any) -> str:
        tokenizer = self._loaded["tokenizer"]
        if tokenizer.chat_template is None:
            return _plain(prompt) + _plain(completion)
        conversation = _messages(prompt, "user") + _messages(completion, "assistant")
        return str(tokenizer.apply_chat_template(conversation, tokenize=False))


def _messages(value: Any, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _plain(value: str | Sequence[Mapping[str, Any]]) -> str:
    return value if isinstance(value, str) else "\n".join(str(message["content"]) for message in value)
