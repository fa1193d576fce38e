"""Settings on which the memory plan is held against measured peaks: `tppo-rl bench memory --plan`.

The first twelve were chosen before the plan's formula was fitted, and the others (`UNSEEN`) were not looked at while it was. One
micro-batch is one update, so that its tokens are those that the plan asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PRETRAINED = "smollm2-135m"
"""Stands for the folder that the command is given; the other names are of `RANDOM_MODELS`."""


@dataclass(frozen=True)
class Setting:
    """A learner to measure."""

    model: str
    """`PRETRAINED`, or a name of `RANDOM_MODELS`."""
    length: int
    """Tokens of every episode, prompt included."""
    tokens: int
    """`micro_batch_tokens`, a multiple of the length."""
    options: dict[str, Any] = field(default_factory=dict)
    """Other options of the run."""

    @property
    def name(self) -> str:
        """One line that tells it from all others."""
        words = (_WORDS.get(key, f"{key} {value or 'none'}") for key, value in self.options.items())
        return ", ".join([f"{self.model} {self.tokens // self.length} x {self.length}", *words])


_WORDS = {
    "dtype": "bfloat16",
    "lora": "LoRA",
    "gradient_checkpointing": "recomputed",
    "kl_coef": "reference",
    "weights_dtype": "bfloat16 weights",
}
"""What the settings change, in short: a table has room for a line."""

_HALF: dict[str, Any] = {"dtype": "bfloat16"}
_LORA: dict[str, Any] = {"lora": {"rank": 16}}
_AGAIN: dict[str, Any] = {"gradient_checkpointing": True}

FITTED = (
    Setting(PRETRAINED, 256, 1024),
    Setting(PRETRAINED, 512, 2048, _AGAIN),
    Setting(PRETRAINED, 512, 1024, _HALF),
    Setting(PRETRAINED, 1024, 2048, _HALF | _AGAIN),
    Setting(PRETRAINED, 1024, 2048, _LORA),
    Setting(PRETRAINED, 2048, 2048, _HALF | _LORA | _AGAIN),
    Setting("50m", 512, 4096),
    Setting("50m", 1024, 4096, _HALF | _AGAIN),
    Setting("50m", 256, 4096, _HALF | _LORA),
    Setting("50m", 2048, 4096, _LORA | _AGAIN),
    Setting("tiny", 128, 16384),
    Setting("tiny", 1024, 16384, _HALF),
)
"""Settings that the formula may be fitted to."""

UNSEEN = (
    Setting(PRETRAINED, 384, 1536, _HALF | _LORA),
    Setting("50m", 768, 6144, {"critic": None}),
    Setting("50m", 320, 2560, _HALF | {"weights_dtype": "bfloat16", "critic_layers": 4}),
    Setting(PRETRAINED, 256, 1024, {"critic": "shared"}),
    Setting("50m", 512, 4096, _LORA | {"kl_coef": 0.1}),
)
"""Settings that it may not be fitted to."""
