"""A minibatch that does not fit into the memory is computed again in smaller micro-batches, as if they had been small from the start."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from learner_helpers import estimate_targets, load_models, make_fragments

from tppo_rl.config.options import Options
from tppo_rl.core.errors import RunError
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.memory_limit import MicroBatchLimit
from tppo_rl.learner.metric_sums import MetricSums
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.update import UpdateStep

BATCH = batch_from_fragments(make_fragments(0, 12))
LONGEST = int(BATCH.sequence_lengths.max())
START, FITS = 8 * LONGEST, 2 * LONGEST


def full_beyond(model: Policy | Critic, tokens: int) -> None:
    """Fills the memory in passes over more tokens, when the second such pass is made: the first has left gradients behind."""
    passes = 0

    def check(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal passes
        input_ids = named["input_ids"] if "input_ids" in named else inputs[0]
        if torch.is_grad_enabled() and input_ids.numel() > tokens:
            passes += 1
            if passes > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(check, with_kwargs=True)


def updated(
    folder: str, tokens: int, full: str | None = None
) -> tuple[list[torch.Tensor], dict[str, float], UpdateStep]:
    options = Options.of(
        micro_batch_tokens=tokens, lr=1e-3, critic_lr=1e-3, num_epochs=2, critic_num_epochs=3, minibatch_size=60
    )
    policy, critic = load_models(folder)
    targets = estimate_targets(critic, BATCH, options)
    step = UpdateStep(policy, critic, options)
    if full is not None:
        full_beyond({"policy": policy, "critic": critic}[full], FITS)
    metrics = step.run(BATCH, targets, policy_version=0).metrics
    return [*policy.parameters(), *critic.parameters()], metrics, step


@pytest.mark.parametrize("full", ["policy", "critic"])
def test_the_update_is_that_of_small_micro_batches(
    model_folder: str, full: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        weights, metrics, step = updated(model_folder, START, full)
    expected, expected_metrics, _ = updated(model_folder, FITS)
    assert "micro_batch_tokens is" in caplog.text
    assert LONGEST <= step._limit.tokens < START
    for weight, small in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, small, atol=1e-5, rtol=1e-4)
    for name, value in expected_metrics.items():
        if not name.endswith("seconds") and name != "padding_fraction":
            assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_no_attempt_is_counted_twice() -> None:
    sums, limit = MetricSums(["tokens"], ["largest"]), MicroBatchLimit(8)

    def minibatch() -> None:
        sums.add("tokens", 5)
        sums.largest("largest", float(limit.tokens))
        sums.add_metric("further", torch.ones(2))
        if limit.tokens > 4:
            raise torch.OutOfMemoryError("full")

    limit.compute(minibatch, longest=3, metric_sums=sums)
    assert limit.tokens == 4
    assert sums._sums == {"tokens": [5]}
    assert sums._maxima == {"largest": [4.0]}
    assert len(sums._metrics["further"]) == 1


@pytest.mark.parametrize(
    ("halves", "longest", "words"),
    [
        (True, 8, "the longest sequence has 8 tokens and is not cut"),
        (False, 3, "micro_batch_tokens=8: .*; set it to less"),
    ],
)
def test_where_halving_is_of_no_use_the_error_says_what_is(halves: bool, longest: int, words: str) -> None:
    def minibatch() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    with pytest.raises(RunError, match=words) as error:
        MicroBatchLimit(8, halves=halves).compute(minibatch, longest=longest, metric_sums=MetricSums([], []))
    assert str(error.value).endswith("(CUDA out of memory. Tried to allocate 2.00 GiB)")
