"""TRL's side of `tppo-rl bench peers`: `python -m tppo_rl.bench.peer_trl SETTINGS RESULT`.

GRPO as TRL's users run it: one optimizer step for each batch of groups in each pass over it, loss over the tokens of the
batch, no reference.

With TRL 1.16 and the CPU build of vLLM 0.32 neither of TRL's vLLM modes runs. Colocated, the engine starts, and the first
weights end in "'Parameter' object has no attribute 'weight_loader'": TRL calls `load_weights` on a model whose linear
layers were repacked for the CPU. As a server, vLLM's command line asks for the version of a distribution named `vllm`, which
the CPU build is not; and TRL's client sends weights through NCCL, for which it demands a CUDA device.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import torch
from transformers import AutoTokenizer, TrainerCallback

import tppo_rl.envs  # noqa: F401  (registers the environments)
from tppo_rl.base_models import resolve_model
from tppo_rl.bench.peer_heldout import HeldOut
from tppo_rl.bench.peers import Point, SideResult, SideSettings, read_settings, write_result
from tppo_rl.core.prompts import prompt_seed

_GENERATION: dict[str, dict[str, Any]] = {
    "transformers": {},
    "continuous_batching": {"use_transformers_continuous_batching": True},
    "vllm_colocate": {"use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": False},
    "vllm_server": {"use_vllm": True, "vllm_mode": "server"},
}


def run(settings: SideSettings) -> SideResult:
    """Trains until the target or a limit; the clock stands while a model is evaluated."""
    started = time.perf_counter()
    torch.set_num_threads(settings.trl["threads"])
    if not settings.trl["generation"].startswith("vllm"):
        _hide_vllm()
    reward = Reward(settings.options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _build(settings, reward, folder)
        clock = _clock(trainer, settings, reward)
        trainer.add_callback(clock)
        clock.startup = time.perf_counter() - started
        trainer.train()
    return SideResult(clock.startup, reward.num_tokens, clock.seconds, clock.points)


class Reward:
    """The environment's reward for a response, as TRL calls reward functions; counts sampled tokens.

    Args:
        options: Of the run; those of the environment count.
    """

    __name__ = "environment"

    def __init__(self, options: dict[str, Any]) -> None:
        self.num_tokens = 0
        self._env = gymnasium.make(
            options["env"], disable_env_checker=True, split="train", **(options["env_config"] or {})
        )

    def prompts(self, run_seed: int, count: int) -> list[dict[str, Any]]:
        """The first prompts of a run, the same as T-PPO's with that seed; `problem` is what `reset` is to be given."""
        end = getattr(self._env.unwrapped, "num_problems", None)
        seeds = [prompt_seed(run_seed, index, end) for index in range(count)]
        return [
            {"prompt": [{"role": "user", "content": self._env.reset(seed=seed)[0]}], "problem": seed} for seed in seeds
        ]

    def __call__(
        self, prompts: Any, completions: list[Any], completion_ids: list[list[int]], problem: list[int], **_: Any
    ) -> list[float]:
        """Rewards of responses (conversations of one message each) to problems of these seeds."""
        self.num_tokens += sum(map(len, completion_ids))
        return [
            self._score(seed, completion[0]["content"]) for seed, completion in zip(problem, completions, strict=True)
        ]

    def _score(self, seed: int, text: str) -> float:
        self._env.reset(seed=seed)
        return float(self._env.step(text)[1])


def _hide_vllm() -> None:
    """TRL imports vLLM where it is installed, which takes long and is not needed to generate without it."""
    import_module("trl.import_utils").is_vllm_available = lambda *_, **__: False  # type: ignore[attr-defined]


def _build(settings: SideSettings, reward: Reward, folder: str) -> Any:
    import trl
    from datasets import Dataset

    options, own = settings.options, settings.trl
    responses = own["num_prompts"] * own["num_generations"]
    # The largest number of steps that the limit leaves room for, if every response were one token long, is too many:
    # the data are gone through again from the beginning, as TRL does, when they are used up.
    prompts = Dataset.from_list(reward.prompts(settings.seed, settings.limit_tokens // own["num_generations"]))
    arguments = trl.GRPOConfig(
        output_dir=folder,
        seed=settings.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        max_steps=10**6,
        per_device_train_batch_size=own["minibatch_responses"],
        gradient_accumulation_steps=responses // own["minibatch_responses"],
        num_generations=own["num_generations"],
        num_iterations=own["iterations"],
        max_completion_length=options["max_response_length"],
        temperature=options["sampling"]["temperature"],
        learning_rate=own["lr"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=options["lr_warmup_updates"] * own["iterations"],
        adam_beta1=options["adam_betas"][0],
        adam_beta2=options["adam_betas"][1],
        weight_decay=options["weight_decay"],
        max_grad_norm=options["grad_clip"] or 0.0,
        beta=0.0,
        epsilon=options["clip_low"],
        epsilon_high=options["clip_high"],
        loss_type="dapo",
        **_GENERATION[own["generation"]],
    )
    model = resolve_model(options["policy_model"])
    return trl.GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=reward,
        args=arguments,
        train_dataset=prompts,
    )


def _clock(trainer: Any, settings: SideSettings, reward: Reward) -> Clock:
    heldout = HeldOut(settings.options, settings.num_prompts)
    return Clock(settings, lambda: reward.num_tokens, lambda: heldout.accuracy(trainer.model))


class Clock(TrainerCallback):
    """Counts seconds of training, evaluates every so many sampled tokens, and ends the run.

    Args:
        settings: Limits, target, and tokens between two evaluations.
        num_tokens: Sampled so far.
        accuracy: Of the model as it is.
    """

    def __init__(self, settings: SideSettings, num_tokens: Any, accuracy: Any) -> None:
        self.startup = 0.0
        self.seconds = 0.0
        self.points: list[Point] = []
        self._settings = settings
        self._num_tokens = num_tokens
        self._accuracy = accuracy
        self._resumed = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._evaluate()
        self._resumed = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.perf_counter() - self._resumed
        tokens = self._num_tokens()
        ended = tokens >= self._settings.limit_tokens or self.seconds >= self._settings.limit_seconds
        if ended or tokens >= self.points[-1].tokens + self._settings.every_tokens:
            self._evaluate()
        control.should_training_stop = ended or self.points[-1].accuracy >= self._settings.target
        self._resumed = time.perf_counter()

    def _evaluate(self) -> None:
        self.points.append(Point(self._num_tokens(), self.seconds, self._accuracy()))


if __name__ == "__main__":
    write_result(run(read_settings(sys.argv[1])), Path(sys.argv[2]))
