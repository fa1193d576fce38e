"""Memory of the policy's update against vocabulary and length of the sequences: `tppo-rl bench memory`.

The model is narrow, so that logits decide. All tokens go through one forward pass. Every point is measured in a process
of its own, because the most that a process has ever held does not go down again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.workloads import PROMPT, random_model, whole_episodes
from tppo_rl.config.options import Options
from tppo_rl.core.process_memory import process_memory
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.models import Policy
from tppo_rl.learner.targets import Targets
from tppo_rl.learner.update import UpdateStep

_GIB = 2**30


def memory_figures(*, vocabularies: Sequence[int], lengths: Sequence[int], tokens: int, repeats: int) -> list[Figure]:
    """Measures one update of a small policy at each vocabulary and length.

    Args:
        vocabularies: Entries of the output layer.
        lengths: Tokens of each sequence.
        tokens: Tokens of all sequences together, a multiple of each length.
        repeats: Measurements of each point.

    Raises:
        ValueError: `tokens` is no multiple of a length.
    """
    for length in lengths:
        if length <= PROMPT or tokens % length:
            raise ValueError(f"lengths={length}: give lengths above {PROMPT} that divide tokens={tokens}")
    figures = []
    for vocabulary in vocabularies:
        for length in lengths:
            point = f"vocabulary {vocabulary}, {tokens // length} x {length} tokens"
            runs = [_in_own_process(vocabulary, length, tokens) for _ in range(repeats)]
            figures += [
                figure_of(f"peak memory, {point}", [run["gib"] for run in runs], "GiB"),
                figure_of(f"all logits, {point}", [tokens * vocabulary * 4 / _GIB], "GiB"),
                figure_of(f"time, {point}", [run["cpu_s"] for run in runs], "CPU s"),
            ]
    return figures


def measure(vocabulary: int, length: int, tokens: int) -> dict[str, float]:
    """Makes one update and returns what this process's peak memory rose by ("gib") and its CPU time ("cpu_s")."""
    torch.set_num_threads(1)
    step, batch, targets = make_update(vocabulary, length, tokens)
    before, start = process_memory("VmRSS"), time.process_time()
    step.run(batch, targets, policy_version=0)
    return {"gib": (process_memory("VmHWM") - before) / _GIB, "cpu_s": time.process_time() - start}


def make_update(vocabulary: int, length: int, tokens: int) -> tuple[UpdateStep, Any, Targets]:
    """Returns a policy (Qwen2, 2 layers, 64 wide) in its update step, and a random batch with its targets."""
    torch.manual_seed(0)
    policy = Policy(random_model("tiny", vocab_size=vocabulary, hidden_size=64, intermediate_size=128))
    episodes = tokens // length
    fragments = whole_episodes(vocabulary, tokens=episodes * (length - PROMPT), length=length)
    batch = batch_from_fragments(fragments)
    advantages = torch.ones_like(batch.behavior_log_probs) * batch.window.mask
    step = UpdateStep(policy, None, Options.of(micro_batch_tokens=tokens))
    return step, batch, Targets(advantages)


def _in_own_process(vocabulary: int, length: int, tokens: int) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, str(vocabulary), str(length), str(tokens)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"the measurement ended with exit code {run.returncode}:\n{run.stderr[-2000:]}")
    return dict(json.loads(run.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
