"""Held-out accuracy for a comparison of trainers: the same prompts, sampling and scoring for every side's model.

Generation is transformers' own, in this process: no engine of either side has a part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
from transformers import AutoTokenizer, GenerationConfig

import tppo_rl.envs  # noqa: F401  (registers the environments)
from tppo_rl.base_models import resolve_model
from tppo_rl.core.prompts import heldout_tickets
from tppo_rl.rollout.chat import Chat

_BATCH = 128


class HeldOut:
    """The first held-out prompts of an environment.

    Args:
        options: Of the run (`tppo_rl.config.options`); those of model, environment, sampling and caps count.
        num_prompts: Prompts to answer.
    """

    def __init__(self, options: Mapping[str, Any], num_prompts: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(resolve_model(options["policy_model"]), padding_side="left")
        self._chat = Chat(self._tokenizer)
        self._env = gymnasium.make(
            options["env"], disable_env_checker=True, split="heldout", **(options["env_config"] or {})
        )
        self._seeds = [ticket.seed for ticket in heldout_tickets(num_prompts)]
        prompts = [self._chat.prompt(self._env.reset(seed=seed)[0]) for seed in self._seeds]
        # Prompts of similar length together: their responses are of similar length too.
        order = sorted(range(num_prompts), key=lambda index: len(prompts[index]))
        self._batches = [
            [(self._seeds[index], prompts[index]) for index in order[start : start + _BATCH]]
            for start in range(0, num_prompts, _BATCH)
        ]
        temperature = options["sampling"]["temperature"]
        self._generation = GenerationConfig(
            max_new_tokens=options["max_response_length"],
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0,
            eos_token_id=self._chat.end_of_turn,
            pad_token_id=self._tokenizer.pad_token_id,
        )

    @torch.no_grad()
    def accuracy(self, model: Any) -> float:
        """Share of right answers of a causal language model of transformers, one response to each prompt.

        The same random numbers each time; those of the caller are left alone.
        """
        was_training, threads = model.training, torch.get_num_threads()
        model.eval()
        # A small model gains nothing from a second thread, and loses much where something else runs on its core.
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            correct = sum(self._num_correct(model, batch) for batch in self._batches)
        model.train(was_training)
        torch.set_num_threads(threads)
        return correct / len(self._seeds)

    def _num_correct(self, model: Any, batch: list[tuple[int, list[int]]]) -> int:
        inputs = self._tokenizer.pad({"input_ids": [prompt for _, prompt in batch]}, return_tensors="pt")
        rows = model.generate(**inputs, generation_config=self._generation)[:, inputs["input_ids"].shape[1] :]
        return sum(self._is_correct(seed, row) for (seed, _), row in zip(batch, rows.tolist(), strict=True))

    def _is_correct(self, seed: int, tokens: list[int]) -> bool:
        self._env.reset(seed=seed)
        return bool(self._env.step(self._chat.text(tokens))[4].get("correct", False))
