"""vLLM's insides: the attributes that we use beside its documented API, in one place.

`tppo_rl.core.insides` explains `CONTRACT`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tppo_rl.core.insides import VLLM, Contract
from tppo_rl.rollout.core_process import CoreProcess, EngineDied

CONTRACT: Contract = {
    "vllm.v1.engine.llm_engine:LLMEngine": (
        "from_engine_args",
        "add_request",
        "abort_request",
        "step",
        "has_unfinished_requests",
        "apply_model",
        "collective_rpc",
        "set_weight_version",
        "reset_prefix_cache",
        "sleep",
        "wake_up",
    ),
    "vllm.config": ("set_current_vllm_config",),
    "vllm.platforms": ("current_platform",),
    "vllm.v1.engine.core_client:EngineCoreClient": ("get_output", "shutdown"),
    "vllm.v1.executor.multiproc_executor:MultiprocExecutor": ("start_worker_monitor",),
    "vllm.v1.engine.output_processor:OutputProcessor": ("process_outputs", "add_request"),
    "vllm.model_executor.layers.utils": ("dispatch_cpu_unquantized_gemm",),
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:UnquantizedFusedMoEMethod": ("_setup_kernel",),
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
    ),
}
"""We also use `engine_core`, `output_processor` and `vllm_config` of an engine, `request_states` of the latter with their `external_req_id`,
`engine_core.model_executor.is_failed` of a core in this process, and `cpu_linear` of unquantized linear layers. These exist on instances alone, so the engine's tests check them."""


WORKER_EXTENSION = "tppo_rl.rollout.worker_extension.WorkerMethods"
"""Name under which workers import their further methods."""


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
        packs_tied_layers: Whether the workers have the methods of `WORKER_EXTENSION`, which have to follow a reload.
    """

    def __init__(self, engine: Any, *, own_process: bool = False, packs_tied_layers: bool = False) -> None:
        self.engine = engine
        self._packs_tied_layers = packs_tied_layers
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

    def loader(self) -> Callable[[Iterable[tuple[str, torch.Tensor]]], Any]:
        """Returns the `load_weights` of the model, which runs in this process."""
        with VLLM.insides("LLMEngine.apply_model, LLMEngine.vllm_config, vllm.config.set_current_vllm_config"):
            from vllm.config import set_current_vllm_config

            (load_weights,) = self.engine.apply_model(attrgetter("load_weights"))
            config = self.engine.vllm_config

        def load(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
            # Some models ask for the config while they load.
            with set_current_vllm_config(config):
                return load_weights(weights)

        return load

    def reload(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Lets vLLM load and pack weights again, in this process."""
        self._reload(weights_iterator=iter(tensors.items()))

    def reload_from(self, folder: Path) -> None:
        """Lets every worker load weights from a folder."""
        self._reload(weights_path=str(folder))

    def _reload(self, **source: Any) -> None:
        self.engine.collective_rpc("reload_weights", kwargs=source)
        if self._packs_tied_layers:
            self.engine.collective_rpc("pack_tied_layers")

    def reseed(self, seed: int) -> None:
        """Seeds torch's generators of the workers that have our methods."""
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


@contextmanager
def unpacked_linear_layers(linear: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Makes engines that start in this context keep the weights of linear layers in the layout in which they were loaded.

    On a CPU vLLM repacks them for oneDNN into memory that nothing can write to afterwards, so an update has to pack all of
    them again.

    Args:
        linear: (inputs, weight, bias) -> outputs of these layers.
    """
    with VLLM.insides("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm"):
        from vllm.model_executor.layers import utils

        dispatch = utils.dispatch_cpu_unquantized_gemm

    def leave_unpacked(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = leave_unpacked
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = dispatch


def pack_experts_at_updates() -> None:
    """Makes engines that run in this process, on a CPU, pack the experts' weights at every update.

    vLLM packs them for its kernel when an engine starts, and leaves new weights as they come.
    """
    with VLLM.insides("vllm…unquantized_fused_moe_method.UnquantizedFusedMoEMethod._setup_kernel"):
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        setup = UnquantizedFusedMoEMethod._setup_kernel
    if getattr(setup, "_packs_at_updates", False):
        return

    def setup_and_pack(self: Any, layer: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
        is_update = self.moe_kernel is not None
        setup(self, layer, w13, w2)
        if is_update:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    setup_and_pack._packs_at_updates = True  # type: ignore[attr-defined]
    UnquantizedFusedMoEMethod._setup_kernel = setup_and_pack


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
