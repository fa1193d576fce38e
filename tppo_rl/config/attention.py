"""Which attention kernels the learners use, and whether they can."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from tppo_rl.core.errors import OptionError

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


def attention_kernels(options: Options) -> str:
    """Returns "sdpa", "flash_attention_2" or "flex_attention": the kernels that were asked for, or those that suit.

    In padded rows torch's own kernels are fastest. For packed rows they need a mask that is quadratic in the tokens of a row.
    The others skip what a token does not see, and have a backward pass on GPUs alone.
    """
    asked = options.models.attention
    if asked != "auto":
        return asked
    if not options.compute.packing or options.learners.num_gpus_per_learner == 0:
        return "sdpa"
    has_flash_kernels = _has_flash_attention() and options.models.dtype != "float32"
    return "flash_attention_2" if has_flash_kernels else "flex_attention"


def check_attention(options: Options) -> None:
    """Checks that the attention kernels can run, without looking for a GPU: the learner's may be in another machine.

    Raises:
        OptionError: the kernels are not installed, or need a GPU or another dtype.
    """
    asked = options.models.attention
    if asked in ("auto", "sdpa"):
        return
    key = f"attention={asked!r}"
    if options.learners.num_gpus_per_learner == 0 and options.placement.placement is None:
        raise OptionError(
            f"{key}: its kernels need a GPU, and num_gpus_per_learner=0 trains on the CPU; set num_gpus_per_learner to 1, or "
            "attention to 'auto'"
        )
    if asked == "flash_attention_2" and not _has_flash_attention():
        raise OptionError(f"{key}: the package flash-attn is not installed; install it, or set attention to 'auto'")
    if asked == "flash_attention_2" and options.models.dtype == "float32":
        raise OptionError(
            f"{key}: there are no kernels for dtype='float32'; set dtype to 'bfloat16', or attention to 'auto'"
        )


def _has_flash_attention() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
