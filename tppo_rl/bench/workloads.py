"""What the benchmarks train on: made-up fragments, and models of known shapes with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tppo_rl.core.fragments import Fragment

PROMPT = 16
"""Tokens of every prompt."""
LONGEST_RESPONSE = 320
_MEAN_LOG, _SPREAD_LOG = 2.8, 1.0

RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 256,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "50m": {
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1b": {
        "vocab_size": 32768,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 21,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "qwen2.5-1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
"""Shapes of Qwen2 models. Attention heads are at least 32 wide: vLLM has no narrower ones on a CPU."""


def random_model(name: str, **changes: Any) -> Any:
    """Returns a causal language model of a shape of `RANDOM_MODELS`, with changes to it, float32, from torch's seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = RANDOM_MODELS[name] | changes
    config = Qwen2Config(
        **shape, max_position_embeddings=32768, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1
    )
    return Qwen2ForCausalLM(config)


def tppo_fragments(vocabulary: int, *, tokens: int, window: int) -> list[Fragment]:
    """Returns the windows of episodes with long-tailed responses (log-normal, at most `LONGEST_RESPONSE` tokens).

    A run that has gone on for some time trains such a mix: windows of all ages, short last ones, contexts of any length.

    Args:
        vocabulary: Tokens are below it.
        tokens: Sampled tokens, at least.
        window: Most sampled tokens of a fragment.
    """
    rng = np.random.default_rng(0)
    fragments: list[Fragment] = []
    sampled = 0
    while sampled < tokens:
        response = int(np.clip(rng.lognormal(_MEAN_LOG, _SPREAD_LOG), 1, LONGEST_RESPONSE))
        sequence = rng.integers(2, vocabulary, PROMPT + response).astype(np.int32)
        for index, start in enumerate(range(0, response, window)):
            stop = min(start + window, response)
            fragments.append(_fragment(rng, sequence, start, stop, index, vocabulary, finished=stop == response))
        sampled += response
    return fragments


def whole_episodes(vocabulary: int, *, tokens: int, length: int) -> list[Fragment]:
    """Returns finished episodes of one length.

    Args:
        vocabulary: Tokens are below it.
        tokens: Sampled tokens, at least.
        length: Tokens of each, prompt included.

    Raises:
        ValueError: there is no room for a response.
    """
    response = length - PROMPT
    if response < 1:
        raise ValueError(f"length={length}: give lengths above {PROMPT}, the tokens of a prompt")
    rng = np.random.default_rng(0)
    fragments = []
    for _ in range(-(-tokens // response)):
        sequence = rng.integers(2, vocabulary, length).astype(np.int32)
        fragments.append(_fragment(rng, sequence, 0, response, 0, vocabulary, finished=True))
    return fragments


def _fragment(
    rng: np.random.Generator,
    sequence: np.ndarray,
    start: int,
    stop: int,
    window_index: int,
    vocabulary: int,
    *,
    finished: bool,
) -> Fragment:
    """Cuts the response's tokens from `start` to `stop` out of prompt and response."""
    context, count = PROMPT + start, stop - start
    rewards = np.zeros(count, np.float32)
    rewards[-1] = rng.choice([-1.0, 1.0]) if finished else 0.0
    return Fragment(
        episode_id=int(rng.integers(2**31)),
        prompt_index=0,
        env_runner=0,
        window_index=window_index,
        prompt_length=PROMPT,
        context=sequence[:context],
        context_sampled=(np.arange(context) >= PROMPT).astype(np.uint8),
        context_rewards=np.zeros(context, np.float32),
        tokens=sequence[context : PROMPT + stop],
        sampled=np.ones(count, np.uint8),
        behavior_log_probs=np.full(count, -np.log(vocabulary), np.float32),
        versions=np.zeros(count, np.int32),
        rewards=rewards,
        terminated=finished,
        truncated=False,
        correct=bool(rewards[-1] > 0) if finished else None,
    )
