"""The learner pipeline as RLlib `ConnectorV2` pieces, so that each can be exchanged in the config.

    fragments -> FragmentsToTrainBatch -> [ReferenceKL] -> [CriticValuesOnTrainBatch]
              -> ExtendedGAE | PlainGAE | GroupRelative -> [NormalisedAdvantages]
              -> [MonteCarloTargets | HeldMonteCarloTargets | LambdaReturnTargets | AlsoTruncatedTargets] -> update step

Pieces in brackets are there where the settings ask for them; without a critic there are neither values nor targets. The
pieces are called with `episodes` (a list of fragments) and `batch`, {module id: columns}, and each adds columns for the
default module:

| column | holds |
|---|---|
| `TRAIN_BATCH` | `TrainBatch` |
| `REFERENCE_LOG_PROBS` | float32 [B, T], nats, of the window's tokens by the reference model, padding 0 |
| `CRITIC_VALUES` | `CriticValues` |
| `ADVANTAGES` | float32 [B, T], A_t of the window's tokens, padding 0 |
| `VALUE_BATCH` | `ValueBatch`, what the critic regresses; without rows while finished episodes are held |

To train with other advantages, give the config a `learner_connector` that returns
`default_learner_pipeline(settings, advantages=YourPiece())`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.evaluation.postprocessing import Postprocessing

from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import Collective, SingleLearner
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.module import TRAIN_BATCH
from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.learner.targets import (
    also_truncated_batch,
    extended_advantages,
    group_advantages,
    lambda_return_batch,
    monte_carlo_batch,
    normalised_advantages,
    plain_advantages,
    sampled_log_probs,
    with_kl_rewards,
)
from tppo_rl.learner.value_buffer import ValueBuffer

REFERENCE_LOG_PROBS = "reference_log_probs"
CRITIC_VALUES = "critic_values"
ADVANTAGES: str = Postprocessing.ADVANTAGES
VALUE_BATCH = "value_batch"


class FragmentsToTrainBatch(ConnectorV2):
    """Lays the fragments out as tensors."""

    def __call__(self, *, batch: dict[str, Any], episodes: Sequence[Fragment], **kwargs: Any) -> dict[str, Any]:
        """Adds `TRAIN_BATCH`."""
        batch.setdefault(DEFAULT_MODULE_ID, {})[TRAIN_BATCH] = batch_from_fragments(episodes)
        return batch


class _SettingsPiece(ConnectorV2):
    """A piece that reads the update's settings."""

    def __init__(self, settings: UpdateSettings) -> None:
        super().__init__()
        self._settings = settings


class ReferenceKL(_SettingsPiece):
    """Takes the divergence from the reference model off the rewards, or prepares it as a term of the loss."""

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Changes the rewards of `TRAIN_BATCH`, or adds `REFERENCE_LOG_PROBS`."""
        columns, module, settings = batch[DEFAULT_MODULE_ID], rl_module[DEFAULT_MODULE_ID], self._settings
        train_batch = columns[TRAIN_BATCH]
        if settings.kl_in == "reward":
            columns[TRAIN_BATCH] = with_kl_rewards(train_batch, module.policy, module.reference, settings)
        else:
            columns[REFERENCE_LOG_PROBS] = sampled_log_probs(
                module.reference,
                train_batch,
                train_batch.window,
                temperature=settings.temperature,
                micro_batch_tokens=settings.micro_batch_tokens,
                packing=settings.packing,
            )
        return batch


class CriticValuesOnTrainBatch(_SettingsPiece):
    """Evaluates the critic on every state of the batch."""

    def __init__(self, settings: UpdateSettings, cache: ContextCache | None = None) -> None:
        super().__init__(settings)
        self._cache = cache

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `CRITIC_VALUES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[CRITIC_VALUES] = rl_module[DEFAULT_MODULE_ID].compute_values(
            columns,
            micro_batch_tokens=self._settings.micro_batch_tokens,
            packing=self._settings.packing,
            cache=self._cache,
        )
        return batch


class ExtendedGAE(_SettingsPiece):
    """Estimates the policy's advantages by extended GAE (arXiv 2506.15050)."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `ADVANTAGES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[ADVANTAGES] = extended_advantages(columns[TRAIN_BATCH], columns[CRITIC_VALUES], self._settings)
        return batch


class PlainGAE(_SettingsPiece):
    """Estimates the policy's advantages by GAE (arXiv 1506.02438), on whole episodes."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `ADVANTAGES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[ADVANTAGES] = plain_advantages(columns[TRAIN_BATCH], columns[CRITIC_VALUES], self._settings)
        return batch


class GroupRelative(_SettingsPiece):
    """Compares each response with the others to its prompt (GRPO, arXiv 2402.03300), on whole episodes."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `ADVANTAGES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[ADVANTAGES] = group_advantages(columns[TRAIN_BATCH], self._settings)
        return batch


class NormalisedAdvantages(_SettingsPiece):
    """Whitens or scales advantages over the batch of all learners, or over groups."""

    def __init__(self, settings: UpdateSettings, collective: Collective) -> None:
        super().__init__(settings)
        self._collective = collective

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Changes `ADVANTAGES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[ADVANTAGES] = normalised_advantages(
            columns[TRAIN_BATCH], columns[ADVANTAGES], self._settings, self._collective
        )
        return batch


class MonteCarloTargets(_SettingsPiece):
    """Gives the critic the returns of finished episodes to regress."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `VALUE_BATCH`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[VALUE_BATCH] = monte_carlo_batch(columns[TRAIN_BATCH], columns.get(CRITIC_VALUES), self._settings)
        return batch


class HeldMonteCarloTargets(_SettingsPiece):
    """The same, once enough of them have finished; until then they are held."""

    def __init__(self, settings: UpdateSettings, buffer: ValueBuffer) -> None:
        super().__init__(settings)
        self._buffer = buffer

    def __call__(self, *, batch: dict[str, Any], episodes: Sequence[Fragment], **kwargs: Any) -> dict[str, Any]:
        """Adds `VALUE_BATCH`, without rows until the batch is full."""
        released = batch_from_fragments(self._buffer.exchange(episodes))
        batch[DEFAULT_MODULE_ID][VALUE_BATCH] = monte_carlo_batch(released, None, self._settings)
        return batch


class LambdaReturnTargets(_SettingsPiece):
    """Gives the critic the lambda-returns of finished episodes to regress."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `VALUE_BATCH`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[VALUE_BATCH] = lambda_return_batch(columns[TRAIN_BATCH], columns[CRITIC_VALUES], self._settings)
        return batch


class AlsoTruncatedTargets(_SettingsPiece):
    """Gives the critic unfinished windows as well, for the experiment on decoupling (arXiv 2506.15050)."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `VALUE_BATCH`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[VALUE_BATCH] = also_truncated_batch(columns[TRAIN_BATCH], columns[CRITIC_VALUES], self._settings)
        return batch


_ADVANTAGES = {"egae": ExtendedGAE, "gae": PlainGAE, "group_relative": GroupRelative}
_TARGETS = {
    "monte_carlo": MonteCarloTargets,
    "lambda_returns": LambdaReturnTargets,
    "also_truncated": AlsoTruncatedTargets,
}


def default_learner_pipeline(
    settings: UpdateSettings,
    *,
    critic: bool = True,
    advantages: ConnectorV2 | None = None,
    collective: Collective | None = None,
    value_buffer: ValueBuffer | None = None,
    cache: ContextCache | None = None,
) -> list[ConnectorV2]:
    """Returns the pieces that the settings ask for, in order.

    Args:
        settings: What the pieces read.
        critic: Whether the module has a critic.
        advantages: Piece that adds `ADVANTAGES` in place of the one that `advantage_estimator` names.
        collective: The other learners; None means that there are none.
        value_buffer: Holds finished episodes until the critic's batch is full; None trains them at once.
        cache: Keeps the critic's contexts from update to update; None computes them anew.
    """
    pieces: list[ConnectorV2] = [FragmentsToTrainBatch()]
    if settings.kl_coef:
        pieces.append(ReferenceKL(settings))
    if critic:
        pieces.append(CriticValuesOnTrainBatch(settings, cache))
    pieces.append(advantages or _ADVANTAGES[settings.advantage_estimator](settings))
    if settings.advantage_normalisation != "none":
        pieces.append(NormalisedAdvantages(settings, collective or SingleLearner()))
    if critic and value_buffer is not None:
        pieces.append(HeldMonteCarloTargets(settings, value_buffer))
    elif critic:
        pieces.append(_TARGETS[settings.critic_targets](settings))
    return pieces
