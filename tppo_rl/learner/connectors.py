"""The stages of `tppo_rl.learner.targets` as RLlib `ConnectorV2` pieces, so that the config can exchange each of them.

A piece is called with `episodes` (a list of fragments) and `batch`, {module id: columns}. The default module's column
`ESTIMATES` holds the `Estimates` that the stages fill in. A piece of your own that the config's `learner_connector` puts in
front sees the fragments before there are estimates, and may leave some out. In a pipeline of your own, a piece may take the
place of a stage; it reads and changes the estimates:

    class Halved(ConnectorV2):
        def __call__(self, *, batch, **kwargs):
            batch[DEFAULT_MODULE_ID][ESTIMATES].advantages *= 0.5
            return batch

Advantages of your own need no piece: see the option `advantage_estimator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID

from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.targets import Estimates, Stage

ESTIMATES = "estimates"


class FragmentsToBatch(ConnectorV2):
    """Lays the fragments out as tensors."""

    def __call__(self, *, batch: dict[str, Any], episodes: Sequence[Fragment], **kwargs: Any) -> dict[str, Any]:
        """Adds `ESTIMATES`."""
        batch.setdefault(DEFAULT_MODULE_ID, {})[ESTIMATES] = Estimates(batch_from_fragments(episodes), episodes)
        return batch


class StageConnector(ConnectorV2):
    """One stage as a piece of RLlib's pipeline.

    Args:
        name: Name of the stage, by which it can be found in the pipeline.
        stage: Changes the estimates.
    """

    def __init__(self, name: str, stage: Stage) -> None:
        super().__init__()
        self.stage_name = name
        self._stage = stage

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Changes `ESTIMATES`."""
        self._stage(batch[DEFAULT_MODULE_ID][ESTIMATES], rl_module[DEFAULT_MODULE_ID])
        return batch


def connectors(stages: Mapping[str, Stage]) -> list[ConnectorV2]:
    """Returns the pieces that run these stages on fragments, in order."""
    return [FragmentsToBatch(), *(StageConnector(name, stage) for name, stage in stages.items())]
