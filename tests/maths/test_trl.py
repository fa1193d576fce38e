"""Our GRPO maths against TRL's trainer, whose own methods compute the advantages and the losses on the same arrays."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tppo_rl
from tppo_rl.maths.divergence import k3
from tppo_rl.maths.group_advantages import group_relative_advantages
from tppo_rl.maths.importance import importance_weights
from tppo_rl.maths.log_probs import token_log_probs
from tppo_rl.maths.reduce import response_weights, token_mean, token_sum
from tppo_rl.maths.surrogate import clipped_surrogate, truncated_policy_gradient

MODEL = Path(tppo_rl.__file__).parent / "base_models" / "arithmetic-chain"
ROWS, STEPS = 8, 12


class Arrays(SimpleNamespace):
    """One batch of responses [ROWS, STEPS] with advantages [ROWS], in float64."""

    log_probs: torch.Tensor
    old_log_probs: torch.Tensor
    reference_log_probs: torch.Tensor
    advantages: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor


@pytest.fixture
def arrays() -> Arrays:
    generator = torch.Generator().manual_seed(0)
    log_probs = -2 * torch.rand(ROWS, STEPS, generator=generator, dtype=torch.float64)
    noise = 0.6 * torch.randn(2, ROWS, STEPS, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, STEPS + 1, (ROWS,), generator=generator)
    return Arrays(
        log_probs=log_probs.requires_grad_(),
        old_log_probs=log_probs.detach() + noise[0],
        reference_log_probs=log_probs.detach() + noise[1],
        advantages=torch.randn(ROWS, generator=generator, dtype=torch.float64),
        lengths=lengths,
        mask=torch.arange(STEPS) < lengths[:, None],
    )


@pytest.fixture(scope="module")
def trl_module() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        # TRL imports vLLM where it is installed, and warns of its version; the trainer below generates without it.
        patch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *_, **__: False)
        yield importlib.import_module("trl")


def build_trainer(trl: Any, folder: Path, rewards: list[float] | None = None, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    settings = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "output_dir": str(folder),
        "per_device_train_batch_size": ROWS,
        "num_generations": 4,
        "max_completion_length": STEPS,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "use_bias_correction_kl": False,
    }
    return trl.GRPOTrainer(
        model=str(MODEL),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        reward_funcs=lambda prompts, completions, **_: rewards,
        args=trl.GRPOConfig(**(settings | options)),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "1+2"}]}] * 2),
    )


def loss_of_trl(trainer: Any, arrays: Arrays) -> tuple[float, torch.Tensor]:
    """Returns TRL's loss and its gradient with respect to the log-probs."""
    given = (arrays.log_probs, torch.zeros(ROWS, STEPS, dtype=torch.float64), None)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: given
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    tokens = torch.zeros(ROWS, STEPS, dtype=torch.int64)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": torch.ones(ROWS, 1, dtype=torch.int64),
        "completion_ids": tokens,
        "completion_mask": arrays.mask.long(),
        "advantages": arrays.advantages,
        "old_per_token_logps": arrays.old_log_probs,
        "ref_per_token_logps": arrays.reference_log_probs,
        "num_items_in_batch": arrays.mask.sum(),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    return loss.item(), torch.autograd.grad(loss, arrays.log_probs)[0]


def check_equal(ours: torch.Tensor, arrays: Arrays, theirs: tuple[float, torch.Tensor]) -> None:
    assert ours.item() == pytest.approx(theirs[0], abs=1e-12)
    (gradient,) = torch.autograd.grad(ours, arrays.log_probs)
    torch.testing.assert_close(gradient, theirs[1], atol=1e-12, rtol=0)
    assert gradient.any()


def surrogate(arrays: Arrays, dual_clip: float | None = None) -> torch.Tensor:
    spread = arrays.advantages[:, None].expand(ROWS, STEPS)
    return clipped_surrogate(
        arrays.log_probs, arrays.old_log_probs, spread, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip
    ).loss


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_mean_of_response_means_with_kl(trl_module: Any, tmp_path: Path, arrays: Arrays, beta: float) -> None:
    theirs = loss_of_trl(build_trainer(trl_module, tmp_path, loss_type="grpo", beta=beta), arrays)
    # KL(pi || reference) from tokens of pi: k3's log-ratio is log reference - log pi.
    per_token = surrogate(arrays) + beta * k3(arrays.reference_log_probs, arrays.log_probs)
    weights = response_weights(arrays.lengths).double()[:, None]
    # The weights are float32.
    ours = token_sum(per_token * weights, arrays.mask) / ROWS
    assert ours.item() == pytest.approx(theirs[0], rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, arrays.log_probs)[0], theirs[1], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_token_mean_with_kl(trl_module: Any, tmp_path: Path, arrays: Arrays, beta: float) -> None:
    theirs = loss_of_trl(build_trainer(trl_module, tmp_path, loss_type="dapo", beta=beta), arrays)
    per_token = surrogate(arrays) + beta * k3(arrays.reference_log_probs, arrays.log_probs)
    check_equal(token_mean(per_token, int(arrays.mask.sum()), arrays.mask), arrays, theirs)


def test_kl_weighted_for_the_policy_that_sampled(trl_module: Any, tmp_path: Path, arrays: Arrays) -> None:
    options = {"loss_type": "dapo", "beta": 0.05, "use_bias_correction_kl": True}
    theirs = loss_of_trl(build_trainer(trl_module, tmp_path, **options), arrays)
    kl = k3(arrays.reference_log_probs, arrays.log_probs)
    per_token = surrogate(arrays) + 0.05 * importance_weights(arrays.log_probs, arrays.old_log_probs) * kl
    check_equal(token_mean(per_token, int(arrays.mask.sum()), arrays.mask), arrays, theirs)


def test_dual_clip(trl_module: Any, tmp_path: Path, arrays: Arrays) -> None:
    """TRL's bound on the ratio, `delta`, is the dual clip as long as it lies above 1 + clip_high."""
    theirs = loss_of_trl(build_trainer(trl_module, tmp_path, loss_type="dapo", delta=1.5), arrays)
    check_equal(token_mean(surrogate(arrays, dual_clip=1.5), int(arrays.mask.sum()), arrays.mask), arrays, theirs)
    assert (surrogate(arrays, dual_clip=1.5) < surrogate(arrays))[arrays.mask].any()


def test_truncated_policy_gradient(trl_module: Any, tmp_path: Path, arrays: Arrays) -> None:
    """CISPO is the same loss; TRL's cap is `epsilon_high` itself."""
    theirs = loss_of_trl(build_trainer(trl_module, tmp_path, loss_type="cispo", epsilon_high=1.2), arrays)
    spread = arrays.advantages[:, None].expand(ROWS, STEPS)
    per_token = truncated_policy_gradient(arrays.log_probs, arrays.old_log_probs, spread, cap=1.2)
    check_equal(token_mean(per_token, int(arrays.mask.sum()), arrays.mask), arrays, theirs)


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_and_log_probs(trl_module: Any, tmp_path: Path, scale: bool) -> None:
    """TRL generates two groups of four responses; its advantages come with them."""
    rewards = [1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    trainer = build_trainer(trl_module, tmp_path, rewards, scale_rewards="group" if scale else "none")
    trainer.model.train()
    prompts = [{"prompt": [{"role": "user", "content": text}]} for text in ("1+2", "4+5")]
    batch = trainer._generate_and_score_completions([prompts[group] for group in (0, 0, 0, 0, 1, 1, 1, 1)])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    order = list(range(ROWS))
    random.Random(0).shuffle(order)
    ours = group_relative_advantages(torch.tensor(rewards)[order], groups[order], scale=scale)
    torch.testing.assert_close(ours, batch["advantages"][order], atol=1e-6, rtol=1e-6)
    assert ours.any()

    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, tokens, mask, width, compute_entropy=True
    )
    with torch.no_grad():
        logits = trainer.model(input_ids=tokens, attention_mask=mask).logits[:, -width - 1 : -1]
    ours_of_tokens = token_log_probs(logits.flatten(0, 1), batch["completion_ids"].flatten(), temperature=1.0)
    inside = batch["completion_mask"].bool().flatten()
    torch.testing.assert_close(ours_of_tokens.log_probs[inside], log_probs.detach().flatten()[inside])
    torch.testing.assert_close(ours_of_tokens.entropy[inside], entropy.flatten()[inside], atol=1e-5, rtol=1e-5)
