"""Two learners in two processes against one learner on the same fragments."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import estimate_targets, load_models, make_fragments, parameters_of, run_two_learners, split

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import Collective, SingleLearner, current_collective
from tppo_rl.learner.update import UpdateStep

pytestmark = pytest.mark.integration

ONE_STEP = {"lr": 1e-4, "critic_lr": 1e-4, "grad_clip": None, "critic_grad_clip": None}
MANY_STEPS = ONE_STEP | {"minibatch_size": 8, "critic_minibatch_size": 10, "num_epochs": 2, "critic_num_epochs": 3}

EVERY_TERM = {
    "boundary_value": "tail_corrected",
    "lambda_": "length_adaptive",
    "lambda_alpha": 0.4,
    "dual_clip": 1.5,
    "entropy_coef": 0.1,
    "off_policy_correction": "truncated_importance",
    "sequence_mask": (0.1, 10.0),
    "positive_lm_coef": 0.2,
    "critic_targets": "include_unfinished",
}


def finished_first(seed: int) -> list[Fragment]:
    return sorted(make_fragments(seed), key=lambda fragment: not fragment.finished)


SCENARIOS: dict[str, tuple[list[list[Fragment]], dict[str, Any]]] = {
    "even": (split(make_fragments(0), 4), ONE_STEP),
    "uneven": (split(make_fragments(1), 7), ONE_STEP),
    "one share without a finished episode": (split(finished_first(2), 4), ONE_STEP),
    "one empty share": (split(make_fragments(3), 8), ONE_STEP),
    "nothing finished": (split(make_fragments(4, finished=False), 3), ONE_STEP),
    "no fragments": ([[], []], ONE_STEP),
    "warm-up": (split(make_fragments(5), 5), ONE_STEP | {"critic_warmup_updates": 1}),
    "many steps, one share without a finished episode": (split(finished_first(6), 4), MANY_STEPS),
    "many steps, one empty share": (split(make_fragments(7), 0), MANY_STEPS),
    "drawn fragments": (split(make_fragments(14, 12), 5), MANY_STEPS | {"policy_token_fraction": 0.5}),
    "drawn fragments, one empty share": (split(make_fragments(15), 0), MANY_STEPS | {"policy_token_fraction": 0.2}),
    "adapters": (split(make_fragments(9), 3), ONE_STEP | {"lora": {"rank": 3}}),
    "recomputed log-probs": (split(make_fragments(8), 2), MANY_STEPS | {"off_policy_correction": "none"}),
    "every term of the loss": (split(make_fragments(9), 3), ONE_STEP | EVERY_TERM),
    "every term, one empty share": (split(make_fragments(10), 8), ONE_STEP | EVERY_TERM),
    "response mean, whitened": (
        split(make_fragments(11), 6),
        ONE_STEP | {"loss_aggregation": "response", "advantage_normalization": "whiten"},
    ),
    "whitened, one empty share": (split(make_fragments(12), 0), ONE_STEP | {"advantage_normalization": "whiten"}),
    "lambda-returns": (
        split(make_fragments(13), 4),
        ONE_STEP | {"critic_targets": "lambda_returns", "critic_lambda": 0.8, "value_clip": 0.1},
    ),
}


def update(folder: str, fragments: list[Fragment], options: dict[str, Any], collective: Collective) -> dict[str, Any]:
    """Makes one update from fresh models and returns gradients, weights and reports."""
    lora = options.get("lora")
    options = {name: value for name, value in options.items() if name != "lora"}
    policy, critic = load_models(folder, lora=lora)
    if collective.rank == 1:
        # A learner that starts elsewhere must be brought to the weights of the first.
        with torch.no_grad():
            next(parameter for parameter in policy.parameters() if parameter.requires_grad).add_(1.0)
    step = UpdateStep(policy, critic, Options.of(**options), collective)
    batch = batch_from_fragments(fragments)
    result = step.run(batch, estimate_targets(critic, batch, step.options, collective), policy_version=0)
    assert step.critic_gradients is not None
    return {
        "gradient": torch.cat([step.policy_gradients.buffer, step.critic_gradients.buffer]),
        "weights": parameters_of(policy, critic),
        "trainable": torch.cat(
            [torch.full((p.numel(),), p.requires_grad) for model in (policy, critic) for p in model.parameters()]
        ),
        "metrics": {name: value for name, value in result.metrics.items() if not name.endswith("seconds")},
        "histogram": result.staleness_histogram.tolist(),
        "rows": result.fragment_report.num_rows,
    }


def learner(rank: int, folder: str, meeting_point: str, results: str) -> None:
    assert "ray" not in sys.modules, "the update step is plain torch"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    collective = current_collective()
    assert (collective.rank, collective.size) == (rank, 2)
    outcomes = {
        name: update(folder, shares[rank], options, collective) for name, (shares, options) in SCENARIOS.items()
    }
    torch.save(outcomes, f"{results}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_learners(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("two_learners")
    return run_two_learners(learner, folder, model_folder, timeout_s=120)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_learners_agree(two_learners: list[dict[str, Any]], scenario: str) -> None:
    first, second = (outcomes[scenario] for outcomes in two_learners)
    assert torch.equal(first["gradient"], second["gradient"])
    assert torch.equal(first["weights"], second["weights"])
    assert first["metrics"] == second["metrics"]
    assert first["histogram"] == second["histogram"]
    assert [first["rows"], second["rows"]] == [len(share) for share in SCENARIOS[scenario][0]]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "scenario", [name for name, (_, options) in SCENARIOS.items() if "minibatch_size" not in options]
)
def test_two_learners_equal_one(two_learners: list[dict[str, Any]], model_folder: str, scenario: str) -> None:
    """In one step, that is: shares are cut into other minibatches than the whole."""
    shares, options = SCENARIOS[scenario]
    alone = update(model_folder, shares[0] + shares[1], options, SingleLearner())
    together = two_learners[0][scenario]
    torch.testing.assert_close(together["gradient"], alone["gradient"], atol=1e-5, rtol=1e-5)
    # AdamW's first step has the size of the learning rate whatever the gradient's; where that is near AdamW's epsilon (1e-8), it
    # is rounding that decides.
    beyond_rounding = alone["gradient"].abs() > 1e-6
    assert not shares[0] + shares[1] or beyond_rounding.float().mean() > 0.2
    difference = (together["weights"] - alone["weights"]).abs()
    assert float(difference.max()) <= 2 * options["lr"]
    assert (difference[alone["trainable"]][beyond_rounding] <= 1e-6).all()
    assert not difference[~alone["trainable"]].any()
    assert together["histogram"] == alone["histogram"]
    assert together["metrics"].keys() == alone["metrics"].keys()
    for name, value in alone["metrics"].items():
        assert together["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-5) or name == "padding_fraction", name
