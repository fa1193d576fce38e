"""vLLM's insides: the attributes that we use beside its documented API, in one place.

`tppo_rl.core.insides` explains `CONTRACT`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tppo_rl.core.insides import VLLM, Contract
from tppo_rl.rollout.core_process import CoreProcess, EngineDied
from tppo_rl.rollout.weight_broadcast import Offer

CONTRACT: Contract = {
    "vllm.v1.engine.llm_engine:LLMEngine": (
        "from_vllm_config",
        "add_request",
        "abort_request",
        "step",
        "has_unfinished_requests",
        "collective_rpc",
        "set_weight_version",
        "reset_prefix_cache",
        "sleep",
        "wake_up",
    ),
    "vllm.platforms": ("current_platform",),
    "vllm.v1.worker.gpu_worker:Worker": (
        "load_model",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    ),
    "vllm.v1.worker.cpu_worker:CPUWorker": ("load_model",),
    "vllm.distributed.weight_transfer.factory:WeightTransferEngineFactory": ("register_engine",),
    "vllm.distributed.weight_transfer.base:WeightTransferEngine": (
        "init_info_cls",
        "update_info_cls",
        "parse_update_info",
        "init_transfer_engine",
        "start_weight_update",
        "update_weights",
        "receive_weights",
        "finish_weight_update",
        "shutdown",
    ),
    "vllm.distributed.weight_transfer.base": ("WeightTransferInitInfo", "WeightTransferUpdateInfo"),
    "vllm.config.weight_transfer:WeightTransferConfig": ("backend",),
    "vllm.model_executor.model_loader.reload": ("initialize_layerwise_reload", "finalize_layerwise_reload"),
    "vllm.v1.engine.core_client:EngineCoreClient": ("get_output", "shutdown"),
    "vllm.v1.executor.multiproc_executor:MultiprocExecutor": ("start_worker_monitor",),
    "vllm.v1.engine.output_processor:OutputProcessor": ("process_outputs", "add_request"),
    "vllm.v1.engine:EngineCoreOutput": ("request_id", "new_token_ids", "new_logprobs", "finished"),
    "vllm.v1.engine:EngineCoreOutputs": ("outputs", "weight_version"),
    "vllm.v1.outputs:LogprobsLists": ("logprobs",),
    "vllm.sampling_params:RequestOutputKind": ("DELTA",),
    "vllm.sampling_params:SamplingParams": (
        "temperature",
        "max_tokens",
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "flat_logprobs",
        "prompt_logprobs",
        "detokenize",
        "output_kind",
        "skip_clone",
    ),
    "vllm.engine.arg_utils:EngineArgs": (
        "create_engine_config",
        "model",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "seed",
        "skip_tokenizer_init",
        "logprobs_mode",
        "disable_log_stats",
        "async_scheduling",
        "enforce_eager",
        "worker_cls",
        "weight_transfer_config",
    ),
}
"""We also use `engine_core`, `output_processor` and `vllm_config` of an engine, `request_states` of the latter with their `external_req_id`,
`engine_core.model_executor.is_failed` of a core in this process, `device`, `model` and `model_config` of a weight transfer, and
`weight_transfer_engine`, `rank` and `parallel_config` of a worker. These exist on instances alone, so the engine's tests check them."""

WORKER, IN_PLACE_WORKER = "tppo_rl.rollout.workers.Worker", "tppo_rl.rollout.workers.InPlaceWorker"
"""Names under which vLLM imports its workers."""
COPY, RELOAD = "tppo-rl-copy", "tppo-rl-reload"
"""Names of the ways in which workers take new weights, in vLLM's registry of weight transfers."""


class CoreOutput(NamedTuple):
    """New tokens of one request."""

    request_id: str
    tokens: Sequence[int]
    log_probs: list[float]
    version: int
    """Policy version of the weights that sampled the tokens."""
    finished: bool


class VLLMCore:
    """vLLM's engine, with its core and its output processor within reach.

    Args:
        engine: vLLM's `LLMEngine`.
        own_process: Whether the core has a process of its own; else it takes its steps in this one.
    """

    def __init__(self, engine: Any, *, own_process: bool = False) -> None:
        self.engine = engine
        with VLLM.insides("LLMEngine.engine_core, LLMEngine.output_processor"):
            self.core = engine.engine_core
            self.processor = engine.output_processor
        self.process = CoreProcess(self.core) if own_process else None

    @contextmanager
    def telling_death(self) -> Iterator[None]:
        """Turns the errors that follow the death of one of the engine's processes into one that says so.

        Raises:
            EngineDied: instead of them.
        """
        try:
            yield
        except Exception as error:
            died = self._workers_died() if self.process is None else self.process.died()
            if died is None or isinstance(error, EngineDied):
                raise
            raise died from error

    def _workers_died(self) -> EngineDied | None:
        executor = getattr(getattr(self.core, "engine_core", None), "model_executor", None)
        if not getattr(executor, "is_failed", False):
            return None
        ended = {worker.proc.name: worker.proc.exitcode for worker in getattr(executor, "workers", ())}
        return EngineDied.of(ended)

    def outputs(self) -> list[CoreOutput]:
        """Returns the tokens of one step. It bypasses `LLMEngine.step` for two reasons.

        The engine tells the version of the weights that sampled a batch for finished requests alone, and in processes of its
        own that version may be older than the newest. And text, statistics and their objects take as much time for each
        request as its scheduling.
        """
        try:
            batch = self.core.get_output()
            found = []
            for result in batch.outputs:
                tokens = result.new_token_ids
                # A request that was cut meanwhile has no state.
                state = self.processor.request_states.get(result.request_id)
                if not tokens or state is None:
                    continue
                found.append(
                    CoreOutput(
                        state.external_req_id,
                        tokens,
                        result.new_logprobs.logprobs[:, 0].tolist(),
                        int(batch.weight_version),
                        result.finished,
                    )
                )
            # The processor forgets finished requests.
            self.processor.process_outputs([result for result in batch.outputs if result.finished])
        except AttributeError as error:
            raise VLLM.lacks("the outputs of its engine core", error) from error
        return found

    def receive_weights(self, offer: Offer, group: str) -> list[bool | str]:
        """Lets all workers receive weights that a learner broadcasts; see `tppo_rl.rollout.workers.Worker`.

        Raises:
            EngineDied: a worker is gone.
        """
        with self.telling_death():
            return list(
                self.engine.collective_rpc("receive_weights", kwargs={"offer": offer._asdict(), "group": group})
            )

    def update_weights(self, source: Mapping[str, Any]) -> None:
        """Lets all workers take new weights, by vLLM's weight transfer.

        Args:
            source: Where they are, see `tppo_rl.rollout.weight_receivers.Source`.
        """
        self.engine.collective_rpc("start_weight_update")
        self.engine.collective_rpc("update_weights", kwargs={"update_info": dict(source)})
        self.engine.collective_rpc("finish_weight_update")

    def reseed(self, seed: int) -> None:
        """Seeds torch's generators of all workers."""
        self.engine.collective_rpc("reseed", args=(seed,))

    def sleep(self) -> None:
        """Preempts running requests, and gives the memory of the GPU back; weights go to the host.

        With `mode="keep"` requests stay, where vLLM's default would abort them. Level 1 keeps the weights, and what a model has beside
        those that are loaded; level 2 would leave an engine without weights if an update fails.
        """
        self.engine.sleep(level=1, mode="keep")

    def wake(self, part: str) -> None:
        """Takes a part of the memory back, "weights" or "kv_cache"; after both vLLM schedules requests again."""
        self.engine.wake_up(tags=[part])

    def shutdown(self) -> None:
        """Ends the core."""
        self.core.shutdown()


def hide_llvmlite() -> None:
    """Lets an engine start in a process that has used numba.

    On a CPU vLLM asks every object in every module for its `__dict__`, and llvmlite's library takes every attribute for the
    name of a C function.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None or getattr(ffi, "_answers_no_special_names", False):
        return
    library = type(ffi.lib)
    find_function = library.__getattr__

    def find(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return find_function(self, name)

    library.__getattr__ = find
    ffi._answers_no_special_names = True  # type: ignore[attr-defined]
