"""The laboratory: `tppo-rl critic lab`.

    source ──▶ options, engine ──▶ responses, states, continuations ──▶ Parquet ──┐
    checkpoints ──▶ critics ──▶ values along the responses ───────────────────────┴─▶ figures ──▶ critic_lab.md, .json

Samples are drawn once: the same command with another critic reads them again, and goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import make_text_env, num_problems
from tppo_rl.core.errors import OptionError, OptionWarning
from tppo_rl.core.waiting import stage
from tppo_rl.core.whole_files import make_folder
from tppo_rl.experiment.sources import exported, options_of_source
from tppo_rl.lab.samples import Samples
from tppo_rl.lab.sampling import Draw, Plan, check_one_turn

SETTINGS = "settings.json"
_MODEL = "model"
_COMPLETE = "samples_complete"
_SAVE_EVERY_S = 30.0


def measure(
    source: str,
    folder: Path,
    *,
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    plan: Plan,
    critics: Sequence[Path] = (),
    gradient_states: int = 0,
) -> dict[str, Any]:
    """Samples a policy, measures critics, and writes the report.

    Args:
        source: See `options_of_source`. The critic of a checkpoint is measured too.
        folder: Of samples and report; samples of the same settings that are there are read.
        values: Options by key, such as `env`.
        overrides: Further changes, as `key=value`.
        plan: How much is sampled.
        critics: Checkpoints or runs, whose critics are measured on the same states.
        gradient_states: States at which gradients of unfinished windows are taken; 0: none.

    Returns:
        What is written to `critic_lab.json`: `settings` and what `figures_of` returns.

    Raises:
        OptionError: an option, a folder that holds something else, a critic that is not there, or an environment of several turns.
        Exception: what the engine or the environment raises.
    """
    options, checkpoint = options_of_source(source, values, overrides)
    _check(options, plan)
    settings = _settings(source if checkpoint is None else str(checkpoint), options, plan)
    own = [checkpoint] if checkpoint is not None and options.models.critic is not None else []
    if own and options.critic.critic_sees_answer:
        own = []
        warnings.warn(
            f"{source}: its own critic is left out: it reads known answers (critic_sees_answer), which samples do not hold",
            OptionWarning,
            stacklevel=2,
        )
    loaded = _load([*own, *critics])
    _claim(folder, settings)
    samples = Samples.load(folder)
    if samples is None or not (folder / _COMPLETE).is_file():
        if checkpoint is not None:
            options = options.replace(policy_model=str(exported(checkpoint, folder / _MODEL)))
        try:
            samples = draw(options, plan, samples, _Keeper(folder, options.advantages.gamma))
        except OptionError:
            # A command that is put right must not find the settings of this one.
            if Samples.load(folder) is None:
                shutil.rmtree(folder)
            raise
        samples.save(folder, options.advantages.gamma)
        (folder / _COMPLETE).touch()
    from tppo_rl.lab.critics import values_along
    from tppo_rl.lab.quality import figures_of
    from tppo_rl.lab.report import write_report

    with stage("values of critics"):
        along = {name: values_along(critic, samples.responses) for name, critic in loaded.items()}
    with stage("figures"):
        results: dict[str, Any] = {"settings": settings} | figures_of(
            samples, along, gamma=options.advantages.gamma, window=options.rollout.window
        )
    if loaded and gradient_states:
        with stage("gradients of the policy"):
            policy = _policy(options, checkpoint)
            for name, figures in _gradients(policy, loaded, samples, options, gradient_states).items():
                results["critics"][name]["gradients"] = figures
    write_report(folder, results)
    return results


class _Keeper:
    """Saves samples while they are drawn, at most twice a minute."""

    def __init__(self, folder: Path, gamma: float) -> None:
        self._folder = folder
        self._gamma = gamma
        self._saved = time.monotonic()

    def __call__(self, samples: Samples) -> None:
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            samples.save(self._folder, self._gamma)
            self._saved = time.monotonic()


def draw(
    options: Options,
    plan: Plan,
    earlier: Samples | None = None,
    keep: Callable[[Samples], None] = lambda samples: None,
) -> Samples:
    """Starts an engine of the policy and draws samples.

    Args:
        options: Of the policy; its rewards score the responses.
        plan: How much.
        earlier: See `Draw.samples`.
        keep: See `Draw.samples`.

    Raises:
        OptionError: see `Draw.samples`.
    """
    from tppo_rl.algorithms.ray_start import quiet_libraries
    from tppo_rl.rollout.chat import Chat
    from tppo_rl.rollout.continuations import ContinuationSampler
    from tppo_rl.rollout.engine import Sampling, build_engine
    from tppo_rl.rollout.rewards import Rewards
    from tppo_rl.rollout.sampler import EpisodeLimits

    quiet_libraries()
    chat, rollout = Chat.of(options), options.rollout
    # With the seed of the first engine, continuations would be drawn with random numbers that were used.
    seed = plan.seed + (0 if earlier is None else 1 + len(earlier.continuations))
    with stage("starting an engine"):
        engine = build_engine(options, chat.end_of_turn, seed=seed)
    try:
        sampler = ContinuationSampler(
            engine,
            partial(make_text_env, options.environment, plan.split),
            chat,
            num_slots=rollout.num_envs_per_env_runner,
            limits=EpisodeLimits(rollout.max_prompt_length, rollout.max_response_length, None),
            sampling=Sampling(rollout.sampling.temperature),
            rewards=Rewards.of(options),
            name="lab",
            environment=str(options.environment.env),
        )
        try:
            return Draw(sampler, plan, num_problems(options.environment, plan.split)).samples(earlier, keep)
        finally:
            sampler.close()
    finally:
        engine.stop()


def _check(options: Options, plan: Plan) -> None:
    if options.environment.env is None:
        raise OptionError(
            "--env: a model alone does not say what it is asked; give an environment, such as tppo_rl/Dataset-v0"
        )
    if options.policy_loss.has_kl_in_rewards:
        raise OptionError(
            "kl_in='reward': the critic's values hold a penalty that continuations do not have; measure a run with kl_in 'loss'"
        )
    check_one_turn(options, plan.split)


def _load(critics: Sequence[Path]) -> dict[str, Any]:
    from tppo_rl.algorithms.ray_start import quiet_libraries
    from tppo_rl.lab.critics import load_critic

    quiet_libraries()
    loaded = {}
    for path in critics:
        name = _name(path)
        loaded[name if name not in loaded else str(path)] = load_critic(path)
    return loaded


def _policy(options: Options, checkpoint: Path | None) -> Any:
    """The policy that was sampled, with its gradients."""
    from tppo_rl.base_models import resolve_model
    from tppo_rl.learner.models import Policy, load_causal_lm, parse_dtype
    from tppo_rl.learner.saved_policy import load_module

    if checkpoint is not None:
        return load_module(checkpoint).policy
    dtype = parse_dtype(options.models.dtype)
    return Policy(load_causal_lm(resolve_model(str(options.models.policy_model)), dtype), dtype)


def _gradients(
    policy: Any, critics: Mapping[str, Any], samples: Samples, options: Options, number: int
) -> dict[str, dict[str, Any]]:
    from tppo_rl.lab.critics import values_after
    from tppo_rl.lab.gradients import Windows, measure_gradients

    own = options.advantages
    windows = Windows(
        options.rollout.window, own.gamma, own.lambda_, own.lambda_alpha, options.rollout.sampling.temperature
    )
    values = {name: partial(values_after, critic) for name, critic in critics.items()}
    return measure_gradients(policy, values, samples, windows, number)


def _name(path: Path) -> str:
    """What a critic is called in the report: the run and, where one is named, the iteration."""
    parts = path.resolve().parts
    return f"{parts[-3]}, {parts[-1]}" if len(parts) > 2 and parts[-2] == "checkpoints" else parts[-1]


def _settings(model: str, options: Options, plan: Plan) -> dict[str, Any]:
    return {
        "model": model,
        "environment": options.environment.env,
        "env_config": options.environment.env_config,
        "split": plan.split,
        "rewards": json.loads(json.dumps(options.flat()["rewards"], default=str)),
        "temperature": options.rollout.sampling.temperature,
        "max_response_length": options.rollout.max_response_length,
        "window": options.rollout.window,
        "gamma": options.advantages.gamma,
        "dtype": options.models.dtype,
        "tokens": plan.tokens,
        "responses": plan.responses,
        "prefixes": plan.prefixes,
        "continuations": plan.continuations,
        "seed": plan.seed,
    }


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that its samples are of the same settings."""
    file = folder / SETTINGS
    text = json.dumps(settings, indent=1, default=str) + "\n"
    if file.is_file():
        earlier, now = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
        changed = [key for key, value in now.items() if earlier.get(key) != value]
        if changed:
            raise OptionError(
                f"--out={str(folder)!r}: holds samples of other settings ({', '.join(changed)}); name another folder, or remove it"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise OptionError(f"--out={str(folder)!r}: is in use by something else; name another folder")
    make_folder(folder, "--out")
    file.write_text(text, encoding="utf-8")
