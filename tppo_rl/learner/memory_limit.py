"""A minibatch that does not fit into the memory of its device is computed again, in smaller micro-batches."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from tppo_rl.core.errors import RunError
from tppo_rl.learner.metric_sums import MetricSums

logger = logging.getLogger(__name__)


class MicroBatchLimit:
    """Most tokens of a micro-batch.

    Args:
        tokens: The option `micro_batch_tokens`, where a run begins.
        halves: Whether it may be halved. Sharded learners compute in step, so that one alone cannot begin again.
    """

    def __init__(self, tokens: int, *, halves: bool = True) -> None:
        self.tokens = tokens
        """Most tokens of one forward pass, padding included."""
        self._halves = halves

    def compute(self, minibatch: Callable[[], None], *, longest: int, metric_sums: MetricSums) -> None:
        """Computes a minibatch; where the memory is full, again with half the tokens, which stay halved for later ones.

        Args:
            minibatch: Sets the gradients to 0 and adds up those of micro-batches of at most `tokens`.
            longest: Tokens of its longest sequence, which is never cut.
            metric_sums: What the minibatch adds to; what an attempt that failed has added is taken back.

        Raises:
            RunError: the memory is full, and halving is of no use.
        """
        while True:
            before = metric_sums.mark()
            try:
                minibatch()
                return
            except torch.OutOfMemoryError as error:
                if not self._halves or self.tokens <= longest:
                    raise self._no_room(longest, error) from error
                metric_sums.back_to(before)
            # Here the error is gone, and with it the tensors that its frames held.
            self.tokens = max(longest, self.tokens // 2)
            logger.warning(
                "the device's memory is full: micro_batch_tokens is %d from here on; set it to that or less from the start",
                self.tokens,
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _no_room(self, longest: int, error: torch.OutOfMemoryError) -> RunError:
        remedy = (
            "set it to less"
            if self.tokens > longest
            else f"the longest sequence has {longest} tokens and is not cut: set gradient_checkpointing to true, train adapters (lora), or "
            "lower max_response_length"
        )
        first = str(error).strip().partition("\n")[0]
        return RunError(
            f"micro_batch_tokens={self.tokens}: the memory of the learner's device is full; {remedy} ({first})"
        )
