"""What windows cost the learner: positions that the policy processes for each token that it trains.

A window brings its context along, and hindsight trains it again. Slots write responses of one length, each slot at another place
of its response; every update trains one window of each slot, as in synchronous mode, and what has become due in hindsight. The
count begins with the first update, when nothing is cached. It is a count, so one measurement is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from tppo_rl.bench.records import Figure
from tppo_rl.bench.workloads import PROMPT, random_model, whole_episodes
from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.boundaries import BoundaryTracker
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.targets import ModelSet, estimate
from tppo_rl.learner.update import UpdateStep


class _Slot(NamedTuple):
    episode: Fragment
    """A whole response."""
    start: int
    """Tokens of it that are trained."""


def window_price(*, window: int, response: int, slots: int = 16, updates: int | None = None) -> list[Figure]:
    """Counts the price of windows without a cache of contexts, with one, and with hindsight as well.

    Args:
        window: Longest fragment, sampled tokens.
        response: Sampled tokens of every response.
        slots: Windows of an update.
        updates: None: as many as two responses take.
    """
    updates = updates or 2 * -(-response // window)
    kinds = {"no cache": (0, False), "cache": (10**6, False), "cache and hindsight": (10**6, True)}
    return [
        Figure(f"processed_per_trained_token, windows of {window} of {response}, {name}", price, price, price, 1, "")
        for name, (cache, hindsight) in kinds.items()
        for price in (_price(window, response, slots, updates, cache, hindsight),)
    ]


def _price(window: int, response: int, slots: int, updates: int, cache: int, hindsight: bool) -> float:
    options = Options.of(
        window_length=window,
        max_response_length=response + 1,
        context_gradient=False,
        context_cache_tokens=cache,
        hindsight=hindsight,
        micro_batch_tokens=4096,
    )
    torch.manual_seed(0)
    policy, critic = (
        Policy(random_model("tiny", num_hidden_layers=1)),
        Critic(random_model("tiny", num_hidden_layers=1)),
    )
    caches = [ContextCache(cache) for _ in range(2)] if cache else [None, None]
    step = UpdateStep(policy, critic, options, cache=caches[0])
    tracker = BoundaryTracker(options)
    processed = trained = 0.0
    batches = _batches(window, response, slots)
    for version in range(updates):
        fragments = batches()
        batch = batch_from_fragments(fragments + tracker.due())
        _, targets = estimate(ModelSet(policy, critic), batch, options, cache=caches[1])
        result = step.run(batch, targets, version)
        tracker.after_update(fragments, result.fragment_report, version)
        processed += result.metrics["processed_tokens"]
        trained += result.metrics["trained_tokens"] + result.metrics["hindsight_tokens"]
    return processed / trained


def _batches(window: int, response: int, slots: int) -> Callable[[], list[Fragment]]:
    """Returns what gives one window of every slot; a slot whose response has ended begins another one."""
    episodes = iter(whole_episodes(256, tokens=response * slots * 100, length=PROMPT + response))
    numbers = iter(range(10**9))
    running = [_Slot(_numbered(next(episodes), next(numbers)), 0) for _ in range(slots)]
    # Slots that began together would end together.
    waits = [index * -(-response // window) // slots for index in range(slots)]

    def batch() -> list[Fragment]:
        fragments = []
        for index, slot in enumerate(running):
            if waits[index]:
                waits[index] -= 1
                continue
            fragment = _window(slot.episode, slot.start, window)
            fragments.append(fragment)
            running[index] = (
                _Slot(_numbered(next(episodes), next(numbers)), 0)
                if fragment.finished
                else _Slot(slot.episode, slot.start + window)
            )
        return fragments

    return batch


def _numbered(episode: Fragment, number: int) -> Fragment:
    return replace(episode, episode_id=number, prompt_index=number)


def _window(episode: Fragment, start: int, window: int) -> Fragment:
    """Cuts a window out of a whole response."""
    stop = min(start + window, len(episode.tokens))
    finished = stop == len(episode.tokens)
    of_window = {name: getattr(episode, name)[start:stop] for name in ("tokens", "sampled", "behavior_log_probs")}
    return replace(
        episode,
        **of_window,
        versions=episode.versions[start:stop],
        rewards=episode.rewards[start:stop],
        window_index=start // window,
        context=np.concatenate([episode.context, episode.tokens[:start]]),
        context_sampled=np.concatenate([episode.context_sampled, episode.sampled[:start]]),
        context_rewards=np.concatenate([episode.context_rewards, episode.rewards[:start]]),
        terminated=finished,
        correct=episode.correct if finished else None,
    )
