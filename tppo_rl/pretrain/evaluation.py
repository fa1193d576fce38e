"""How good a small model is on an environment, by generation in plain torch: no engine is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2ForCausalLM, Qwen2Tokenizer

from tppo_rl.envs.text_env import TextEnv
from tppo_rl.pretrain.architecture import ASSISTANT, MAX_POSITIONS, answered, encode_prompts

MAX_RESPONSE_TOKENS = 330
"""Of an evaluation; the longest worked solution of a chain has 314."""
SKILL_BUCKETS = ((2, 4), (5, 9), (10, 19), (20, 52))


def make_env(env_id: str, env_config: Mapping[str, Any]) -> TextEnv[Any]:
    """The environment without Gymnasium's wrappers.

    Raises:
        ValueError: If it is not a `TextEnv`.
    """
    env = gymnasium.make(env_id, **env_config).unwrapped
    if not isinstance(env, TextEnv):
        raise ValueError(f"env_id={env_id!r}: not a TextEnv; a base model is made for environments of text only")
    return env


class HoldBack(LogitsProcessor):
    """Keeps ``#`` from being written before a row has ``least_steps`` times ``;`` in its response.

    Args:
        least_steps: Per row of the batch.
        prompt_length: Tokens before the responses, padding included.
    """

    def __init__(self, tokenizer: Qwen2Tokenizer, least_steps: Sequence[int], prompt_length: int) -> None:
        self.step_mark, self.answer_mark = tokenizer.convert_tokens_to_ids([";", "#"])
        self.least_steps = torch.tensor(least_steps)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) with those of ``#`` at minus infinity where it is too early."""
        steps = (input_ids[:, self.prompt_length :] == self.step_mark).sum(1)
        scores[steps < self.least_steps, self.answer_mark] = -torch.inf
        return scores


@torch.no_grad()
def generate(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    prompts: Sequence[str],
    *,
    greedy: bool,
    least_steps: Sequence[int] | None = None,
    max_tokens: int = MAX_RESPONSE_TOKENS,
    batch_size: int = 64,
) -> list[list[int]]:
    """Responses to prompts, greedy or sampled at temperature 1 (with torch's global generator).

    Args:
        least_steps: Per prompt the number of ``;`` before which ``#`` must not be written; None: no such rule.
        max_tokens: Cap on the tokens of a response; fewer where the prompts leave less of the model's positions.
        batch_size: Prompts generated together; prompts of similar length are put together.

    Returns:
        Token ids of each response, the end token included if it was written.
    """
    encoded = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [encoded[index] for index in indices]}, return_tensors="pt")
        length = batch["input_ids"].shape[1]
        rules = [] if least_steps is None else [HoldBack(tokenizer, [least_steps[i] for i in indices], length)]
        how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        room = min(max_tokens, MAX_POSITIONS - length)
        if room < 1:
            break
        rows = model.generate(**batch, max_new_tokens=room, logits_processor=LogitsProcessorList(rules), **how)
        for index, row in zip(indices, rows[:, length:].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            responses[index] = row[:end]
    return responses


@dataclass(frozen=True)
class Evaluation:
    """Share of correct answers (0 to 1) and mean response length in tokens, the end token included."""

    accuracy: float
    mean_response_tokens: float
    prompts: int


def evaluate(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    env: TextEnv[Any],
    seeds: Sequence[int],
    *,
    greedy: bool,
    hold_back: bool = False,
    max_tokens: int = MAX_RESPONSE_TOKENS,
) -> Evaluation:
    """Accuracy on the problems of these seeds. A turn has at most `max_tokens`, and none begins after as many of a response.
    ``hold_back`` keeps a chain's ``#`` back until all operands are used up: the skill of a model that stops early.
    """
    envs = [deepcopy(env) for _ in seeds]
    texts, least_steps = [], []
    for one, seed in zip(envs, seeds, strict=True):
        prompt, info = one.reset(seed=seed)
        texts.append(prompt)
        least_steps.append(len(info["operands"]) if hold_back else 0)
    correct = 0
    lengths = [0] * len(envs)
    running = list(range(len(envs)))
    while running:
        turns = generate(
            model,
            tokenizer,
            [texts[index] for index in running],
            greedy=greedy,
            least_steps=[least_steps[index] for index in running],
            max_tokens=max_tokens,
        )
        goes_on = []
        for index, turn in zip(running, turns, strict=True):
            text = tokenizer.decode(turn, skip_special_tokens=True)
            observation, _, terminated, _, info = envs[index].step(text)
            lengths[index] += len(turn)
            correct += info.get("correct", False)
            if not terminated and turn and lengths[index] < max_tokens:
                texts[index] = answered(f"{texts[index]}{ASSISTANT}{text}", observation)
                goes_on.append(index)
        running = goes_on
    return Evaluation(round(correct / len(seeds), 4), round(float(np.mean(lengths)), 2), len(seeds))


def chain_skill(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    env_id: str,
    env_config: Mapping[str, Any],
    prompts: int,
) -> dict[str, float]:
    """Greedy accuracy with ``#`` held back, on the environment's own lengths ("all") and by number of operands."""
    heldout = {**env_config, "split": "heldout"}
    env = make_env(env_id, heldout)
    skill = {"all": evaluate(model, tokenizer, env, range(prompts), greedy=True, hold_back=True).accuracy}
    uniform = make_env(env_id, {**heldout, "tail_exponent": 0.0})
    counts = {seed: len(uniform.reset(seed=seed)[1]["operands"]) for seed in range(40 * 64)}
    for low, high in SKILL_BUCKETS:
        seeds = [seed for seed, count in counts.items() if low <= count <= high][: min(prompts, 96)]
        if seeds:
            found = evaluate(model, tokenizer, uniform, seeds, greedy=True, hold_back=True)
            skill[f"{low}-{high}"] = found.accuracy
    return skill
