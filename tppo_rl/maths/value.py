"""The critic's losses, and the fraction of the returns' variance that it explains."""

from __future__ import annotations

import numpy as np
import torch


def value_loss(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Returns the per-token loss 0.5 * (V(s_t) - G_t)^2, in the shape of the arguments.

    Args:
        values: [...], V(s_t); gradients flow through it.
        returns: Same shape, the regression target G_t; taken as a constant.

    Raises:
        ValueError: the shapes differ.
    """
    if values.shape != returns.shape:
        raise ValueError(f"values and returns differ in shape: {tuple(values.shape)} and {tuple(returns.shape)}")
    return 0.5 * (values - returns.detach()).square()


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, clip: float
) -> torch.Tensor:
    """Returns the per-token loss of PPO2 (OpenAI Baselines) that holds V near its old value, in the shape of `values`.

        loss_t = max( 0.5 * (V - G)^2, 0.5 * (V_old + clip(V - V_old, -clip, clip) - G)^2 )

    Args:
        values: [...], V(s_t); gradients flow through it.
        old_values: Same shape, V(s_t) of the critic before the update; taken as a constant.
        returns: Same shape, the regression target G_t; taken as a constant.
        clip: Distance from the old value at which the gradient towards G ends, above 0.

    Raises:
        ValueError: the shapes differ, or `clip` is not positive.
    """
    if not values.shape == old_values.shape == returns.shape:
        raise ValueError(
            "values, old_values and returns must have one shape, got "
            f"{tuple(values.shape)}, {tuple(old_values.shape)} and {tuple(returns.shape)}"
        )
    if not clip > 0:
        raise ValueError(f"clip={clip} must be positive: the critic could not move")
    held = old_values.detach() + (values - old_values.detach()).clamp(-clip, clip)
    return torch.maximum(value_loss(values, returns), value_loss(held, returns))


def difference_slope(before: np.ndarray, after: np.ndarray, returns: np.ndarray) -> float | None:
    """Returns how much of a difference of values the returns bear out: b in the least-squares fit

        G = a + c V_before + b (V_after - V_before)

    The advantages of unfinished windows are made of such differences. A critic that knows the true values has b = 1; one whose
    differences are noise has b = 0, and one that exaggerates them less than 1. b is the factor on the difference that predicts the
    return best, given the value before.

    Args:
        before: float [n], V of the state before each window.
        after: float [n], V of the state after it.
        returns: float [n], the return that followed the window.

    Returns:
        None where the values or their differences are all equal, or fewer than 8.
    """
    columns = np.stack([np.ones(len(before)), before, after - before], axis=1).astype(np.float64)
    if len(before) < 8 or np.linalg.matrix_rank(columns) < columns.shape[1]:
        return None
    return float(np.linalg.lstsq(columns, returns.astype(np.float64), rcond=None)[0][2])


def explained_variance(error_variance: float, return_variance: float) -> float:
    """Returns 1 - Var(G - V) / Var(G): 1 for a perfect critic, 0 for a constant one, negative for a worse one.

    It takes variances (`reduce.variance`) rather than tokens, so that the tokens may lie on several learners.

    Args:
        error_variance: Variance of G_t - V(s_t) over the tokens.
        return_variance: Variance of G_t over the same tokens, above 0.

    Raises:
        ValueError: `return_variance` is not positive: with equal returns there is nothing to explain.
    """
    if return_variance <= 0:
        raise ValueError(f"return_variance={return_variance} must be positive: equal returns leave nothing to explain")
    return 1.0 - error_variance / return_variance
