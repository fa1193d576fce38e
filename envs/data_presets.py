"""Data sets that are known by name: where they are, which columns hold what, what scores an answer.

Columns are those of the hub and of the JSON lines in which evaluation suites pass the same questions around; of two names the
one counts that a row has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

BOXED = "{prompt}\nReason step by step, and put your final answer within \\boxed{{}}."
LAST_NUMBER = "{prompt}\nReason step by step, and end with the answer as a number."
_NUMBER = r"^\s*(-?[\d,]*\.?\d+)\s*(?:\(.*\))?\s*$"


@dataclass(frozen=True)
class Preset:
    """What a name stands for; every field is the default of the option of the same name.

    Attributes:
        source: Hub id.
        prompt, answer: Columns or templates; of several the first one that a row has.
        verifier: What scores an answer.
        heldout: Default of `heldout` where the data come from the hub; None: by hash.
    """

    source: str
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    verifier: str
    subset: str | None = None
    source_split: str | None = None
    answer_after: str | None = None
    answer_pattern: str | None = None
    prompt_template: str | None = None
    heldout: Mapping[str, Any] | None = None
    bad_rows: str = "fail"
    drop_duplicates: bool = False


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "gsm8k": Preset(
            source="openai/gsm8k",
            subset="main",
            source_split="train",
            prompt=("question",),
            answer=("answer",),
            answer_after="####",
            verifier="numeric",
            prompt_template=LAST_NUMBER,
            heldout={"source": "openai/gsm8k", "subset": "main", "source_split": "test"},
        ),
        "math500": Preset(
            source="HuggingFaceH4/MATH-500",
            source_split="test",
            prompt=("problem",),
            answer=("answer",),
            verifier="math",
            prompt_template=BOXED,
        ),
        "aime24": Preset(
            source="HuggingFaceH4/aime_2024",
            source_split="train",
            prompt=("problem", "question"),
            answer=("answer",),
            verifier="numeric",
            prompt_template=BOXED,
        ),
        "amc23": Preset(
            source="math-ai/amc23",
            source_split="test",
            prompt=("question", "problem"),
            answer=("answer",),
            verifier="numeric",
            prompt_template=BOXED,
        ),
        "dapo_math_17k": Preset(
            source="BytedTsinghua-SIA/DAPO-Math-17k",
            source_split="train",
            prompt=("prompt",),
            answer=("reward_model.ground_truth",),
            verifier="math",
            # The published file repeats each of its 17,000 questions about a hundred times.
            drop_duplicates=True,
        ),
        "svamp": Preset(
            source="ChilleD/SVAMP",
            source_split="train",
            # Some bodies end without a period.
            prompt=("{Body:sentence} {Question}",),
            answer=("Answer",),
            verifier="numeric",
            prompt_template=LAST_NUMBER,
            heldout={"source": "ChilleD/SVAMP", "source_split": "test"},
        ),
        "asdiv": Preset(
            source="EleutherAI/asdiv",
            source_split="validation",
            prompt=("{body:sentence} {question}",),
            answer=("answer",),
            answer_pattern=_NUMBER,
            verifier="numeric",
            prompt_template=LAST_NUMBER,
            # One row in thirteen has a name, a time of day or a ratio as its answer.
            bad_rows="skip",
        ),
        "mawps": Preset(
            source="MU-NLPC/Calc-mawps",
            source_split="train",
            prompt=("input", "question"),
            answer=("target", "result"),
            verifier="numeric",
            prompt_template=LAST_NUMBER,
            heldout={"source": "MU-NLPC/Calc-mawps", "source_split": "test"},
        ),
    }
)
