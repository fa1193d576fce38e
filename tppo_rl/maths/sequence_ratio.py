"""The ratio of whole sequences: the geometric mean of their tokens' ratios.

log s_i = (1 / |y_i|) * sum_t (log pi(y_it) - log pi_old(y_it))                 GSPO, arXiv 2507.18071, eq. 7
"""

from __future__ import annotations

import torch


def sequence_log_ratio(log_ratio: torch.Tensor, sequences: torch.Tensor | None = None) -> torch.Tensor:
    """Returns log s of each token's sequence, [N], with the gradient of the whole sequence.

    Args:
        log_ratio: [N], log pi - log pi_old of each token, nats.
        sequences: int64 [N], index of each token's sequence, from 0; None: all tokens are of one sequence.

    Raises:
        ValueError: the shapes differ.
    """
    if sequences is None:
        sequences = torch.zeros(len(log_ratio), dtype=torch.int64, device=log_ratio.device)
    if sequences.shape != log_ratio.shape:
        raise ValueError(
            f"log_ratio and sequences must have one shape, got {tuple(log_ratio.shape)} and {tuple(sequences.shape)}"
        )
    # There are at most as many sequences as tokens, so a GPU need not be asked for their number.
    sums = torch.zeros_like(log_ratio).index_add(0, sequences, log_ratio)
    counts = torch.zeros_like(log_ratio).index_add(0, sequences, torch.ones_like(log_ratio))
    return sums[sequences] / counts[sequences]
