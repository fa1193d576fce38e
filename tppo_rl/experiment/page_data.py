"""The data of `tppo-rl rollouts --html` as one block of bytes: a JSON header and columns of numbers.

    4 bytes     length of the header, little endian
    header      JSON; `arrays` says for each column its type, offset after the header and length
    columns     little endian, each from a multiple of 8 on

Columns of tokens have one number for each token of each response, one response after the other. Numbers are rounded to two
bytes: log-probs to 1/2000 nat, values and advantages to 1/32000 of the largest of their response.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tppo_rl.core.fragments import NO_VERSION
from tppo_rl.experiment.recorded_episodes import Episode, Window
from tppo_rl.experiment.rollout_view import without_what_all_share
from tppo_rl.experiment.token_pieces import pieces_of

LOG_PROB_STEPS = 2000
"""Steps of a nat."""
UNKNOWN = 65535
"""Log-prob or version that was not kept, or that there is not."""
LARGEST = 32000
_MISSING = -32768
_ALIGNMENT = 8
_LONGEST_PROMPT = 20_000
"""Letters of a prompt; the middle of a longer one is left out."""
_LONGEST_NAME = 300
"""Letters of what stands in the list."""


def pack(episodes: Sequence[Episode], tokenizer: Any, facts: dict[str, Any]) -> bytes:
    """Returns header and columns.

    Args:
        episodes: In the order of the page.
        tokenizer: Of the run's model.
        facts: What the page says of the run.
    """
    columns: dict[str, np.ndarray] = _token_columns(episodes) | _episode_columns(episodes) | _window_columns(episodes)
    ids = np.concatenate([np.zeros(0, np.int64), *(episode.tokens for episode in episodes)])
    unique, places = np.unique(ids, return_inverse=True)
    columns["piece"] = places.astype(np.uint16 if len(unique) <= UNKNOWN else np.uint32)
    columns["piece_id"] = unique.astype(np.uint32)
    pieces = pieces_of(tokenizer, unique.tolist())
    prompts, columns["episode_prompt"] = _prompts(episodes, tokenizer)
    header: dict[str, Any] = {
        "facts": facts,
        "prompts": [_shortened(prompt) for prompt in prompts],
        "names": [name[:_LONGEST_NAME] for name in without_what_all_share(prompts)],
        "pieces": pieces.texts,
        "parts": {str(position): raw.hex() for position, raw in pieces.parts.items()},
        "special": sorted(pieces.special),
        "log_prob_steps": LOG_PROB_STEPS,
        "largest": LARGEST,
        "has": [name for name in ("values", "advantages") if f"token_{name}" in columns],
    }
    return _block(header, columns)


def _block(header: dict[str, Any], columns: dict[str, np.ndarray]) -> bytes:
    arrays: dict[str, tuple[str, int, int]] = {}
    parts: list[bytes] = []
    offset = 0
    for name, column in columns.items():
        little = column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes()
        arrays[name] = (column.dtype.name, offset, len(column))
        padding = -len(little) % _ALIGNMENT
        parts += [little, bytes(padding)]
        offset += len(little) + padding
    text = json.dumps(header | {"arrays": arrays}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 4) % _ALIGNMENT)
    return len(text).to_bytes(4, "little") + text + b"".join(parts)


def _token_columns(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    sizes = np.array([len(episode.tokens) for episode in episodes], np.int64)
    rewards = np.concatenate([np.zeros(0, np.float32), *(episode.rewards for episode in episodes)])
    at = np.flatnonzero(rewards)
    columns = {
        "token_start": np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32),
        "token_sampled": np.concatenate([np.zeros(0, np.uint8), *(episode.sampled for episode in episodes)]),
        "token_log_prob": _of_windows(episodes, UNKNOWN, np.uint16, _log_probs),
        "token_version": _of_windows(episodes, NO_VERSION, np.int32, _versions),
        "reward_at": at.astype(np.uint32),
        "reward": rewards[at].astype(np.float32),
    }
    for name in ("values", "advantages"):
        if any(getattr(window.recorded, name) is not None for episode in episodes for window in episode.windows):
            columns |= _scaled(episodes, name)
    return columns


def _log_probs(window: Window) -> np.ndarray:
    steps = np.minimum(np.round(-window.fragment.behavior_log_probs * LOG_PROB_STEPS), UNKNOWN - 1).clip(0)
    return np.where(window.fragment.sampled.astype(bool), steps, UNKNOWN)


def _versions(window: Window) -> np.ndarray:
    # What is not trained has no staleness.
    return np.full(len(window.fragment.tokens), NO_VERSION) if window.heldout else window.fragment.versions


def _of_windows(
    episodes: Sequence[Episode], missing: int, dtype: Any, numbers: Callable[[Window], np.ndarray]
) -> np.ndarray:
    columns = [np.zeros(0, dtype)]
    for episode in episodes:
        column = np.full(len(episode.tokens), missing, dtype)
        for window in episode.windows:
            column[window.recorded.start : window.stop] = numbers(window)
        columns.append(column)
    return np.concatenate(columns)


def _scaled(episodes: Sequence[Episode], name: str) -> dict[str, np.ndarray]:
    """A column of two bytes and the scale of each episode."""
    columns, scales = [np.zeros(0, np.int16)], np.zeros(len(episodes), np.float32)
    for place, episode in enumerate(episodes):
        numbers = np.full(len(episode.tokens), np.nan, np.float32)
        for window in episode.windows:
            known = getattr(window.recorded, name)
            if known is not None:
                numbers[window.recorded.start : window.stop] = known
        finite = np.isfinite(numbers)
        scales[place] = max(float(np.abs(numbers[finite]).max(initial=0.0)), 1e-12) / LARGEST
        column = np.full(len(numbers), _MISSING, np.int16)
        column[finite] = np.round(numbers[finite] / scales[place]).clip(-LARGEST, LARGEST)
        columns.append(column)
    return {f"token_{name}": np.concatenate(columns), f"{name}_scale": scales}


def _episode_columns(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    def column(dtype: Any, number: Callable[[Episode], float]) -> np.ndarray:
        return np.array([number(episode) for episode in episodes], dtype)

    def end(episode: Episode) -> int:
        last = episode.last
        return 2 if last.truncated else int(last.terminated)

    def correct(episode: Episode) -> int:
        return -1 if episode.last.correct is None else int(episode.last.correct)

    def staleness(episode: Episode) -> float:
        return np.nan if episode.staleness is None else episode.staleness

    # A held-out prompt is in no group, and its index may be that of a prompt of the training.
    groups = [-1 - place if one.heldout else one.last.prompt_index for place, one in enumerate(episodes)]
    return {
        "episode_id": column(np.float64, lambda one: one.last.episode_id),
        "episode_group": np.array(groups, np.float64),
        "episode_is_heldout": column(np.uint8, lambda one: one.heldout),
        "episode_iteration": column(np.int32, lambda one: one.iteration),
        "episode_reward": column(np.float32, lambda one: one.reward),
        "episode_length": column(np.uint32, lambda one: one.length),
        "episode_staleness": column(np.float32, staleness),
        "episode_correct": column(np.int8, correct),
        "episode_end": column(np.uint8, end),
        "episode_is_estimated": column(np.uint8, lambda one: one.has_estimates),
        "window_first": np.concatenate([[0], np.cumsum([len(one.windows) for one in episodes])]).astype(np.uint32),
    }


def _window_columns(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    windows = [window for episode in episodes for window in episode.windows]
    values = [window.recorded.boundary_value for window in windows]
    return {
        "window_index": np.array([window.fragment.window_index for window in windows], np.int32),
        "window_start": np.array([window.recorded.start for window in windows], np.uint32),
        "window_stop": np.array([window.stop for window in windows], np.uint32),
        "window_iteration": np.array([window.iteration for window in windows], np.int32),
        "window_boundary_value": np.array([np.nan if value is None else value for value in values], np.float32),
    }


def _prompts(episodes: Sequence[Episode], tokenizer: Any) -> tuple[list[str], np.ndarray]:
    places: dict[bytes, int] = {}
    texts: list[str] = []
    column = []
    for episode in episodes:
        key = episode.prompt.tobytes()
        if key not in places:
            places[key] = len(texts)
            texts.append(str(tokenizer.decode(episode.prompt.tolist(), skip_special_tokens=True)))
        column.append(places[key])
    return texts, np.array(column, np.uint32)


def _shortened(text: str) -> str:
    half = _LONGEST_PROMPT // 2
    return text if len(text) <= _LONGEST_PROMPT else f"{text[:half]} … {text[-half:]}"
