"""What a new critic says before it has learned anything, and what its outputs mean afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_helpers import (
    estimate_targets,
    load_models,
    make_fragment,
    make_fragments,
    parameters_of,
    run_two_learners,
    save_tiny_model,
    split,
)

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import current_collective
from tppo_rl.learner.models import Critic
from tppo_rl.learner.sharding import gather_weights, shard
from tppo_rl.learner.update import UpdateStep
from tppo_rl.learner.value_batches import finished_returns
from tppo_rl.maths.value_forms import CrossEntropy, HLGauss, SquaredError, ValueForm

FORMS = [SquaredError(), CrossEntropy(-1.0, 1.0), HLGauss(-1.0, 1.0, 31)]
OPTIONS = Options.of(critic_lr=1e-3, critic_initial_value="mean_return")


def _values(critic: Critic, fragments: list[Fragment], options: Options) -> torch.Tensor:
    values = estimate_targets(critic, batch_from_fragments(fragments), options).values
    assert values is not None
    return values.after


def _mean_return(fragments: list[Fragment]) -> float:
    batch = batch_from_fragments(fragments)
    return float(finished_returns(batch, OPTIONS)[batch.response.mask].mean())


@pytest.mark.parametrize("form", FORMS)
def test_a_cold_critic_starts_at_the_mean_return_of_the_first_finished_responses(
    model_folder: str, form: ValueForm
) -> None:
    fragments = make_fragments(0)
    _, critic = load_models(model_folder, value_head=False, form=form)
    values = _values(critic, fragments, OPTIONS)
    torch.testing.assert_close(values, torch.full_like(values, _mean_return(fragments)), atol=5e-3, rtol=0)


def test_it_waits_for_a_finished_response(model_folder: str) -> None:
    _, critic = load_models(model_folder, value_head=False)
    unfinished = [replace(f, terminated=False, rewards=f.rewards * 0, correct=None) for f in make_fragments(0)]
    assert not _values(critic, unfinished, OPTIONS).any()
    rng = np.random.default_rng(0)
    finished = [make_fragment(rng, finished=True, reward=reward) for reward in (1.0, 0.0, 0.0, 0.0)]
    assert _values(critic, finished, OPTIONS) == pytest.approx(0.25)


def test_a_critic_that_has_learned_is_left_alone(model_folder: str) -> None:
    _, critic = load_models(model_folder)
    before = parameters_of(critic)
    _values(critic, make_fragments(0), OPTIONS)
    assert torch.equal(parameters_of(critic), before)


@pytest.mark.parametrize("form", FORMS)
def test_it_starts_at_a_given_value(model_folder: str, form: ValueForm) -> None:
    _, critic = load_models(model_folder, value_head=False, form=form)
    values = _values(critic, make_fragments(0), OPTIONS.replace(critic_initial_value=0.4))
    torch.testing.assert_close(values, torch.full_like(values, 0.4), atol=5e-3, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_by_default_a_bounded_head_starts_at_the_mean_return_and_another_one_at_zero(
    model_folder: str, form: ValueForm
) -> None:
    fragments = make_fragments(0)
    _, critic = load_models(model_folder, value_head=False, form=form)
    values = _values(critic, fragments, Options.of())
    expected = 0.0 if isinstance(form, SquaredError) else _mean_return(fragments)
    torch.testing.assert_close(values, torch.full_like(values, expected), atol=5e-3, rtol=0)


def test_zero_as_the_initial_value_is_a_head_of_zeros(model_folder: str) -> None:
    _, critic = load_models(model_folder, value_head=False)
    assert not _values(critic, make_fragments(0), OPTIONS.replace(critic_initial_value=0.0)).any()


@pytest.mark.parametrize("form", FORMS)
def test_updates_bring_values_to_the_returns(model_folder: str, form: ValueForm) -> None:
    rng = np.random.default_rng(4)
    fragments = [
        make_fragment(rng, episode_id=index, finished=True, reward=reward)
        for index, reward in enumerate((1.0, -1.0, 0.5))
    ]
    options = OPTIONS.replace(critic_lr=1e-2, critic_warmup_updates=1000)
    policy, critic = load_models(model_folder, value_head=False, form=form)
    step = UpdateStep(policy, critic, options)
    batch = batch_from_fragments(fragments)
    for version in range(40):
        step.run(batch, estimate_targets(critic, batch, options), version)
    values = estimate_targets(critic, batch, options).values
    assert values is not None
    for row, reward in enumerate((1.0, -1.0, 0.5)):
        assert float(values.window[row, -1]) == pytest.approx(reward, abs=0.1)


def _start(rank: int, folder: str, form: ValueForm, sharded: bool, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    _, critic = load_models(folder, value_head=False, form=form)
    if sharded:
        shard(critic)
    own = split(make_fragments(0), 6)[rank]
    estimate_targets(critic, batch_from_fragments(own), OPTIONS, current_collective("cpu"))
    torch.save(gather_weights(critic)["value_head.bias"], f"{results}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("form", "sharded"), [pytest.param(FORMS[1], False, marks=pytest.mark.slow), (FORMS[2], True)])
def test_two_learners_start_at_the_mean_of_both(tmp_path: Path, form: ValueForm, sharded: bool) -> None:
    folder = save_tiny_model(tmp_path / "model")
    biases = run_two_learners(_start, tmp_path, folder, form, sharded, timeout_s=120)
    _, critic = load_models(folder, value_head=False, form=form)
    _values(critic, make_fragments(0), OPTIONS)
    for bias in biases:
        np.testing.assert_allclose(bias, critic.value_head.bias.detach().numpy(), atol=1e-5)
