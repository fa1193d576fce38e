"""Importance weights of sampled tokens, a mask of sequences by them, and the effective sample size.

    w_t = pi(a_t | s_t) / mu(a_t | s_t)

As constant weights they correct a loss for the policy mu that sampled the tokens. Decoupled PPO (AReaL, arXiv
2505.24298) clips the ratio pi / pi_prox and weights each token with w = pi_prox / mu. Truncated importance sampling
(IMPALA, arXiv 1802.01561, section 4.1) holds w at a cap. The geometric mean of a response's weights tells how far the
response as a whole has drifted:

    g = exp( (1 / l) * sum_t log w_t )
"""

from __future__ import annotations

import torch

_MAX_LOG_WEIGHT = 20.0


def importance_weights(log_probs: torch.Tensor, behavior_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns w_t = pi(a_t | s_t) / mu(a_t | s_t) per token, within exp(±20), in the shape of the arguments.

    Args:
        log_probs: [...], log pi in nats, of the policy that is trained.
        behavior_log_probs: Same shape, log mu in nats, of the policy that sampled the token.

    Raises:
        ValueError: the shapes differ.
    """
    if log_probs.shape != behavior_log_probs.shape:
        raise ValueError(
            "log_probs and behavior_log_probs differ in shape: "
            f"{tuple(log_probs.shape)} and {tuple(behavior_log_probs.shape)}"
        )
    return (log_probs - behavior_log_probs).clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT).exp()


def truncated_importance_weights(
    log_probs: torch.Tensor, behavior_log_probs: torch.Tensor, *, cap: float | None
) -> torch.Tensor:
    """Returns min(w_t, cap) per token, detached, in the shape of the arguments.

    Args:
        log_probs: [...], log of w's numerator in nats: pi_prox for decoupled PPO, else the policy that is trained.
        behavior_log_probs: Same shape, log mu in nats, of the policy that sampled the token.
        cap: Largest weight, above 0; None leaves the weights as `importance_weights` gives them.

    Raises:
        ValueError: the shapes differ, or `cap` is not positive.
    """
    if cap is not None and not cap > 0:
        raise ValueError(f"cap={cap} must be positive: every weight would be 0 or below")
    weights = importance_weights(log_probs, behavior_log_probs).detach()
    return weights if cap is None else weights.clamp(max=cap)


def sequence_mask(
    log_probs: torch.Tensor,
    behavior_log_probs: torch.Tensor,
    rows: torch.Tensor,
    num_rows: int,
    *,
    low: float,
    high: float,
) -> torch.Tensor:
    """Returns bool [num_rows]: whether the geometric mean g of the row's importance weights lies in [low, high].

    Rows without tokens are True. Unlike in `importance_weights`, log-weights are not held within ±20: one token far
    outside is a reason to drop its row.

    Args:
        log_probs: [N], log pi in nats, of the policy that is trained; taken as a constant.
        behavior_log_probs: [N], log mu in nats, of the policy that sampled the token; taken as a constant.
        rows: int64 [N], the row that each token belongs to, between 0 and `num_rows` - 1.
        num_rows: Number of rows.
        low: Smallest mean that is kept, at least 0.
        high: Largest mean that is kept, at least `low`.

    Raises:
        ValueError: shapes that do not fit together, a row outside 0 .. num_rows - 1, or not 0 <= low <= high.
    """
    if log_probs.ndim != 1 or not log_probs.shape == behavior_log_probs.shape == rows.shape:
        raise ValueError(
            "log_probs, behavior_log_probs and rows must be [N], got "
            f"{tuple(log_probs.shape)}, {tuple(behavior_log_probs.shape)} and {tuple(rows.shape)}"
        )
    if not 0 <= low <= high:
        raise ValueError(f"low={low} and high={high} must satisfy 0 <= low <= high")
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < num_rows):
        raise ValueError(f"rows must lie in 0 .. {num_rows - 1}, got {int(rows.min())} .. {int(rows.max())}")
    # float64 sums, so that the order of the tokens cannot change the mask.
    log_weights = (log_probs - behavior_log_probs).detach().double()
    sums = torch.zeros(num_rows, dtype=torch.float64, device=rows.device).index_add_(0, rows, log_weights)
    counts = torch.bincount(rows, minlength=num_rows)
    means = (sums / counts.clamp(min=1)).exp()
    return (counts == 0) | ((means >= low) & (means <= high))


def effective_sample_size(weight_sum: float, squared_weight_sum: float) -> float:
    """Returns (sum w)^2 / sum w^2 (Kish 1965): n for n equal weights, 1 where one weight outweighs all others.

    It takes sums rather than tokens, so that the tokens may lie on several learners.

    Args:
        weight_sum: Sum of the weights, in tokens.
        squared_weight_sum: Sum of their squares, above 0.

    Raises:
        ValueError: `squared_weight_sum` is not positive.
    """
    if squared_weight_sum <= 0:
        raise ValueError(f"squared_weight_sum={squared_weight_sum} must be positive: there is no weight to count")
    return weight_sum**2 / squared_weight_sum
