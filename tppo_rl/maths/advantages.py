"""Extended generalized advantage estimation: advantages on windows of unfinished responses.

Truncated PPO (arXiv 2506.15050) estimates the advantages of a window of l tokens whose response goes on after the
window by holding the value of the last state:

    delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)                      t = 0 .. l-1
    A_t     = sum_{k=0}^{l-1-t} (gamma * lambda)^k * delta_{t+k}     with V(s_l) := V(s_{l-1})   ("hold")

If the window ends because the episode is over, V(s_l) := 0 and A is ordinary GAE (arXiv 1506.02438, eq. 16).
An episode that reached the response cap is over as well: its reward has been given, nothing follows.

We differ in one point: the value at the boundary is an argument. `boundary_values` chooses it: the paper's "hold", or
"bootstrap", the critic's own V(s_l), which a causal critic computes anyway for the state after the last token.

A_t is the geometrically weighted average (1 - lambda) * sum_{k>=1} lambda^(k-1) * A^(k)_t of the k-step estimators
A^(k)_t = sum_{i<k} gamma^i * delta_{t+i}. A window cut K = l - t tokens after t has only K of them, and EGAE puts the
whole rest of the weight, lambda^(K-1), on the longest. The tail correction (arXiv 2602.03386) divides it among those
that exist:

    A_t = (1 - lambda) / (1 - lambda^K) * sum_{k=1}^{K} lambda^(k-1) * A^(k)_t

This recursion computes it, also at lambda = 1:

    W_K = 1 + lambda * W_{K-1},  W_0 = 0;    M_t = W_K * delta_t + gamma * lambda * M_{t+1};    A_t = M_t / W_K

The correction is for unfinished windows alone. After the end of an episode all deltas are 0, so every longer estimator
equals the longest that exists, and the weights of ordinary GAE are right.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

BoundaryValue = Literal["hold", "bootstrap", "tail_corrected"]


def egae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    boundary_values: torch.Tensor,
    lengths: torch.Tensor,
    *,
    gamma: float,
    lambda_: float | torch.Tensor,
    tail_corrected: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the advantages A_t of the module's equations, [B, T] in the dtype of `values`; padding is exactly 0.

    Args:
        rewards: [B, T], r_t of each sampled token. Padding may hold anything, NaN included.
        values: [B, T], V(s_t), the value of the state that token t was sampled in. Padding as above.
        boundary_values: [B], V(s_l) of the state after the last token: 0 where the episode is over.
        lengths: int64 [B], number l of tokens in each row, between 1 and T.
        gamma: Discount of each sampled token.
        lambda_: Decay of the estimator; a tensor [B] gives each row its own (length-adaptive lambda).
        tail_corrected: bool [B], whether each row gets the tail correction; None: no row does. Callers pass `~finished`,
            because ordinary GAE is right in a finished episode.

    Raises:
        ValueError: shapes that do not fit together, or a length outside 1 .. T.
    """
    _check_rows(values, lengths, rewards=rewards)
    _check_per_row(lengths, boundary_values, tail_corrected)
    num_steps = values.shape[1]
    if num_steps == 0:
        return torch.zeros_like(values)
    if _may_be_compiled(rewards, values, boundary_values):
        starts = torch.arange(len(lengths)) * num_steps
        return _compiled(rewards, values, boundary_values, starts, lengths, gamma, lambda_, tail_corrected)
    steps = torch.arange(num_steps, device=values.device)
    valid, last = steps < lengths[:, None], steps == lengths[:, None] - 1
    following = torch.cat([values[:, 1:], boundary_values[:, None]], dim=1)
    following = torch.where(last, boundary_values[:, None], following)
    deltas = torch.where(valid, rewards + gamma * following - values, 0.0)

    # Rows of the transposed tensor are contiguous, and 0 in the padding leaves the running sum at 0 until the last
    # token, so rows of different lengths need no special case.
    decay = gamma * lambda_
    if tail_corrected is not None:
        weights = _tail_weights(lengths, lambda_, tail_corrected, like=deltas)
        deltas = weights * deltas
    running = torch.zeros_like(deltas[:, 0])
    advantages = []
    for delta in reversed(deltas.T.contiguous().unbind(0)):
        running = delta + decay * running
        advantages.append(running)
    result = torch.stack(advantages[::-1], dim=1)
    return result if tail_corrected is None else result / weights


def load_compiled() -> None:
    """Loads the machine code for float32, so that the first call of `egae` need not wait half a second or more for it."""
    egae(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), torch.ones(1).long(), gamma=1.0, lambda_=1.0)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    *,
    gamma: float,
    lambda_: float | torch.Tensor,
) -> torch.Tensor:
    """Returns ordinary GAE of whole episodes (arXiv 1506.02438, eq. 16), [B, T] in the dtype of `values`; padding is 0.

    Arguments and errors are those of `egae`, whose boundary value is 0 here: after an episode nothing follows.
    """
    return egae(rewards, values, values.new_zeros(lengths.shape), lengths, gamma=gamma, lambda_=lambda_)


def length_adaptive_lambda(response_lengths: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Returns lambda = max(0, 1 - 1 / (alpha * l)) for each response, float32 [B] (VAPO, arXiv 2504.05118).

    The weights lambda^k then sum to alpha * l, so the horizon of GAE is a fixed fraction of the response whatever its
    length.

    Args:
        response_lengths: int64 [B], number l of tokens of each response, at least 1. For a window of an unfinished
            response it is the length so far, because the final length is not known.
        alpha: Horizon as a fraction of the response, above 0.

    Raises:
        ValueError: `alpha` is not positive, or a length is below 1.
    """
    if alpha <= 0:
        raise ValueError(f"alpha={alpha} must be positive")
    if len(response_lengths) and int(response_lengths.min()) < 1:
        raise ValueError(f"response_lengths must be at least 1, got {int(response_lengths.min())}")
    return (1.0 - 1.0 / (alpha * response_lengths.double())).clamp(min=0.0).float()


def hindsight_advantages(
    residuals: torch.Tensor,
    remaining: torch.Tensor,
    *,
    gamma: float,
    lambda_: float | torch.Tensor,
    tail_corrected: bool = False,
) -> torch.Tensor:
    """Returns the change of each token's EGAE once the true return after its window is known, in the shape of `residuals`.

    EGAE is linear in the boundary value. With V for the value that was used, G for the return after the window and n for the
    number of tokens up to the window's end, of the estimators of 1 to n steps only the last one sees the boundary:

        A_t(G) - A_t(V) = w_n gamma^n (G - V),    w_n = lambda^(n - 1)

    With `tail_corrected` the weights are divided by their sum, 1 + lambda + … + lambda^(n - 1).

    Args:
        residuals: Any shape, G - V of the token's window.
        remaining: int64 of the same shape, n, the token itself included; 0 on padding, which gets 0.
        gamma: Discount; it and the next two are those with which the window's advantages were computed.
        lambda_: A float, or a tensor of the same shape.
        tail_corrected: Whether the boundary value was "tail_corrected".

    Raises:
        ValueError: shapes that differ.
    """
    if residuals.shape != remaining.shape:
        raise ValueError(
            f"residuals and remaining differ in shape: {tuple(residuals.shape)} and {tuple(remaining.shape)}"
        )
    lambdas = torch.as_tensor(lambda_, dtype=residuals.dtype).expand(residuals.shape)
    steps = remaining.clamp(min=1).to(residuals.dtype)
    weights = lambdas ** (steps - 1)
    if tail_corrected:
        # The sum of a geometric series, which is n where lambda is 1.
        sums = torch.where(lambdas == 1, steps, (1 - lambdas**steps) / torch.where(lambdas == 1, 1.0, 1 - lambdas))
        weights = weights / sums
    return torch.where(remaining > 0, weights * gamma**steps * residuals, 0.0)


def boundary_values(
    values: torch.Tensor,
    next_values: torch.Tensor,
    lengths: torch.Tensor,
    finished: torch.Tensor,
    mode: BoundaryValue,
) -> torch.Tensor:
    """Returns V(s_l) for `egae`, [B] in the dtype of `values`.

    It is 0 where the window finished its episode, whether terminated or truncated. Elsewhere it is V(s_{l-1}) for "hold"
    (arXiv 2506.15050), and `next_values` for "bootstrap" and "tail_corrected". The latter two differ in the weights that
    the caller asks of `egae`.

    Args:
        values: [B, T], V(s_t). Padding may hold anything.
        next_values: [B], the critic's V(s_l) of the state after the last token. Not read by "hold".
        lengths: int64 [B], number of tokens in each row, between 1 and T.
        finished: bool [B], whether the last token of the row ended its episode.
        mode: "hold", "bootstrap" or "tail_corrected".

    Raises:
        ValueError: an unknown mode, shapes that do not fit together, or a length outside 1 .. T.
    """
    _check_rows(values, lengths)
    if next_values.shape != lengths.shape or finished.shape != lengths.shape:
        raise ValueError(
            f"next_values and finished must have shape {tuple(lengths.shape)}, "
            f"got {tuple(next_values.shape)} and {tuple(finished.shape)}"
        )
    if mode == "hold":
        open_values = values.gather(1, lengths[:, None] - 1)[:, 0] if len(lengths) else next_values
    elif mode in ("bootstrap", "tail_corrected"):
        open_values = next_values
    else:
        raise ValueError(f"boundary_value={mode!r} is unknown: use 'hold' or 'bootstrap' or 'tail_corrected'")
    return torch.where(finished, 0.0, open_values)


def _may_be_compiled(*inputs: torch.Tensor) -> bool:
    """Whether the tensors are of one dtype, on the CPU, and no gradient is asked for."""
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    one_kind = all(tensor.device.type == "cpu" and tensor.dtype == inputs[0].dtype for tensor in inputs)
    return one_kind and not needs_gradient


def _compiled(
    rewards: torch.Tensor,
    values: torch.Tensor,
    boundary_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    gamma: float,
    lambda_: float | torch.Tensor,
    tail_corrected: torch.Tensor | None,
) -> torch.Tensor:
    """Returns the same as the tensor code of `egae`, in the shape of `values`.

    Args:
        rewards: [B, T].
        values: [B, T].
        boundary_values: [B].
        starts: int64 [B], index of the first token of each row among all places of `values`.
        lengths: int64 [B].
        gamma: Discount.
        lambda_: A float or a tensor [B].
        tail_corrected: bool [B] or None.
    """
    from tppo_rl.maths.compiled import egae_rows

    rates = [torch.as_tensor(rate, dtype=values.dtype).expand(len(lengths)) for rate in (gamma * lambda_, lambda_)]
    uncorrected = torch.zeros(len(lengths), dtype=torch.bool)
    tensors = [rewards, values, boundary_values, starts, lengths, torch.tensor([gamma], dtype=values.dtype), *rates]
    tensors.append(uncorrected if tail_corrected is None else tail_corrected)
    # Contiguous and flat: numba would compile, and load, every other layout on its own.
    arrays = [tensor.detach().contiguous().numpy().reshape(-1) for tensor in tensors]
    # NumPy's zeros take no time until they are written to, and padding is never written to.
    advantages = np.zeros(values.numel(), arrays[1].dtype)
    egae_rows(*arrays, advantages)
    return torch.from_numpy(advantages).view(values.shape)


def _tail_weights(
    lengths: torch.Tensor, lambda_: float | torch.Tensor, tail_corrected: torch.Tensor, *, like: torch.Tensor
) -> torch.Tensor:
    """Returns W_K of the module's recursion, [B, T] as `like`: 1 in padding and in rows without correction."""
    num_steps = like.shape[1]
    # Lambdas may be float32 beside float64 values, or the reverse: the weights have the dtype of `like`.
    rates = torch.as_tensor(lambda_, dtype=like.dtype, device=like.device)
    weight = torch.zeros_like(like[:, 0])
    by_length = []
    for _ in range(num_steps):
        weight = 1.0 + rates * weight
        by_length.append(weight)
    left = lengths[:, None] - torch.arange(num_steps, device=like.device)
    weights = torch.stack(by_length, dim=1).gather(1, (left - 1).clamp(min=0))
    return torch.where(tail_corrected[:, None], weights, 1.0)


def _check_per_row(lengths: torch.Tensor, boundary_values: torch.Tensor, tail_corrected: torch.Tensor | None) -> None:
    """Raises ValueError unless the arguments with one entry per row have the shape of the lengths."""
    if boundary_values.shape != lengths.shape:
        raise ValueError(f"boundary_values must have shape {tuple(lengths.shape)}, got {tuple(boundary_values.shape)}")
    if tail_corrected is not None and tail_corrected.shape != lengths.shape:
        raise ValueError(f"tail_corrected must have shape {tuple(lengths.shape)}, got {tuple(tail_corrected.shape)}")


def _check_rows(values: torch.Tensor, lengths: torch.Tensor, **others: torch.Tensor) -> None:
    """Raises ValueError unless the shapes fit and every length lies in 1 .. T."""
    if values.ndim != 2 or lengths.shape != values.shape[:1]:
        raise ValueError(f"values must be [B, T] and lengths [B], got {tuple(values.shape)} and {tuple(lengths.shape)}")
    for name, other in others.items():
        if other.shape != values.shape:
            raise ValueError(f"{name} must have the shape {tuple(values.shape)} of values, got {tuple(other.shape)}")
    if len(lengths) and not (int(lengths.min()) >= 1 and int(lengths.max()) <= values.shape[1]):
        raise ValueError(
            f"lengths must lie in 1 .. {values.shape[1]}, got {int(lengths.min())} .. {int(lengths.max())}"
        )
