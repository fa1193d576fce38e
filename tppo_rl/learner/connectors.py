"""The learner pipeline as RLlib `ConnectorV2` pieces, so that each can be exchanged in the config.

    fragments -> FragmentsToTrainBatch -> CriticValuesOnTrainBatch -> ExtendedGAE -> MonteCarloTargets -> update step

The pieces are called with `episodes` (a list of fragments) and `batch`, {module id: columns}, and each adds columns for
the default module:

| column | holds |
|---|---|
| `TRAIN_BATCH` | `TrainBatch` |
| `CRITIC_VALUES` | `CriticValues` |
| `ADVANTAGES` | float32 [B, T], A_t of the window's tokens, padding 0 |
| `VALUE_TARGETS` | float32 [F, R], regression targets over finished responses, padding 0 |

To train with other advantages, give the config a `learner_connector` that returns
`default_learner_pipeline(settings, advantages=YourPiece())`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.evaluation.postprocessing import Postprocessing

from tppo_rl.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.module import TRAIN_BATCH
from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.learner.targets import policy_advantages, value_targets

CRITIC_VALUES = "critic_values"
ADVANTAGES: str = Postprocessing.ADVANTAGES
VALUE_TARGETS: str = Postprocessing.VALUE_TARGETS


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


class CriticValuesOnTrainBatch(_SettingsPiece):
    """Evaluates the critic on every state of the batch."""

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `CRITIC_VALUES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[CRITIC_VALUES] = rl_module[DEFAULT_MODULE_ID].compute_values(
            columns, micro_batch_tokens=self._settings.micro_batch_tokens
        )
        return batch


class ExtendedGAE(_SettingsPiece):
    """Estimates the policy's advantages by extended GAE (arXiv 2506.15050)."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `ADVANTAGES`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[ADVANTAGES] = policy_advantages(columns[TRAIN_BATCH], columns[CRITIC_VALUES], self._settings)
        return batch


class MonteCarloTargets(_SettingsPiece):
    """Gives the critic the returns of finished episodes to regress."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `VALUE_TARGETS`."""
        columns = batch[DEFAULT_MODULE_ID]
        columns[VALUE_TARGETS] = value_targets(columns[TRAIN_BATCH], self._settings)
        return batch


def default_learner_pipeline(settings: UpdateSettings, *, advantages: ConnectorV2 | None = None) -> list[ConnectorV2]:
    """Returns the pieces of Truncated PPO in order.

    Args:
        settings: What the pieces read: gamma, lambda_, boundary_value, micro_batch_tokens.
        advantages: Piece that adds `ADVANTAGES` in place of `ExtendedGAE`.
    """
    return [
        FragmentsToTrainBatch(),
        CriticValuesOnTrainBatch(settings),
        advantages or ExtendedGAE(settings),
        MonteCarloTargets(settings),
    ]
