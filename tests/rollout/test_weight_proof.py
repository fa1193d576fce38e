"""The proof of weights in every number format: new weights pass, old and wrong ones do not, however small an update is.

The engine is a copy of the model in half precision, or with weights rounded as quantization does, so that it computes as an
engine does. One that took no weights gives the same numbers again.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from tppo_rl.base_models import resolve_model
from tppo_rl.core.errors import RunError
from tppo_rl.learner.models import Policy, load_causal_lm
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.weight_proof import WeightProof, probe_tokens

MODEL = resolve_model("tppo_rl/arithmetic-chain")
PROBE = probe_tokens(Chat.from_pretrained(MODEL), 256)


def log_probs(policy: Policy) -> np.ndarray:
    ids = torch.tensor([PROBE])
    with torch.no_grad():
        logits = policy.logits(ids)[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


def eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """Rounds each row to 255 levels."""
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round() * scale


class Pair:
    """A trainer and its engine."""

    def __init__(self, engine_format: str) -> None:
        self.trainer = Policy(load_causal_lm(MODEL, torch.float32))
        if engine_format == "eight bits":
            self._rounded: Callable[[torch.Tensor], torch.Tensor] = eight_bits
            self.trainer.dtype = torch.bfloat16
            self._dtype = torch.bfloat16
        else:
            self._dtype = getattr(torch, engine_format)
            self.trainer.dtype = self._dtype
            self._rounded = partial(torch.Tensor.clone)
        self.push()

    def push(self, *, but_head: bool = False) -> None:
        old_head = self._engine.model.lm_head.weight.detach().clone() if but_head else None
        engine = copy.deepcopy(self.trainer.model)
        with torch.no_grad():
            for parameter in engine.parameters():
                parameter.copy_(self._rounded(parameter))
        if old_head is not None:
            engine.lm_head.weight = torch.nn.Parameter(old_head)
        self._engine = Policy(engine.to(self._dtype))

    def update(self, size: float, seed: int = 0) -> None:
        """Moves every weight by `size`, up or down, as a first step of AdamW does."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.trainer.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).sign(), alpha=size)

    @property
    def engine(self) -> np.ndarray:
        return log_probs(self._engine)

    def start(self) -> WeightProof:
        proof = WeightProof(exact=False)
        proof.take_control(log_probs(self.trainer), [self.engine])
        assert not proof.needs_control
        return proof


@pytest.mark.parametrize("engine_format", ["float32", "bfloat16", "float16", "eight bits"])
@pytest.mark.parametrize("size", [1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_new_weights_pass_and_old_ones_never_prove_anything(engine_format: str, size: float) -> None:
    pair = Pair(engine_format)
    proof = pair.start()
    proof.check(log_probs(pair.trainer), [pair.engine])
    old = copy.deepcopy(proof)
    pair.update(size)
    found = None
    try:
        old.check(log_probs(pair.trainer), [pair.engine])
    except RuntimeError as error:
        found = str(error)
    assert not old.is_decided
    assert (found is not None) or size < 1e-4
    pair.push()
    difference = proof.check(log_probs(pair.trainer), [pair.engine])
    print(engine_format, size, difference, found)
    assert found is not None or not proof.is_decided, "what is taken for new weights must be told from old ones"


@pytest.mark.parametrize("engine_format", ["bfloat16", "float16", "eight bits"])
def test_an_engine_that_stays_behind_is_found_after_some_small_updates(engine_format: str) -> None:
    pair = Pair(engine_format)
    proof = pair.start()
    proof.check(log_probs(pair.trainer), [pair.engine])

    def update_and_check(seed: int) -> None:
        pair.update(3e-6, seed)
        proof.check(log_probs(pair.trainer), [pair.engine])

    with pytest.raises(RunError, match=r"weight sync failed: on a probe the trainer's log-probs have moved"):
        deque(map(update_and_check, range(200)), maxlen=0)


def test_another_model_is_no_rounding() -> None:
    pair = Pair("bfloat16")
    pair.update(0.05)
    with pytest.raises(RuntimeError, match=r"before any update.*do not compute the same model"):
        pair.start()


def test_float32_needs_no_control() -> None:
    pair, proof = Pair("float32"), WeightProof(exact=True)
    assert not proof.needs_control
    proof.check(log_probs(pair.trainer), [pair.engine])
    pair.update(1e-4)
    with pytest.raises(RuntimeError, match="largest allowed: 1e-04"):
        proof.check(log_probs(pair.trainer), [pair.engine])


@pytest.mark.parametrize("engine_format", ["float32", "bfloat16", "float16", "eight bits"])
def test_one_layer_that_stays_behind_is_found_before_the_proof_is_decided(engine_format: str) -> None:
    pair = Pair(engine_format)
    proof = WeightProof(exact=True) if engine_format == "float32" else pair.start()
    proof.check(log_probs(pair.trainer), [pair.engine])

    def update_and_check(_: int) -> None:
        pair.update(3e-4)
        pair.push(but_head=True)
        proof.check(log_probs(pair.trainer), [pair.engine])
        assert not proof.is_decided

    with pytest.raises(RunError, match="weight sync failed"):
        deque(map(update_and_check, range(200)), maxlen=0)
