"""A critic that sees known answers: what it reads, and that nobody else reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_helpers import VOCABULARY, estimate_targets, load_models, make_fragments, parameters_of, windows

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.known_answers import with_answers
from tppo_rl.learner.models import Critic
from tppo_rl.learner.update import UpdateStep

OPTIONS = Options.of(critic_sees_answer=True, lr=1e-3, critic_lr=1e-3)


def answered(fragments: Sequence[Fragment], seed: int = 0, most: int = 6) -> list[Fragment]:
    """The fragments with known answers of up to so many random tokens; some have none."""
    rng = np.random.default_rng(seed)
    return [
        replace(one, answer=rng.integers(2, VOCABULARY, rng.integers(0, most + 1)).astype(np.int32))
        for one in fragments
    ]


@given(seed=st.integers(0, 1000), count=st.integers(0, 6))
def test_each_sequence_begins_with_its_answer(seed: int, count: int) -> None:
    fragments = answered(make_fragments(seed, count), seed)
    batch = batch_from_fragments(fragments)
    seen = with_answers(batch)
    for row, fragment in enumerate(fragments):
        expected = np.concatenate([fragment.answer, fragment.context, fragment.tokens])
        assert seen.tokens[seen.offsets[row] : seen.offsets[row + 1]].tolist() == expected.tolist()
    rows = torch.arange(count)
    following = torch.cat([seen.tokens[1:], torch.zeros(1, dtype=torch.int64)])
    for sampled, whose in ((seen.window, rows), (seen.all_sampled, rows), (seen.response, seen.finished_rows)):
        # The state at a position predicts the token after it.
        assert torch.equal(seen.at_positions(following, sampled, whose), sampled.tokens)
    assert torch.equal(seen.window.tokens, batch.window.tokens)
    assert torch.equal(seen.response.rewards, batch.response.rewards)


def values_alone(critic: Critic, fragment: Fragment) -> np.ndarray:
    sequence = np.concatenate([fragment.answer, fragment.context, fragment.tokens]).astype(np.int64)
    with torch.no_grad():
        values = critic(torch.from_numpy(sequence)[None])[0].numpy()
    start = len(fragment.answer) + len(fragment.context)
    return values[start - 1 : -1][fragment.sampled.astype(bool)]


@pytest.mark.parametrize("packing", [False, True])
def test_values_are_those_of_answer_prompt_and_response(model_folder: str, packing: bool) -> None:
    _, critic = load_models(model_folder)
    fragments = answered(make_fragments(3, turns=False))
    batch = batch_from_fragments(fragments)
    options = OPTIONS.replace(packing=packing, micro_batch_tokens=40)
    targets = estimate_targets(critic, batch, options)
    assert targets.values is not None
    for row, fragment in enumerate(fragments):
        found = targets.values.window[row, : len(fragment)].numpy()
        np.testing.assert_allclose(found, values_alone(critic, fragment), atol=1e-5)
    without = estimate_targets(critic, batch, options.replace(critic_sees_answer=False))
    assert without.values is not None
    assert not torch.allclose(targets.values.window, without.values.window, atol=1e-3)


def test_values_after_cached_contexts_are_the_same(model_folder: str) -> None:
    _, critic = load_models(model_folder)
    episode = [replace(one, answer=np.array([7, 8, 9], np.int32)) for one in windows(2)]
    cache = ContextCache(1000)
    for window in episode:
        batch = batch_from_fragments([window])
        cached, anew = (estimate_targets(critic, batch, OPTIONS, cache=one) for one in (cache, None))
        assert cached.values is not None
        assert anew.values is not None
        torch.testing.assert_close(cached.values.window, anew.values.window, atol=1e-5, rtol=0)


def trained(folder: str, batch: TrainBatch, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    policy, critic = load_models(folder)
    step = UpdateStep(policy, critic, options)
    step.run(batch, estimate_targets(critic, batch, options), policy_version=0)
    return parameters_of(policy), parameters_of(critic)


def test_the_policy_reads_no_answer_and_the_critic_trains_on_it(model_folder: str) -> None:
    fragments = make_fragments(5)
    with_them, without = batch_from_fragments(answered(fragments)), batch_from_fragments(fragments)
    blind = OPTIONS.replace(critic_sees_answer=False)
    plain = trained(model_folder, without, blind)
    for batch, options in ((with_them, blind), (without, OPTIONS)):
        for expected, found in zip(plain, trained(model_folder, batch, options), strict=True):
            assert torch.equal(expected, found)
    seeing = trained(model_folder, with_them, OPTIONS)
    assert not torch.equal(seeing[1], plain[1])
    # With advantages that no value enters the policy is the same.
    alike: dict[str, Any] = {"advantage_estimator": "group_relative", "group_size": 2, "lambda_": 1.0}
    groups = [
        replace(one, prompt_index=index // 2) for index, one in enumerate(make_fragments(5, earlier=0, finished=True))
    ]
    policies = [
        trained(model_folder, batch_from_fragments(answered(groups)), options.replace(**alike))[0]
        for options in (OPTIONS, blind)
    ]
    assert torch.equal(*policies)
