"""Held-out accuracy on fixed prompts, sampled at the training temperature and greedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tppo_rl.core.fragments import Fragment, concatenate_tables, fragments_from_table
from tppo_rl.core.prompts import heldout_tickets


def evaluate_heldout(group: Any, *, num_prompts: int, temperature: float) -> list[Fragment]:
    """Lets the env-runners of a group answer the first `num_prompts` held-out prompts once.

    Args:
        group: RLlib's EnvRunnerGroup, training or evaluation.
        num_prompts: prompts, the same for every run and seed.
        temperature: of sampling; 0 is greedy.

    Returns:
        The episodes as finished fragments, by prompt index.
    """
    tickets = list(heldout_tickets(num_prompts))
    env_runners = group.healthy_env_runner_ids()
    if env_runners:
        shares = [tickets[start :: len(env_runners)] for start in range(len(env_runners))]
        tables: list[pa.Table] = group.foreach_env_runner(
            ["evaluate"] * len(env_runners),
            kwargs=[{"tickets": share, "temperature": temperature} for share in shares],
            remote_worker_ids=env_runners,
            local_env_runner=False,
            timeout_seconds=None,
        )
    else:
        tables = [group.local_env_runner.evaluate(tickets, temperature)]
    episodes = sorted(fragments_from_table(concatenate_tables(tables)), key=lambda episode: episode.prompt_index)
    if len(episodes) != num_prompts:
        raise RuntimeError(f"evaluation lost prompts: {len(episodes)} of {num_prompts} came back; an env-runner failed")
    return episodes


def accuracy_statistics(episodes: Sequence[Fragment]) -> dict[str, float]:
    """Returns accuracy, its standard error, mean return, mean response length and truncated share of episodes."""
    correct = np.array([bool(episode.correct) for episode in episodes], np.float64)
    lengths = np.array([len(episode.tokens) for episode in episodes], np.float64)
    returns = np.array([episode.rewards.sum() for episode in episodes], np.float64)
    accuracy = float(correct.mean())
    return {
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / len(correct))),
        "return_mean": float(returns.mean()),
        "response_length_mean": float(lengths.mean()),
        "response_length_max": float(lengths.max()),
        "truncated_share": float(np.mean([episode.truncated for episode in episodes])),
        "n": len(correct),
    }
