"""How a worker takes new weights: two back ends of vLLM's weight transfer, by copies in place or by vLLM's layerwise reload.

Both read weights from tensors in their own process; from a file in shared memory (`tppo_rl.rollout.weights_file`), which they
map once and read again at every update that names it; or from what was broadcast to them before (`tppo_rl.rollout.weight_broadcast`).
Only vLLM imports this module, in processes that hold a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from tppo_rl.rollout.cpu_layers import pack_tied_layers
from tppo_rl.rollout.weight_broadcast import WeightReceiver
from tppo_rl.rollout.weight_copies import WeightCopies
from tppo_rl.rollout.weights_file import mapped


@dataclass
class Source(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the weights of an update are; one of the three is given."""

    tensors: Mapping[str, torch.Tensor] | None = None
    path: str | None = None
    received: int | None = None
    """Number of an offer."""


class _Receiver(WeightTransferEngine):  # type: ignore[misc]
    init_info_cls = WeightTransferInitInfo
    update_info_cls = Source
    _path: str | None = None
    _mapped: Mapping[str, torch.Tensor] | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.broadcasts = WeightReceiver()

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Does nothing: every update says where its weights are."""

    def start_weight_update(self) -> None:
        """Does nothing; see `ReloadedWeights`."""

    def finish_weight_update(self) -> None:
        """Does nothing; see `ReloadedWeights`."""

    def shutdown(self) -> None:
        """Gives the file back."""
        self._path = self._mapped = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self.device.type == "cpu":
            # vLLM's own waits for a GPU, and fails where there is none.
            self.receive_weights(self.parse_update_info(update_info))
        else:
            super().update_weights(update_info)

    def _weights_of(self, source: Source) -> Mapping[str, torch.Tensor]:
        if source.tensors is not None:
            return source.tensors
        if source.received is not None:
            return self.broadcasts.tensors(source.received)
        assert source.path is not None
        if self._mapped is None or source.path != self._path:
            self.shutdown()
            self._mapped, self._path = mapped(Path(source.path)), source.path
        return self._mapped


class CopiedWeights(_Receiver):
    """Copies weights into parameters that nothing has repacked. A worker of a model in parts copies its own parts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._copies = WeightCopies(self.model.load_weights)

    def receive_weights(self, update_info: Source) -> None:
        self._copies.load(self._weights_of(update_info))


class ReloadedWeights(_Receiver):
    """Lets vLLM load, slice and pack all layers again."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Source) -> None:
        self.model.load_weights(iter(self._weights_of(update_info).items()))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            pack_tied_layers(self.model)
