"""T-PPO's side of `tppo-rl bench peers`: `python -m tppo_rl.bench.peer_tppo SETTINGS RESULT`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID

from tppo_rl.algorithms import TPPO, TPPOConfig
from tppo_rl.algorithms.ray_start import quiet_libraries
from tppo_rl.base_models import resolve_model
from tppo_rl.bench.peer_heldout import HeldOut
from tppo_rl.bench.peers import Point, SideResult, SideSettings, read_settings, write_result
from tppo_rl.learner.models import load_causal_lm, parse_dtype

Weights = dict[str, torch.Tensor]


def run(settings: SideSettings) -> SideResult:
    """Trains until a limit, then evaluates the weights that were kept on the way, until one reaches the target.

    Evaluating on the way would give the env-runners time of their own to sample in.
    """
    started = time.perf_counter()
    quiet_libraries()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        algorithm = _build(settings, folder)
        startup = time.perf_counter() - started
        try:
            kept = _train(algorithm, settings)
        finally:
            algorithm.stop()
            ray.shutdown()
    tokens, seconds, _ = kept[-1]
    return SideResult(startup, tokens, seconds, _evaluate(kept, settings))


def _build(settings: SideSettings, folder: str) -> Any:
    config = TPPOConfig().update_from_dict(dict(settings.options))
    config.results_folder = folder
    return TPPO(config=config)


def _train(algorithm: Any, settings: SideSettings) -> list[tuple[int, float, Weights]]:
    """Sampled tokens, seconds and weights, at the beginning, every so many tokens, and at the end."""
    kept = [(0, 0.0, _weights(algorithm))]
    started = time.perf_counter()
    while True:
        result = algorithm.train()
        tokens, seconds = int(result["tokens"]["sampled"]), time.perf_counter() - started
        ended = tokens >= settings.limit_tokens or seconds >= settings.limit_seconds
        if ended or tokens >= kept[-1][0] + settings.every_tokens:
            kept.append((tokens, seconds, _weights(algorithm)))
        if ended:
            return kept


def _weights(algorithm: Any) -> Weights:
    state = algorithm.learner_group.get_state(
        components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
    )
    named: Mapping[str, Any] = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    return {name: torch.as_tensor(value).clone() for name, value in named.items()}


def _evaluate(kept: list[tuple[int, float, Weights]], settings: SideSettings) -> list[Point]:
    model = load_causal_lm(resolve_model(settings.options["policy_model"]), parse_dtype("float32"))
    heldout = HeldOut(settings.options, settings.num_prompts)
    points: list[Point] = []
    for tokens, seconds, weights in kept:
        if points and points[-1].accuracy >= settings.target and tokens < kept[-1][0]:
            continue  # Reached: only the end is of interest now.
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unexpected, unexpected
        points.append(Point(tokens, seconds, heldout.accuracy(model)))
    return points


if __name__ == "__main__":
    write_result(run(read_settings(sys.argv[1])), Path(sys.argv[2]))
