"""Options of sampling: env-runners, windows, caps, the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, PositiveInt, model_validator

from tppo_rl.config.section import Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


class SamplingOptions(Section):
    """Sampling of training responses."""

    temperature: float = option(
        1.0, "Temperature, 0.01 to 2, which are the engine's bounds; log-probs are taken after it.", ge=0.01, le=2
    )

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if key != "temperature":
                raise ValueError(
                    f"sampling.{key}={value!r}: training takes log-probs at the temperature alone, so the engine must sample "
                    "from the whole distribution; remove the key"
                )
        return values


class EngineOptions(Section):
    """The engine: our own keys, and the arguments of the engine itself (vLLM's EngineArgs)."""

    model_config = ConfigDict(extra="allow")

    type: str = option("vllm", "`vllm`, or `module:object` of your own engine (`tppo_rl.rollout.engine`).")
    device: Literal["cpu", "cuda"] | None = option(None, "`cpu` or `cuda`; None: by `num_gpus_per_env_runner`.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that go to the engine itself."""
        return dict(self.model_extra or {})


class RolloutOptions(Section):
    """Env-runners, windows and caps."""

    num_env_runners: int = option(1, "Env-runner actors; 0 samples in the main process (sync only).", ge=0)
    num_envs_per_env_runner: PositiveInt = option(32, "Number of slots of an env-runner.")
    num_cpus_per_env_runner: float = option(1, "CPUs of an env-runner, and the number of its engine's threads.", ge=0)
    num_gpus_per_env_runner: float = option(0, "GPUs of an env-runner; above 0 its engine runs on them.", ge=0)
    window_length: PositiveInt | None = option(64, "Most sampled tokens of a fragment; None: the whole response (PPO).")
    max_response_length: PositiveInt = option(256, "Cap on all tokens after the prompt.")
    max_prompt_length: PositiveInt = option(256, "Longest prompt, in tokens; a longer one is an error.")
    sampling: SamplingOptions = option(
        SamplingOptions(temperature=1.0),
        "`temperature` of training responses, 0.01 to 2; log-probs are taken after it.",
    )
    engine: EngineOptions = option(
        EngineOptions(),
        "`type` (`vllm`, or your own engine), `device` (`cpu`, `cuda`), `kv_cache_gib` (CPU), `linear` (CPU: `in_place`, or "
        "`packed`, which makes steps of wide models faster and updates slow; by default from a hidden size of 512 on), "
        "`multiprocessing`, and vLLM's EngineArgs. Evaluations use `max_num_seqs` slots, by default as many as training.",
    )
    engine_steps_per_sample: PositiveInt | None = option(
        None, "Engine steps of one request to an env-runner in async mode; None: min(window_length, 32)."
    )

    @property
    def window(self) -> int:
        """Most sampled tokens of a fragment."""
        return self.max_response_length if self.window_length is None else self.window_length

    @property
    def has_windows(self) -> bool:
        """Whether responses are cut before their cap."""
        return self.window < self.max_response_length

    @property
    def num_slots(self) -> int:
        """Slots of all env-runners."""
        return self.num_envs_per_env_runner * max(1, self.num_env_runners)

    @property
    def engine_steps(self) -> int:
        """Engine steps of one request in async mode."""
        return self.engine_steps_per_sample or min(self.window, 32)

    def check(self, options: Options) -> None:
        """Checks lengths."""
        if self.window > self.max_response_length:
            refuse(
                "window_length",
                self.window_length,
                f"longer than max_response_length={self.max_response_length}, so no window would ever be cut; set "
                f"window_length to {self.max_response_length} or less",
            )
