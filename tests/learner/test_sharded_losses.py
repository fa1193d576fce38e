"""Two sharded learners against one: every estimator, target and term of the losses, with shares of any size."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_helpers import (
    load_models,
    make_fragment,
    make_fragments,
    run_two_learners,
    save_tiny_model,
    split,
)
from test_distributed import EVERY_TERM

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import Collective, SingleLearner, current_collective
from tppo_rl.learner.sharding import gather_weights, is_sharded
from tppo_rl.learner.targets import ModelSet, estimate
from tppo_rl.learner.update import UpdateStep
from tppo_rl.learner.value_buffer import ValueBuffer

pytestmark = pytest.mark.integration

# Two passes over one minibatch: ratios and values have moved in the second, so that clips and weights matter. Shares
# are cut into several minibatches otherwise than the whole is.
COMMON = {"lr": 1e-3, "critic_lr": 3e-3, "micro_batch_tokens": 80, "num_epochs": 2, "critic_num_epochs": 2}
GROUPS = {"advantage_estimator": "group_relative", "loss_aggregation": "response", "kl_coef": 0.1, "clip_high": 0.2}
PLANS: dict[str, dict[str, Any]] = {
    "every term": EVERY_TERM | {"kl_coef": 0.1},
    "response mean, whitened": {"loss_aggregation": "response", "advantage_normalization": "whiten"},
    "lambda-returns, recomputed log-probs": {
        "critic_targets": "lambda_returns",
        "critic_lambda": 0.8,
        "value_clip": 0.05,
        "off_policy_correction": "decoupled",
        "advantage_normalization": "scale",
    },
    "KL off the rewards": {
        "kl_coef": 0.1,
        "kl_in": "reward",
        "critic_targets": "include_unfinished",
        "value_clip": 0.05,
    },
    "held episodes, warm-up": {"value_batch_tokens": 30, "critic_warmup_updates": 2, "sequence_mask": (0.1, 1.0)},
    "groups without a critic": GROUPS,
}
DISTRIBUTED = dict.fromkeys(PLANS, ("fsdp",)) | dict.fromkeys(
    # What `test_distributed` has not.
    ("every term", "held episodes, warm-up", "groups without a critic"),
    ("fsdp", "ddp"),
)
IN_EVERY_RUN = {("every term", "fsdp"), ("held episodes, warm-up", "fsdp"), ("groups without a critic", "fsdp")}
NUM_UPDATES = 5
UNCOMPARED = ("padding_fraction", "seconds")


def with_hindsight(fragments: list[Fragment]) -> list[Fragment]:
    """Every second unfinished fragment once more, as if its episode had ended."""
    unfinished = [fragment for fragment in fragments if not fragment.finished]
    return fragments + [replace(fragment, hindsight_residual=0.5) for fragment in unfinished[::2]]


def shares(update: int, plan: str) -> list[list[Fragment]]:
    """The fragments of one update on two learners: even, none on the second, none on the first, nothing finished."""
    fragments = make_fragments(20 + update, version=0)
    if plan == "groups without a critic":
        rng = np.random.default_rng(update)
        fragments = [
            replace(make_fragment(rng, episode_id=i, tokens=3 + i, finished=True), prompt_index=i // 4)
            for i in range(8)
        ]
    elif plan == "every term":
        fragments = with_hindsight(fragments)
    unfinished = [replace(f, terminated=False, rewards=f.rewards * 0, correct=None) for f in fragments]
    return [
        split(fragments, 4),
        split(fragments, len(fragments)),
        split(fragments, 0),
        split(unfinished if plan != "groups without a critic" else fragments, 4),
        # The second has hindsight alone in "every term", and no finished episode in any but groups.
        split(sorted(fragments, key=lambda f: (f.hindsight_residual is not None, not f.finished)), 8),
    ][update]


class Learner:
    """What the learner pipeline does, without Ray."""

    def __init__(self, folder: str, other: str, plan: str, collective: Collective, distributed: str) -> None:
        policy, critic = load_models(folder)
        self.policy, self.reference = policy, load_models(other)[0]
        self.options = Options.of(**(COMMON | PLANS[plan] | {"distributed": distributed}))
        self.critic = None if self.options.advantages.advantage_estimator.name == "group_relative" else critic
        self.collective = collective
        self.step = UpdateStep(policy, self.critic, self.options, collective, reference=self.reference)
        # Sizes are per learner.
        self.buffer = ValueBuffer((self.options.critic.value_batch_tokens or 1) * 2 // collective.size, collective)
        assert is_sharded(policy) == is_sharded(self.reference) == (distributed == "fsdp")

    def update(self, version: int, fragments: list[Fragment]) -> dict[str, float]:
        batch, targets = estimate(
            ModelSet(self.policy, self.critic, self.reference),
            batch_from_fragments(fragments),
            self.options,
            fragments=fragments,
            collective=self.collective,
            value_buffer=self.buffer if self.options.critic.value_batch_tokens is not None else None,
        )
        metrics = self.step.run(batch, targets, version).metrics
        return {name: value for name, value in metrics.items() if not name.endswith(UNCOMPARED)}


def trajectory(
    folder: str, other: str, plan: str, collective: Collective, distributed: str
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    learner = Learner(folder, other, plan, collective, distributed)
    metrics = []
    for update in range(NUM_UPDATES):
        parts = shares(update, plan)
        metrics.append(learner.update(update, parts[0] + parts[1] if collective.size == 1 else parts[collective.rank]))
    weights = {f"policy.{name}": weight for name, weight in gather_weights(learner.policy).items()}
    if learner.critic is not None:
        weights |= {f"critic.{name}": weight for name, weight in gather_weights(learner.critic).items()}
    return metrics, weights


def learner(
    rank: int, folder: str, other: str, wanted: Sequence[tuple[str, str]], meeting_point: str, results: str
) -> None:
    assert "ray" not in sys.modules, "the update step is plain torch"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    collective = current_collective()
    outcomes = {
        (plan, distributed): trajectory(folder, other, plan, collective, distributed) for plan, distributed in wanted
    }
    torch.save(outcomes, f"{results}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("reference"), seed=1)


@pytest.fixture(scope="module")
def alone(model_folder: str, other_folder: str) -> dict[str, Any]:
    return {plan: trajectory(model_folder, other_folder, plan, SingleLearner(), "ddp") for plan in PLANS}


@pytest.fixture(scope="module")
def two_learners(
    request: pytest.FixtureRequest, model_folder: str, other_folder: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[tuple[str, str], Any]]:
    """Outcomes of the cases that this run of the tests has chosen, of both learners."""
    params = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    wanted = [(one["plan"], one["distributed"]) for one in params if "distributed" in one]
    folder: Path = tmp_path_factory.mktemp("sharded_losses")
    return run_two_learners(learner, folder, model_folder, other_folder, wanted, timeout_s=240)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("plan", "distributed"),
    [
        pytest.param(plan, name, marks=[] if (plan, name) in IN_EVERY_RUN else pytest.mark.slow)
        for plan, names in DISTRIBUTED.items()
        for name in names
    ],
)
def test_two_learners_equal_one(
    two_learners: list[dict[tuple[str, str], Any]], alone: dict[str, Any], plan: str, distributed: str
) -> None:
    (metrics, weights), (others, _) = (outcomes[plan, distributed] for outcomes in two_learners)
    expected, expected_weights = alone[plan]
    assert metrics == others
    for update, (ours, theirs) in enumerate(zip(metrics, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-3, abs=2e-4), (update, name)
    for name, weight in expected_weights.items():
        np.testing.assert_allclose(weights[name], weight, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("plan", PLANS)
def test_the_plans_reach_what_they_are_about(alone: dict[str, Any], plan: str) -> None:
    metrics, _ = alone[plan]
    reached = {name for update in metrics for name, value in update.items() if value}
    wanted = {
        "every term": {"hindsight_tokens", "policy/dual_clip_fraction", "positive_lm_loss", "reference_kl"},
        "held episodes, warm-up": {"value_batch_tokens", "sequence_masked_fraction"},
        "groups without a critic": {"reference_kl", "advantage_std"},
    }.get(plan, set())
    assert wanted <= reached
    if plan == "held episodes, warm-up":
        assert [update["policy_steps"] for update in metrics] == [0, 0, 2, 2, 2]
        assert 0 < sum(update["critic_steps"] == 0 for update in metrics) < NUM_UPDATES
