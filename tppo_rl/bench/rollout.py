"""An env-runner's tokens per second against the bare engine: `tppo-rl bench rollout`.

The limit is vLLM stepped with as many endless requests as there are slots, on the same engine, with the same log-probs and
with the contexts that the slots hold at that moment. The env-runner's side does what training does: windows, refills with
their prefill, environments, scoring. Response lengths are drawn from a long-tailed distribution (cap 16 x its median and
more), for the model itself is not asked when to stop.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from scipy.special import ndtri

import tppo_rl.envs  # noqa: F401  (registers the environments)
from tppo_rl.base_models import resolve_model
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.verifier import slow_sampler, verifier_figures
from tppo_rl.core.prompts import Ticket, prompt_seed
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Output, Request, Sampling
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.vllm_engine import VLLMEngine

SPREAD_LOG = 1.1
"""Standard deviation of the logarithm of response lengths."""
MAX_PROMPT = 128
_EVEN_DRAWS = 256
_WARM_UP_STEPS = 8


@dataclass
class _Side:
    """Measurements of one number of slots."""

    env_runner: list[float]
    """Tokens per second, like `bare`."""
    bare: list[float]
    update_s: list[float]
    recompute_s: list[float]


class LongTailedEngine:
    """A real engine whose requests end at lengths drawn from a lognormal distribution.

    They are drawn evenly: of some hundred in a row each comes from another part of the distribution, else a measurement
    would show how many long ones it happened to get.

    Args:
        engine: made without end-of-turn tokens.
        mean: of the lengths before the cap, tokens.
        cap: largest length, tokens.
        seed: of the lengths.
    """

    def __init__(self, engine: VLLMEngine, *, mean: float, cap: int, seed: int = 0) -> None:
        self.engine = engine
        self.version = engine.version
        self._mean_log = np.log(mean) - SPREAD_LOG**2 / 2
        self._cap = cap
        self._random = np.random.default_rng(seed)
        self._drawn: list[int] = []
        self._left: dict[str, int] = {}

    def submit(self, request: Request) -> None:
        if not self._drawn:
            self._drawn = self._draw()
        length = self._drawn.pop()
        left = self._left.setdefault(request.request_id, length)
        self.engine.submit(replace(request, max_new_tokens=min(left, request.max_new_tokens)))

    def _draw(self) -> list[int]:
        shares = (self._random.permutation(_EVEN_DRAWS) + self._random.random(_EVEN_DRAWS)) / _EVEN_DRAWS
        lengths = np.exp(self._mean_log + SPREAD_LOG * ndtri(shares))
        return lengths.round().clip(1, self._cap).astype(int).tolist()

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        for output in outputs:
            self._left[output.request_id] -= len(output.tokens)
            if output.request_ended:
                del self._left[output.request_id]
        return outputs

    def cut(self, request_ids: Sequence[str]) -> None:
        self.engine.cut(request_ids)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        self.engine.load_weights(weights, version)
        self.version = version

    def reseed(self, seed: int) -> None:
        self.engine.reseed(seed)

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        return self.engine.score(tokens)

    def stop(self) -> None:
        self.engine.stop()


def rollout_figures(
    *,
    model: str,
    slots: Sequence[int],
    window: int,
    mean_length: int,
    cap: int,
    steps: int,
    threads: int,
    repeats: int,
    verifier_seconds: float | None = None,
    workers: int = 16,
) -> list[Figure]:
    """Measures each number of slots on an engine of its own.

    Args:
        model: Folder, hub id, or name of a shipped model.
        slots: Numbers of slots.
        window: Most sampled tokens of a fragment.
        mean_length: Mean of the response lengths before the cap, tokens.
        cap: Largest response length, tokens.
        steps: Engine steps of one measurement.
        threads: Torch threads of the engine.
        repeats: Measurements of each side, taken in turn.
        verifier_seconds: Seconds of an answer. With them, answers that take time are compared with answers that take none, and
            the bare engine is left out.
        workers: Scoring workers for such answers.
    """
    figures: list[Figure] = []
    occupancy = 0.0
    for count in slots:
        chat = Chat.from_pretrained(resolve_model(model))
        engine = VLLMEngine(
            resolve_model(model),
            dtype="float32",
            max_model_len=MAX_PROMPT + cap,
            max_num_seqs=count,
            end_of_turn=(),
            num_threads=threads,
            # Lengths are drawn, so what the model would say at such positions does not matter.
            engine_args={"hf_overrides": {"max_position_embeddings": MAX_PROMPT + cap}},
        )
        long_tailed = LongTailedEngine(engine, mean=mean_length, cap=cap)
        sampler = make_sampler(long_tailed, chat, count, window, cap)
        if verifier_seconds is not None:
            limits = EpisodeLimits(MAX_PROMPT, cap, window)
            try:
                with slow_sampler(
                    long_tailed, chat, slots=count, limits=limits, seconds=verifier_seconds, workers=workers
                ) as slow:
                    figures += verifier_figures(sampler, slow, endless_tickets, steps=steps, repeats=repeats)
            finally:
                sampler.close()
                engine.stop()
            continue
        try:
            side = _measure(engine, sampler, model, steps=steps, repeats=repeats)
        finally:
            sampler.close()
            engine.stop()
        ratios = [ours / bare for ours, bare in zip(side.env_runner, side.bare, strict=True)]
        occupancy = sampler.num_productive_slot_steps / sampler.num_slot_steps
        figures += [
            figure_of(f"rollout_efficiency_{count}", ratios, "share of the bare engine"),
            figure_of(f"rollout_tokens_per_second, {count} slots", side.env_runner, "tokens/s"),
            figure_of(f"bare_engine_tokens_per_second, {count} slots", side.bare, "tokens/s"),
            figure_of(f"weight_update_seconds, {count} slots", side.update_s, "s"),
            figure_of(f"kv_recompute_seconds, {count} slots", side.recompute_s, "s"),
            figure_of(f"slot_occupancy_{count}", [occupancy], "share"),
        ]
    return figures if verifier_seconds is not None else [*figures, figure_of("slot_occupancy", [occupancy], "share")]


def make_sampler(
    engine: LongTailedEngine, chat: Chat, slots: int, window: int | None, cap: int, name: str = "train"
) -> Sampler:
    """Returns the slots of an env-runner on an engine; names keep samplers apart that share one."""

    def make_env() -> gymnasium.Env:
        return gymnasium.make("tppo_rl/ArithmeticChain-v0", disable_env_checker=True, split="train")

    limits = EpisodeLimits(MAX_PROMPT, cap, window)
    return Sampler(engine, make_env, chat, num_slots=slots, limits=limits, sampling=Sampling(), name=name)


def _measure(engine: VLLMEngine, sampler: Sampler, model: str, *, steps: int, repeats: int) -> _Side:
    tickets, weights = endless_tickets(), model_weights(model)
    side = _Side([], [], [], [])

    def run(num_steps: int) -> tuple[int, float]:
        missing = sampler.num_slots * (num_steps + 1) - sampler.num_waiting_tickets
        sampler.tickets.extend(itertools.islice(tickets, max(0, missing)))
        before, start = sampler.num_tokens_sampled, time.perf_counter()
        sampler.run(num_steps)
        return sampler.num_tokens_sampled - before, time.perf_counter() - start

    # Until lengths of open responses are those of a run that goes on, not all of them new.
    run(4 * steps)
    for repeat in range(repeats):
        tokens, seconds = run(steps)
        side.env_runner.append(tokens / seconds)
        contexts = [episode.all_tokens() for episode in sampler._open.values()]
        sampler.suspend()
        side.bare.append(_bare_tokens_per_second(engine, contexts, steps))
        sampler.resume()
        run(_WARM_UP_STEPS)
        usual = run(_WARM_UP_STEPS)[1] / _WARM_UP_STEPS
        start = time.perf_counter()
        engine.load_weights(weights, repeat + 1)
        side.update_s.append(time.perf_counter() - start)
        side.recompute_s.append(recompute_seconds(sampler, run, usual))
    return side


def recompute_seconds(sampler: Sampler, run: Callable[[int], tuple[int, float]], usual: float) -> float:
    """Steps until every slot has given a token in one step again, and returns the seconds beyond the usual ones.

    Contexts longer together than an engine step may be take several steps, which are no part of what comes after.

    Args:
        sampler: Whose engine has just taken weights.
        run: Takes a number of engine steps; returns tokens and seconds.
        usual: Seconds of a step.
    """
    seconds, productive = 0.0, -1
    while productive < sampler.num_slots:
        before = sampler.num_productive_slot_steps
        seconds += max(0.0, run(1)[1] - usual)
        productive = sampler.num_productive_slot_steps - before
    return seconds


def _bare_tokens_per_second(engine: VLLMEngine, contexts: Sequence[Sequence[int]], steps: int) -> float:
    """Steps vLLM alone with endless requests whose contexts are on average as long as the given ones."""
    vllm = engine.llm_engine
    names = [f"bare-{index}" for index in range(len(contexts))]
    params = engine.sampling_params(Sampling(), steps + 2 * _WARM_UP_STEPS)
    limit = vllm.model_config.max_model_len - params.max_tokens
    for name, context in zip(names, contexts, strict=True):
        # They grow, and those of an env-runner do not.
        kept = min(limit, max(1, len(context) - steps // 2))
        vllm.add_request(name, {"prompt_token_ids": list(context)[:kept]}, params)
    for _ in range(_WARM_UP_STEPS):
        vllm.step()
    start = time.perf_counter()
    for _ in range(steps):
        vllm.step()
    seconds = time.perf_counter() - start
    vllm.abort_request(names)
    return len(contexts) * steps / seconds


def endless_tickets() -> Iterator[Ticket]:
    """Returns tickets of prompts 0, 1, 2, …"""
    for index in itertools.count():
        yield Ticket(index, index, prompt_seed(0, index))


def model_weights(model: str) -> dict[str, Any]:
    """Returns the float32 weights of a model as an engine takes them."""
    from tppo_rl.learner.models import load_causal_lm, parse_dtype

    return dict(load_causal_lm(resolve_model(model), parse_dtype("float32")).state_dict())
