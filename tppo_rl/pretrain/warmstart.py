"""A small base model, made from nothing in minutes, that reinforcement learning can improve.

    tokenizer + random weights → practice: full worked solutions → lazy: demonstrations that stop too soon, or slip
                                   (the skill, with long chains)    (what is left to reinforcement learning)

After practice the model solves chains of any length. The lazy demonstrations then teach it to state the sum so far
as final after the first steps, so that the base is right on a third of the prompts; all that reinforcement
learning has to find out is that going on until the operands are used up pays. So it is with other environments whose
`reset` tells ``early_solutions``, or ``early_turns`` where it tells ``worked_turns``; those without get practice only.

To go on is one thing to find out, and some tens of prompts teach it. Demonstrations of chains that slip (``slip_share``) leave
many: the sum of each pair of digits that they get wrong has to be found out by itself.

Where ``filler_share`` is given, responses have a tail of their own: some begin with a long row of dots, as models do that "think
dot by dot" (Pfau, Merrill and Bowman, arXiv 2404.15758), whatever the prompt. Practice has them too, so that they do no harm.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from tppo_rl.envs.arithmetic_chain import MAX_OPERANDS, MODULUS, ArithmeticChain
from tppo_rl.envs.text_env import TextEnv, is_finite, is_integer, require
from tppo_rl.pretrain.architecture import (
    ASSISTANT,
    END,
    MAX_POSITIONS,
    USER,
    answered,
    build_model,
    build_tokenizer,
    encode_prompts,
)
from tppo_rl.pretrain.evaluation import MAX_RESPONSE_TOKENS, chain_skill, evaluate, make_env

logger = logging.getLogger(__name__)

IGNORED = -100
POOL = 1024
"""Demonstrations that are sorted by length together."""
TARGET_ACCURACY = (0.10, 0.60)
TARGET_SKILL = 0.92
TARGET_LONG_SKILL = 0.70


@dataclass(frozen=True)
class WarmstartOptions:
    """What `warmstart` may be told; the defaults are for ``tppo_rl/ArithmeticChain-v0``."""

    practice_steps: int = 1050
    """Optimizer steps on full worked solutions."""
    lazy_steps: int = 120
    """Optimizer steps on demonstrations that stop early."""
    batch_tokens: int = 2048
    """Padded tokens (prompt and response) of an optimizer step."""
    muon_lr: float = 0.02
    """Highest learning rate of the weight matrices in practice (Muon)."""
    adamw_lr: float = 4e-3
    """Highest learning rate of embeddings, biases and norms in practice (AdamW)."""
    lazy_lr: float = 3e-4
    """Highest learning rate of the lazy phase (AdamW for all parameters)."""
    lazy_hazard: float = 0.7
    """Probability to stop after each of the first steps where the operand just added is 4 or more."""
    diligent_hazard: float = 0.25
    """The same where it is less than 4."""
    first_steps: int = 2
    """Number of first steps with these two hazards."""
    late_hazard: float = 0.06
    """Probability to stop after each later step."""
    diligent_from: int = MAX_OPERANDS + 1
    """Chains of so many operands or more are never given up; by default there are none."""
    early_hazard: float = 0.4
    """Probability to stop after each step but the last, in environments other than chains."""
    slip_share: float = 0.0
    """Share of the pairs of the sum's last digit and the next operand at which demonstrations of chains slip."""
    slip_hazard: float = 0.8
    """Probability to be wrong by one at such a pair."""
    filler_share: float = 0.0
    """Share of the demonstrations that begin with filler, whatever the prompt: long responses that no prompt foretells."""
    filler_tokens: int = 240
    """Mean number of tokens of such filler; after each of them it ends with the same probability."""
    evaluation_prompts: int = 512
    """Held-out prompts of each evaluation."""


FILLER = "."
LAZY_FROM = 4
"""Least operand after which a lazy demonstration likes to stop. Laziness that depends on something in the text makes
greedy decoding stop on some prompts and not on others; the same hazard everywhere would give all or nothing."""

PRACTICE_STAGES = ((0.1, 6, 1.0), (0.2, 12, 1.0), (0.4, 20, 1.0), (0.65, MAX_OPERANDS, 1.0), (1.0, MAX_OPERANDS, 0.0))
"""Chains of practice: up to this share of the steps, at most so many operands, with this tail exponent. Where to look
in the prompt is learned many times faster on short chains first; from long ones alone it takes most of the steps.
Exponent 1 gives every length about the same share of the tokens, exponent 0 makes most of them long."""


@dataclass(frozen=True)
class Example:
    """A prompt with its special tokens, and the response that is learned, but for turns of the environment in it; token ids."""

    prompt: list[int]
    response: list[int]
    targets: list[int]
    """The response, with `IGNORED` in place of the environment's turns."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(tokenizer: Qwen2Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Token ids of (prompt, response) pairs; a response may be a dialog of `play`."""
    user, assistant = cast(list[int], tokenizer.convert_tokens_to_ids([USER, ASSISTANT]))
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
    responses = cast(list[list[int]], tokenizer([response + END for _, response in pairs])["input_ids"])
    return [
        Example(prompt, response, _without_turns(response, user, assistant))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _without_turns(response: Sequence[int], user: int, assistant: int) -> list[int]:
    """The tokens of a response, those from ``user`` to ``assistant`` being `IGNORED`."""
    targets: list[int] = []
    is_context = False
    for token in response:
        is_context = is_context or token == user
        targets.append(IGNORED if is_context else token)
        is_context = is_context and token != assistant
    return targets


def play(env: TextEnv[Any], turns: Sequence[str]) -> str:
    """The current episode as one text, in which the environment answers all turns but the last."""
    dialog = ""
    for turn in turns[:-1]:
        dialog = answered(dialog + turn, env.step(turn)[0]) + ASSISTANT
    return dialog + turns[-1]


def stopping_step(operands: Sequence[int], options: WarmstartOptions, rng: np.random.Generator) -> int:
    """The step after which a lazy demonstration stops: the last one, or an earlier one drawn with the hazards."""
    if len(operands) >= options.diligent_from:
        return len(operands)
    for step, operand in enumerate(operands[:-1], start=1):
        first = options.lazy_hazard if operand >= LAZY_FROM else options.diligent_hazard
        if rng.random() < (first if step <= options.first_steps else options.late_hazard):
            return step
    return len(operands)


def draw_slips(seed: int, share: float) -> np.ndarray:
    """By how much a demonstration is off that slips at a pair of digits.

    Returns:
        int64 [10, 10], by the last digit of the sum so far and the operand: -1 or 1 at ``share`` of the pairs, else 0.
    """
    rng = np.random.default_rng(seed)
    slips = np.zeros(100, np.int64)
    pairs = rng.permutation(100)[: round(share * 100)]
    slips[pairs] = rng.choice([-1, 1], len(pairs))
    return slips.reshape(10, 10)


def slipping_sums(
    operands: Sequence[int], slips: np.ndarray, slip_hazard: float, rng: np.random.Generator
) -> list[int]:
    """Sums modulo 100 after each operand, each going on from the one before, where the additions after the first slip
    with a probability; ``slips`` are those of `draw_slips`.
    """
    sums = [operands[0]]
    for operand in operands[1:]:
        slip = int(slips[sums[-1] % 10, operand])
        sums.append((sums[-1] + operand + (slip if slip and rng.random() < slip_hazard else 0)) % MODULUS)
    return sums


def demonstrations(env: TextEnv[Any], seed: int, options: WarmstartOptions | None = None) -> Iterator[tuple[str, str]]:
    """Prompts and worked solutions without end; lazy or slipping ones where ``options`` are given.

    Raises:
        ValueError: If the environment has no worked solutions.
    """
    rng = np.random.default_rng([seed, options is not None])
    slips = draw_slips(seed, options.slip_share if options is not None else 0.0)
    while True:
        prompt, info = env.reset(seed=int(rng.integers(2**62)))
        if "worked_turns" in info:
            hazard = 0.0 if options is None else options.early_hazard
            early = (turns for turns in info["early_turns"] if rng.random() < hazard)
            yield prompt, play(env, next(early, info["worked_turns"]))
        elif "worked_solution" not in info:
            raise ValueError(f"env={type(env).__name__}: it has no worked solutions to learn from; choose one that has")
        elif options is None:
            yield prompt, info["worked_solution"]
        elif isinstance(env, ArithmeticChain):
            stop_after = stopping_step(info["operands"], options, rng)
            sums = slipping_sums(info["operands"], slips, options.slip_hazard, rng)
            yield prompt, env.worked_solution(stop_after, sums)
        else:
            early = (text for text in info["early_solutions"] if rng.random() < options.early_hazard)
            yield prompt, next(early, info["worked_solution"])


def with_filler(pairs: Iterator[tuple[str, str]], seed: int, options: WarmstartOptions) -> Iterator[tuple[str, str]]:
    """The demonstrations, a share of which begins with a geometric number of dots."""
    rng = np.random.default_rng([seed, 2])
    for prompt, response in pairs:
        filled = rng.random() < options.filler_share
        yield prompt, FILLER * int(rng.geometric(1 / options.filler_tokens)) * filled + response


def micro_batches(
    pairs: Iterator[tuple[str, str]], tokenizer: Qwen2Tokenizer, batch_tokens: int, rng: np.random.Generator
) -> Iterator[list[Example]]:
    """Batches of about ``batch_tokens`` padded tokens each, of examples of similar length, in random order.

    Examples longer than the model's positions are left out.

    Raises:
        ValueError: If all of them are too long.
    """
    while True:
        pool = encode(tokenizer, [next(pairs) for _ in range(POOL)])
        pool = sorted((example for example in pool if len(example) <= MAX_POSITIONS), key=len)
        if not pool:
            raise ValueError(
                f"env_config: {POOL} prompts with their solutions all have more than {MAX_POSITIONS} characters, the "
                "model's positions; choose an easier task"
            )
        batches: list[list[Example]] = [[]]
        for example in pool:
            if batches[-1] and len(example) * (len(batches[-1]) + 1) > batch_tokens:
                batches.append([])
            batches[-1].append(example)
        for index in rng.permutation(len(batches)):
            yield batches[index]


def practice_batches(
    env_id: str,
    env_config: Mapping[str, Any],
    tokenizer: Qwen2Tokenizer,
    seed: int,
    settings: WarmstartOptions,
) -> Iterator[list[Example]]:
    """Batches of full worked solutions; a chain's `PRACTICE_STAGES` make them longer and longer."""
    rng = np.random.default_rng(seed)
    env = make_env(env_id, env_config)
    if not isinstance(env, ArithmeticChain):
        pairs = with_filler(demonstrations(env, seed), seed, settings)
        yield from micro_batches(pairs, tokenizer, settings.batch_tokens, rng)
        return
    given = 0
    for share, most, tail_exponent in PRACTICE_STAGES:
        stage = {"tail_exponent": tail_exponent, "max_operands": min(most, env.max_operands)}
        pairs = with_filler(demonstrations(make_env(env_id, {**env_config, **stage}), seed), seed, settings)
        batches = micro_batches(pairs, tokenizer, settings.batch_tokens, rng)
        end = round(share * settings.practice_steps)
        yield from islice(batches, end - given)
        given = end


def lazy_batches(
    env_id: str,
    env_config: Mapping[str, Any],
    tokenizer: Qwen2Tokenizer,
    seed: int,
    settings: WarmstartOptions,
) -> Iterator[list[Example]]:
    """Batches of demonstrations that stop too soon or slip, without end."""
    pairs = with_filler(demonstrations(make_env(env_id, env_config), seed, settings), seed, settings)
    return micro_batches(pairs, tokenizer, settings.batch_tokens, np.random.default_rng(seed))


def response_loss(model: Qwen2ForCausalLM, batch: Sequence[Example], pad: int) -> torch.Tensor:
    """Mean cross-entropy (nats a token) of the responses. Padding stands on the right, where causal attention keeps it
    from everything that counts, so no mask is needed.
    """
    longest = max(len(example) for example in batch)
    ids = torch.full((len(batch), longest), pad)
    targets = torch.full((len(batch), longest), IGNORED)
    for row, example in enumerate(batch):
        start, end = len(example.prompt), len(example)
        ids[row, :end] = torch.tensor(example.prompt + example.response)
        targets[row, start:end] = torch.tensor(example.targets)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets[:, 1:].reshape(-1))


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Linear warm-up over the first twentieth of the steps, ``highest``, and linear decay over the last three tenths."""
    return highest * min(1.0, 20 * (step + 1) / steps, (steps - step) / (0.3 * steps))


def practice_optimizers(model: Qwen2ForCausalLM, settings: WarmstartOptions) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices, AdamW for all else. Muon learns to copy from the prompt in a third of the steps
    that AdamW alone takes.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def lazy_optimizers(model: Qwen2ForCausalLM, settings: WarmstartOptions) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, as reinforcement learning uses it next."""
    return [torch.optim.AdamW(model.parameters(), lr=settings.lazy_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def train(
    model: Qwen2ForCausalLM,
    batches: Iterator[list[Example]],
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    name: str,
) -> dict[str, float]:
    """Train one batch a step. Returns steps, tokens (without padding), seconds and the mean of the last losses."""
    highest = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    began = time.perf_counter()
    tokens = 0
    losses: list[float] = []
    model.train()
    for step in range(steps):
        batch = next(batches)
        loss = response_loss(model, batch, cast(int, model.config.pad_token_id))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, lr in zip(optimizers, highest, strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr)
            optimizer.step()
            optimizer.zero_grad()
        tokens += sum(len(example) for example in batch)
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            recent = float(np.mean(losses[-100:]))
            logger.info("%s step %d of %d, loss %.3f, %.0f s", name, step + 1, steps, recent, seconds)
    model.eval()
    return {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - began, 1),
        "loss": round(float(np.mean(losses[-100:])), 4) if losses else math.nan,
    }


def parse_options(options: Mapping[str, Any]) -> WarmstartOptions:
    """Options with their defaults filled in.

    Raises:
        ValueError: On an unknown key or a bad value; names it and what is allowed.
    """
    kinds = {field.name: type(field.default) for field in fields(WarmstartOptions)}
    for key, value in options.items():
        if key not in kinds:
            raise ValueError(f"{key}={value!r}: no such option of warmstart; there are {', '.join(kinds)}")
        whole = kinds[key] is int
        least = 1 if key in ("batch_tokens", "evaluation_prompts", "filler_tokens") else 0
        require(
            is_integer(value) if whole else is_finite(value),
            key,
            value,
            f"give {'an integer' if whole else 'a number'}",
        )
        require(value >= least, key, value, f"give {least} or more")
        require(value <= 1 or not key.endswith(("_hazard", "_share")), key, value, "give 0 to 1")
    return WarmstartOptions(**options)


def warmstart(
    *, env_id: str, output_dir: str | Path, env_config: Mapping[str, Any] | None = None, seed: int = 0, **options: Any
) -> dict[str, Any]:
    """Make a small base model for an environment and save it as a Hugging Face folder.

    Args:
        env_id: Gymnasium id of a `TextEnv` with worked solutions, for example "tppo_rl/ArithmeticChain-v0".
        output_dir: Folder for model, tokenizer and ``warmstart.json``; made if missing, files are overwritten.
        env_config: Options of the environment; its split is set here (train to learn, held-out to evaluate).
        seed: Seed of weights, demonstrations and sampling, 0 or more.
        **options: Fields of `WarmstartOptions`.

    Returns:
        The report that ``warmstart.json`` holds: options, seconds, held-out accuracy (0 to 1) and mean
        response length in tokens (``sampled`` at temperature 1 and ``greedy``), for chains the ``skill`` after
        each phase, and ``within_target``, whether there is something left to learn and the skill to learn it.

    Raises:
        ValueError: On a bad option or an environment that does not fit; names what is allowed.
    """
    settings = parse_options(options)
    config = {key: value for key, value in (env_config or {}).items() if key != "split"}
    env = make_env(env_id, config)
    is_chain = isinstance(env, ArithmeticChain)
    began = time.perf_counter()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    report: dict[str, Any] = {"env_id": env_id, "env_config": config, "seed": seed, "options": asdict(settings)}

    batches = practice_batches(env_id, config, tokenizer, seed, settings)
    optimizers = practice_optimizers(model, settings)
    report["practice"] = train(model, batches, optimizers, settings.practice_steps, "practice")
    if is_chain:
        report["skill_after_practice"] = chain_skill(model, tokenizer, env_id, config, settings.evaluation_prompts)
    if is_chain or {"early_solutions", "early_turns"} & env.reset(seed=0)[1].keys():
        batches = lazy_batches(env_id, config, tokenizer, seed, settings)
        optimizers = lazy_optimizers(model, settings)
        report["lazy"] = train(model, batches, optimizers, settings.lazy_steps, "lazy")
    if is_chain:
        report["skill"] = chain_skill(model, tokenizer, env_id, config, settings.evaluation_prompts)
    heldout = make_env(env_id, {**config, "split": "heldout"})
    seeds = range(settings.evaluation_prompts)
    most = MAX_POSITIONS if settings.filler_share else MAX_RESPONSE_TOKENS
    for how in ("sampled", "greedy"):
        score = evaluate(model, tokenizer, heldout, seeds, greedy=how == "greedy", max_tokens=most)
        report[how] = asdict(score)
    report["within_target"] = _within_target(report)
    report["seconds"] = round(time.perf_counter() - began, 1)
    report["threads"] = torch.get_num_threads()
    report["versions"] = {module.__name__: module.__version__ for module in (torch, transformers, gymnasium)}
    _save(model, tokenizer, report, Path(output_dir))
    return report


def _within_target(report: Mapping[str, Any]) -> bool:
    low, high = TARGET_ACCURACY
    room = all(low <= report[how]["accuracy"] <= high for how in ("sampled", "greedy"))
    # A model that slips has no skill to show, but had it before.
    skill = report.get("skill_after_practice" if report["options"]["slip_share"] else "skill")
    if skill is None:
        return room
    longest = list(skill)[-1]
    return room and skill["all"] >= TARGET_SKILL and skill[longest] >= TARGET_LONG_SKILL


def _save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, report: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "warmstart.json").write_text(json.dumps(report, indent=2) + "\n")
