"""Extended GAE as learners compute it, against RLlib's GAE and a loop in Python: `tppo-rl bench advantages`.

Lengths of responses are long-tailed (log-normal, mean about 121, at most 2,048): cut into windows, as T-PPO trains them, and
whole, where 94 % of the learner's tensor is padding. Every row ends its episode, for RLlib's function knows no window that goes
on. The three are timed in turn, repeat by repeat. What is timed begins with the learner's batch and its values (of RLlib: with its
arrays back to back) and ends with the advantages.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.advantages import extended_advantages
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.values import CriticValues

GAMMA, LAMBDA = 1.0, 0.97
LONGEST = 2048
WINDOW = 32
_MEAN_LOG, _SPREAD_LOG = 4.2, 1.1
_LOOP_SHARE = 10
"""The loop in Python gets one response in so many; its time is multiplied up to all tokens."""


class Rows(NamedTuple):
    """Whole responses, padded on the right."""

    rewards: torch.Tensor
    """float32 [B, T]; padding 0, like that of the values."""
    values: torch.Tensor
    """float32 [B, T]."""
    lengths: torch.Tensor
    """int64 [B]."""

    @property
    def mask(self) -> torch.Tensor:
        """bool [B, T], True on tokens."""
        return torch.arange(self.values.shape[1]) < self.lengths[:, None]


def advantages_figures(*, tokens: int, repeats: int, rllib: bool) -> list[Figure]:
    """Times the three and compares what they return.

    Args:
        tokens: Of all responses; the last one is cut to make them.
        repeats: Times that each is measured.
        rllib: Whether to compare with RLlib's GAE, if ray is installed.
    """
    windows, responses = ragged_rows(tokens, WINDOW), ragged_rows(tokens)
    return [
        *_figures(windows, "", repeats, rllib),
        *_figures(responses, ", whole responses", repeats, rllib),
    ]


def _estimator(rows: Rows) -> Callable[[], torch.Tensor]:
    """The stage of the learner's pipeline on a batch of these rows."""
    batch = batch_from_fragments([_fragment(rows, index) for index in range(len(rows.lengths))])
    values = CriticValues(rows.values, torch.zeros(len(rows.lengths)), rows.values)
    options = Options.of(gamma=GAMMA, lambda_=LAMBDA)
    return lambda: extended_advantages(batch, values, options)


def _fragment(rows: Rows, index: int) -> Fragment:
    """A finished episode of a prompt of one token."""
    length = int(rows.lengths[index])
    return Fragment(
        episode_id=index,
        prompt_index=index,
        env_runner=0,
        window_index=0,
        prompt_length=1,
        context=np.zeros(1, np.int32),
        context_sampled=np.zeros(1, np.uint8),
        context_rewards=np.zeros(1, np.float32),
        tokens=np.zeros(length, np.int32),
        sampled=np.ones(length, np.uint8),
        behavior_log_probs=np.zeros(length, np.float32),
        versions=np.zeros(length, np.int32),
        rewards=rows.rewards[index, :length].numpy(),
        terminated=True,
        truncated=False,
    )


def _figures(rows: Rows, suffix: str, repeats: int, rllib: bool) -> list[Figure]:
    flat_rewards, flat_values, ends = flat_arrays(rows)
    few = int(rows.lengths[: max(1, len(rows.lengths) // _LOOP_SHARE)].sum())
    lists = [array[:few].tolist() for array in (flat_rewards, flat_values, ends)]
    ours = _estimator(rows)
    expected = ours()[rows.mask].numpy()
    target = _rllib_targets(flat_rewards, flat_values, ends) if rllib and importlib.util.find_spec("ray") else None
    our_seconds, loop_seconds, rllib_seconds = [], [], []
    for repeat in range(repeats + 1):
        seconds = [_seconds(call) for call in (ours, lambda: python_loop(*lists), target) if call is not None]
        if repeat:  # The first one warms up.
            our_seconds.append(seconds[0])
            loop_seconds.append(seconds[1] * len(flat_values) / few)
            rllib_seconds += seconds[2:]

    figures = [
        figure_of(
            f"egae_tokens_per_second{suffix}", [len(flat_values) / seconds for seconds in our_seconds], "tokens/s"
        ),
        figure_of(f"egae_speedup_vs_python_loop{suffix}", _ratios(loop_seconds, our_seconds), "times"),
        _difference(f"egae_difference_from_python_loop{suffix}", np.array(python_loop(*lists)), expected[:few]),
    ]
    if target is not None:
        figures += [
            figure_of(f"egae_speedup_vs_rllib{suffix}", _ratios(rllib_seconds, our_seconds), "times"),
            _difference(f"egae_difference_from_rllib{suffix}", target() - flat_values, expected),
        ]
    return figures


def ragged_rows(tokens: int, window: int = LONGEST) -> Rows:
    """Returns responses of so many tokens, cut into windows; the same at every call."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(_MEAN_LOG, _SPREAD_LOG, tokens // 16 + 1).astype(np.int64).clip(1, LONGEST)
    stop = int(np.searchsorted(drawn.cumsum(), tokens))
    lengths = drawn[: stop + 1]
    lengths[-1] -= lengths.sum() - tokens
    windows = -(-lengths // window)
    rest = lengths - window * (windows - 1)
    lengths = np.full(windows.sum(), window)
    lengths[windows.cumsum() - 1] = rest
    mask = np.arange(lengths.max()) < lengths[:, None]
    rewards, values = np.zeros((2, *mask.shape), np.float32)
    values[mask] = rng.standard_normal(tokens, np.float32)
    rewards[np.arange(len(lengths)), lengths - 1] = rng.choice([-1.0, 1.0], len(lengths))
    return Rows(torch.from_numpy(rewards), torch.from_numpy(values), torch.from_numpy(lengths))


def flat_arrays(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rewards, values and ends (1 on last tokens), float32 [tokens] each, of all responses back to back."""
    mask = rows.mask
    ends = np.zeros(int(rows.lengths.sum()), np.float32)
    ends[rows.lengths.numpy().cumsum() - 1] = 1.0
    return rows.rewards[mask].numpy(), rows.values[mask].numpy(), ends


def python_loop(rewards: list[float], values: list[float], ends: list[float]) -> list[float]:
    """Returns the advantages of responses back to back."""
    advantages = [0.0] * len(rewards)
    running = following = 0.0
    for step in range(len(rewards) - 1, -1, -1):
        going_on = 1.0 - ends[step]
        delta = rewards[step] + GAMMA * going_on * following - values[step]
        running = delta + GAMMA * LAMBDA * going_on * running
        advantages[step] = running
        following = values[step]
    return advantages


def _rllib_targets(rewards: np.ndarray, values: np.ndarray, ends: np.ndarray) -> Callable[[], np.ndarray]:
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    never = np.zeros_like(ends)
    return lambda: compute_value_targets(values, rewards, ends, never, GAMMA, LAMBDA)


def _difference(name: str, other: np.ndarray, ours: np.ndarray) -> Figure:
    return figure_of(name, [float(np.abs(other - ours).max(initial=0.0))], "largest, absolute")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _ratios(seconds: list[float], of_seconds: list[float]) -> list[float]:
    return [one / other for one, other in zip(seconds, of_seconds, strict=True)]
