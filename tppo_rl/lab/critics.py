"""Critics out of checkpoints, and their values along sampled responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tppo_rl.core.errors import OptionError
from tppo_rl.core.value_head_file import SEES_ANSWER, form_on_file
from tppo_rl.experiment.checkpoints import checkpoint_in
from tppo_rl.lab.samples import Response
from tppo_rl.learner.models import Critic, load_causal_lm
from tppo_rl.learner.module import load_value_head
from tppo_rl.learner.saved_policy import load_module
from tppo_rl.maths.value_forms import value_form

_TOKENS_OF_A_PASS = 8192
"""Most tokens in one forward pass, padding included."""


def load_critic(source: Path) -> Critic:
    """Returns the critic of a checkpoint, of a run's newest one, or of a folder that `critic pretrain` or `export --critic` has written.

    Raises:
        OptionError: there is no checkpoint, or its run had no critic.
    """
    form = form_on_file(source)
    if form is not None:
        _refuse_seeing(source, form)
        try:
            model = load_causal_lm(str(source), torch.float32)
        except ValueError as error:
            raise OptionError(f"--critic={str(source)!r}: {error}") from None
        written = Critic(model, torch.float32, value_form(form))
        load_value_head(written, source)
        return written
    module = load_module(checkpoint_in(source), critic=True)
    if module.critic is None:
        raise OptionError(f"--critic={str(source)!r}: the run had no critic; name the checkpoint of another run")
    _refuse_seeing(source, (module.model_config or {}).get("value_form") or {})
    return module.critic


def _refuse_seeing(source: Path, form: Mapping[str, Any]) -> None:
    if form.get(SEES_ANSWER):
        raise OptionError(
            f"--critic={str(source)!r}: it reads known answers (critic_sees_answer), which the laboratory's samples do not hold; `tppo-rl "
            "critic pretrain` measures such critics"
        )


def values_along(critic: Critic, responses: Sequence[Response]) -> list[np.ndarray]:
    """Returns V(s_t) of the states that the tokens of each response were sampled in, float64 [n] for n tokens.

    Raises:
        OptionError: the critic's vocabulary lacks a token.
    """
    sequences = [np.concatenate([response.prompt, response.tokens[:-1]]) for response in responses]
    return [
        values[len(response.prompt) - 1 :]
        for values, response in zip(values_after(critic, sequences), responses, strict=True)
    ]


def values_after(critic: Critic, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns V of the state after each position of each sequence, float64 [n] for n tokens.

    Args:
        critic: See `Critic`.
        sequences: int32 [n] each, n of 1 or more.

    Raises:
        OptionError: the critic's vocabulary lacks a token.
    """
    known = int(critic.backbone.get_input_embeddings().num_embeddings)
    largest = max((int(sequence.max()) for sequence in sequences), default=0)
    if largest >= known:
        raise OptionError(
            f"--critic: it knows {known} tokens, and the policy has written token {largest}; name a critic of the policy's family"
        )
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    found: dict[int, np.ndarray] = {}
    for rows in _passes([len(sequences[row]) for row in order], order):
        longest = max(len(sequences[row]) for row in rows)
        inputs = np.zeros((len(rows), longest), np.int64)
        for line, row in zip(inputs, rows, strict=True):
            line[: len(sequences[row])] = sequences[row]
        with torch.no_grad():
            values = critic(torch.from_numpy(inputs).to(critic.device)).double().cpu().numpy()
        found |= {row: line[: len(sequences[row])] for line, row in zip(values, rows, strict=True)}
    return [found[row] for row in range(len(sequences))]


def _passes(lengths: Sequence[int], order: np.ndarray) -> list[list[int]]:
    """Divides rows, in order of rising lengths, among forward passes."""
    passes: list[list[int]] = []
    for length, row in zip(lengths, order, strict=True):
        if not passes or (len(passes[-1]) + 1) * length > _TOKENS_OF_A_PASS:
            passes.append([])
        passes[-1].append(int(row))
    return passes
