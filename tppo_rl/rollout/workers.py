"""Our classes of vLLM's workers: they hold the model, in the engine's process or in processes of their own.

Only vLLM imports this module, by the names in `tppo_rl.rollout.vllm_internals`. It is the first of ours that such a process imports:
what the process must know before it loads the model is said here.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from tppo_rl.core.insides import VLLM
from tppo_rl.kernels.onednn_linear import fastest_linear
from tppo_rl.rollout.cpu_layers import pack_experts_at_updates, unpacked_linear_layers
from tppo_rl.rollout.vllm_internals import COPY, RELOAD
from tppo_rl.rollout.weight_broadcast import Offer

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as _PlatformWorker

for _name, _class in ((COPY, "CopiedWeights"), (RELOAD, "ReloadedWeights")):
    WeightTransferEngineFactory.register_engine(_name, "tppo_rl.rollout.weight_receivers", _class)


class Worker(_PlatformWorker):  # type: ignore[misc]
    """vLLM's worker, whose noise of sampling can begin anew, and which takes part in broadcasts of weights."""

    def load_model(self, **options: Any) -> None:
        if current_platform.is_cpu():
            pack_experts_at_updates()
        super().load_model(**options)

    def receive_weights(self, offer: dict[str, Any], group: str) -> bool | str:
        """Receives weights, and leaves the model as it is.

        Args:
            offer: Fields of an `Offer`.
            group: From `ask`.

        Returns:
            What `WeightReceiver.receive` does, or the words of its error: vLLM would leave the answers of other workers in
            their queues after an error of one, and take them for those of the next call.
        """
        with VLLM.insides("Worker.weight_transfer_engine, .rank or .parallel_config.world_size"):
            broadcasts, rank = self.weight_transfer_engine.broadcasts, self.rank
            num_workers = self.parallel_config.world_size
        try:
            return bool(broadcasts.receive(Offer(**offer), group, rank, num_workers))
        except Exception as error:
            return f"worker {rank}: {error}"

    def reseed(self, seed: int) -> None:
        """Seeds torch's generators of this process; all workers of a model need the same."""
        torch.manual_seed(seed)


class InPlaceWorker(Worker):
    """A worker on a CPU whose linear layers keep the layout in which they were loaded, so that new weights can be copied there."""

    def load_model(self, **options: Any) -> None:
        with unpacked_linear_layers(fastest_linear(torch.get_num_threads())):
            super().load_model(**options)
