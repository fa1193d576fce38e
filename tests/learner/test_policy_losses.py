"""Registered policy losses: equations by hand, gradients, and how an own one is averaged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_helpers import estimate_targets, load_models, make_fragment, make_fragments, run_two_learners, split

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.registry import POLICY_LOSSES
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import Collective, SingleLearner, TorchDistributed
from tppo_rl.learner.policy_loss import policy_terms
from tppo_rl.learner.policy_losses import LossTerms, WindowTokens, cispo, clipped, gspo
from tppo_rl.learner.update import UpdateStep


def tokens(
    old: list[float], advantages: list[float], fragments: list[int] | None = None, **changes: Any
) -> WindowTokens:
    """Window tokens with the given old log-probs, in float64."""
    old_log_probs = torch.tensor(old, dtype=torch.float64)
    values: dict[str, Any] = {
        "behavior_log_probs": old_log_probs,
        "old_log_probs": old_log_probs,
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "importance_weights": torch.ones_like(old_log_probs),
        "kept": torch.ones(len(old), dtype=torch.bool),
        "hindsight": None,
        "reference_log_probs": None,
        "fragments": None if fragments is None else torch.tensor(fragments),
    }
    return WindowTokens(**(values | changes))


def log_probs_of(ratios: list[float], old: list[float]) -> torch.Tensor:
    """Log-probs whose ratio to the old ones is given."""
    return torch.tensor([o + math.log(r) for r, o in zip(ratios, old, strict=True)], dtype=torch.float64)


OLD = [-1.0, -2.0, -0.5, -1.5]
NO_ENTROPY = torch.zeros(4, dtype=torch.float64)


def test_clipped_by_hand() -> None:
    options = Options.of(clip_low=0.2, clip_high=0.3)
    terms = clipped(log_probs_of([1.5, 0.5, 1.1, 1.5], OLD), NO_ENTROPY, tokens(OLD, [1, -1, 2, -1]), options)
    # Held at 1.3; held at 0.8; free; the minimum is the unclipped one.
    assert terms.per_token.tolist() == pytest.approx([-1.3, 0.8, -2.2, 1.5])
    assert terms.metrics["clip_fraction_high"].tolist() == [True, False, False, False]
    assert terms.metrics["clip_fraction_low"].tolist() == [False, True, False, False]


def test_cispo_by_hand() -> None:
    """-min(r, cap) A log pi: the weight is a constant, and no token loses its gradient."""
    log_probs = log_probs_of([1.5, 0.5, 8.0, 1.0], OLD).requires_grad_()
    advantages = [1.0, -1.0, 2.0, 0.5]
    terms = cispo(log_probs, NO_ENTROPY, tokens(OLD, advantages), Options.of(), cap=4.0)
    weights = [1.5, 0.5, 4.0, 1.0]
    expected = [-w * a * lp for w, a, lp in zip(weights, advantages, log_probs.tolist(), strict=True)]
    assert terms.per_token.tolist() == pytest.approx(expected)
    assert terms.metrics["cap_fraction"].tolist() == [False, False, True, False]
    terms.per_token.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-1.5, 0.5, -8.0, -0.5])


def test_gspo_by_hand() -> None:
    """Two responses of two tokens: ratios 1.2 and 0.9 make sqrt(1.08), ratios 1.5 and 1.5 make 1.5."""
    options = Options.of(policy_loss="gspo", window_length=None, clip_low=0.1, clip_high=0.2)
    log_probs = log_probs_of([1.2, 0.9, 1.5, 1.5], OLD).requires_grad_()
    terms = gspo(log_probs, NO_ENTROPY, tokens(OLD, [2.0, 2.0, 1.0, 1.0], [0, 0, 1, 1]), options)
    whole = math.sqrt(1.08)
    assert terms.per_token.tolist() == pytest.approx([-2 * whole, -2 * whole, -1.2, -1.2])
    assert terms.metrics["sequence_ratio"].tolist() == pytest.approx([whole, whole, 1.5, 1.5])
    assert terms.metrics["clip_fraction_high"].tolist() == [False, False, True, True]
    terms.per_token.sum().backward()
    # d(-2 s - 2 s) / d log pi_t = -4 s / 2 for each token of the first; the second is clipped whole.
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-2 * whole, -2 * whole, 0.0, 0.0])


@pytest.mark.parametrize("loss", [clipped, gspo])
def test_gradients_are_right(loss: Any) -> None:
    options = Options.of(policy_loss="gspo", window_length=None, clip_low=0.5, clip_high=0.5, dual_clip=3.0)
    log_probs = log_probs_of([1.2, 0.7, 1.9, 0.9], OLD).requires_grad_()
    given = tokens(OLD, [2.0, -1.0, 1.0, 0.3], [0, 0, 0, 1])
    assert torch.autograd.gradcheck(lambda x: loss(x, NO_ENTROPY, given, options).per_token, log_probs)


def test_where_nothing_has_moved_all_have_the_policy_gradient() -> None:
    advantages = [2.0, -1.0, 1.0, 0.3]
    for loss, weights in ((clipped, [1, 1, 1, 1]), (cispo, [1, 1, 1, 1]), (gspo, [1, 1, 1, 1])):
        log_probs = torch.tensor(OLD, dtype=torch.float64, requires_grad=True)
        # Advantages that are the same on every token of a response, as group-relative ones are.
        same = [advantages[0]] * 2 + [advantages[3]] * 2
        terms = loss(log_probs, NO_ENTROPY, tokens(OLD, same, [0, 0, 1, 1]), Options.of())
        terms.per_token.sum().backward()
        assert log_probs.grad is not None
        expected = [-w * a for w, a in zip(weights, same, strict=True)]
        assert log_probs.grad.tolist() == pytest.approx(expected), loss.__name__


def squared(
    log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options, *, scale: float = 1.0
) -> LossTerms:
    """A loss of the user: it measures something of its own."""
    return LossTerms(scale * log_probs.square(), {"log_prob": log_probs, "is_long": log_probs < -3})


def wrong(
    log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options, *, metric: bool = False
) -> LossTerms:
    mean = log_probs.mean()
    return LossTerms(log_probs, {"mean": mean}) if metric else LossTerms(mean, {})


@pytest.mark.parametrize(("metric", "message"), [(False, "its loss must be a tensor"), (True, "mean must be a tensor")])
def test_terms_are_per_token(metric: bool, message: str) -> None:
    options = Options.of(policy_loss={"type": f"{__name__}:wrong", "metric": metric})
    loss = POLICY_LOSSES.resolve(options.policy_loss.policy_loss)
    with pytest.raises(ValueError, match=rf"policy_loss='{__name__}:wrong': {message}.*4 tokens, got \(\)"):
        policy_terms(loss, torch.zeros(4), torch.zeros(4), tokens(OLD, [1.0] * 4), options)


OWN = {"policy_loss": {"type": f"{__name__}:squared", "scale": 0.5}, "minibatch_size": 16, "micro_batch_tokens": 40}


def train(folder: str, fragments: list[Fragment], collective: Collective, **options: Any) -> dict[str, float]:
    policy, critic = load_models(folder)
    settings = Options.of(OWN | options)
    batch = batch_from_fragments(fragments)
    step = UpdateStep(policy, critic, settings, collective)
    return step.run(batch, estimate_targets(critic, batch, settings, collective), 0).metrics


def test_an_own_metric_is_the_mean_over_all_tokens(model_folder: str) -> None:
    """Over micro-batches of any size, and of tokens that are trained for the first time."""
    fragments = make_fragments(0)
    whole = train(model_folder, fragments, SingleLearner(), lr=0.0, minibatch_size=None, micro_batch_tokens=1000)
    parts = train(model_folder, fragments, SingleLearner(), lr=0.0)
    policy, _ = load_models(model_folder)
    expected = []
    for fragment in fragments:
        sequence = torch.from_numpy(np.r_[fragment.context, fragment.tokens].astype(np.int64))
        with torch.no_grad():
            log_probs = policy.model(input_ids=sequence[None]).logits[0, :-1].log_softmax(-1)
        of_token = log_probs.gather(1, sequence[1:, None])[:, 0][-len(fragment.tokens) :]
        expected += of_token[torch.from_numpy(fragment.sampled.astype(bool))].tolist()
    for metrics in (whole, parts):
        assert metrics["policy/log_prob"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert metrics["policy/is_long"] == pytest.approx(np.mean(np.array(expected) < -3))
        assert metrics["policy_loss"] == pytest.approx(0.5 * np.mean(np.square(expected)), rel=1e-5)
    assert "policy/clip_fraction_low" not in whole


def _learner(rank: int, folder: str, meeting: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    # The second learner has nothing, and so no name of a metric.
    shares = split(make_fragments(0), 8)
    metrics = train(folder, shares[rank], TorchDistributed())
    torch.save(metrics, f"{results}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.integration
def test_learners_agree_on_names_that_one_of_them_has_not_seen(model_folder: str, tmp_path: Path) -> None:
    first, second = run_two_learners(_learner, tmp_path, model_folder, timeout_s=120)
    alone = train(model_folder, make_fragments(0), SingleLearner(), minibatch_size=32)
    names = {name for name in alone if name.startswith("policy/")}
    assert names == {"policy/log_prob", "policy/is_long"}
    for metrics in (first, second):
        assert {name for name in metrics if name.startswith("policy/")} == names
        for name in names:
            assert metrics[name] == pytest.approx(alone[name], rel=1e-4), name


def test_gspo_trains_whole_responses(model_folder: str) -> None:
    rng = np.random.default_rng(0)
    episodes = [make_fragment(rng, episode_id=k, tokens=4 + k, finished=True) for k in range(4)]
    policy, critic = load_models(model_folder)
    options = Options.of(
        policy_loss="gspo", window_length=None, mode="sync", advantage_estimator="gae", lr=1e-3, micro_batch_tokens=30
    )
    batch = batch_from_fragments(episodes)
    metrics = UpdateStep(policy, critic, options).run(batch, estimate_targets(critic, batch, options), 0).metrics
    assert metrics["policy/sequence_ratio"] > 0
    assert metrics["policy_steps"] == 1
