"""A critic that is trained before the policy, on the responses that a run has kept: `tppo-rl critic pretrain`.

    batches of the run ──▶ finished responses ─┬─▶ four fifths: Monte-Carlo regression, the policy frozen ──▶ folder for `critic:`
                                               └─▶ one fifth, other problems: explained variance of returns

The update is the product's own, so that losses, value forms and start of the head are those of the options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tppo_rl.config.options import OPTIONS
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.waiting import stage
from tppo_rl.experiment.learners_alone import CHANGEABLE_SECTIONS, learner_config, learners_alone
from tppo_rl.observability.batch_log import batch_files, read_batch, run_facts

_FROZEN = 2**31 - 1
"""As many updates of warm-up as no pretraining makes."""
_READ = frozenset(
    key
    for key, option in OPTIONS.items()
    if option.section in ("compute", "critic", "learners")
    or key in ("gamma", "train_batch_size_per_learner", "adam_betas", "weight_decay", "max_skipped_updates")
) - {
    "num_learners",
    "distributed",
    "learner_timeout_s",
    "critic_initial_value",
    "critic_targets",
    "critic_warmup_updates",
    "critic_warmup_responses",
    "critic_warmup_slope",
    "value_batch_tokens",
}
"""Options of the learners that pretraining follows."""


class Knowledge(NamedTuple):
    """What a critic knows of responses that it was not trained on."""

    epoch: int
    """Passes over the responses that it was trained on."""
    by_tokens: float
    """Explained variance of returns, 1 - Var(G - V) / Var(G), each token of a response with the same weight."""
    by_responses: float
    """The same, each response with the same weight."""


def finished_responses(run: Path) -> list[Fragment]:
    """Returns the responses that a run has trained to their end, each with all of its context.

    Raises:
        OptionError: the run has not kept its batches, or no response has ended in them.
    """
    found: dict[int, Fragment] = {}
    for file in batch_files(run):
        batch = read_batch(file)
        found |= {one.episode_id: _of_first_version(one) for one in batch.fragments if one.finished}
        for episode in batch.left_out:
            found.pop(episode, None)
    if not found:
        raise OptionError(f"{run}: no response has ended in its batches; let it train longer")
    return list(found.values())


def _of_first_version(response: Fragment) -> Fragment:
    """Learners that begin anew take no token for newer than their weights."""
    return replace(response, versions=np.minimum(response.versions, 0))


def split_by_problem(responses: Sequence[Fragment], share: float, seed: int) -> tuple[list[Fragment], list[Fragment]]:
    """Returns the responses to train on, and those to others of the problems.

    Args:
        responses: Finished ones.
        share: Of the problems that are held out, in (0, 1).
        seed: Of the choice.

    Raises:
        OptionError: there are too few problems for both.
    """
    problems = np.unique([one.prompt_index for one in responses])
    count = round(share * len(problems))
    if not 0 < count < len(problems):
        raise OptionError(
            f"--heldout={share:g}: there are {len(problems)} problems, of which {count} would be held out; both parts need one"
        )
    held = set(np.random.default_rng(seed).choice(problems, count, replace=False).tolist())
    return [one for one in responses if one.prompt_index not in held], [
        one for one in responses if one.prompt_index in held
    ]


def pretrain(
    run: Path, out: Path, *, changes: Mapping[str, Any], epochs: int, heldout: float
) -> Iterator[tuple[Knowledge, int]]:
    """Trains a critic, and writes it in the end in the form that the option `critic` takes.

    Args:
        run: Folder of a run with `record_batches`.
        out: Folder of the critic; must not exist, or be empty.
        changes: Options of the learners that differ from the run's.
        epochs: Passes over the responses.
        heldout: Share of the problems whose responses only measure, in (0, 1).

    Yields:
        What the critic knows before the first pass and after each, and the number of held-out responses.

    Raises:
        OptionError: the run has not kept its batches or has no critic, an option says what is sampled, or `out` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"--out={str(out)!r}: is in use; name a folder that does not exist")
    for key, value in changes.items():
        if key in OPTIONS and OPTIONS[key].section in CHANGEABLE_SECTIONS and key not in _READ:
            raise OptionError(
                f"{key}={value!r}: pretraining does not read it; what it follows are {', '.join(sorted(_READ))}"
            )
    responses = finished_responses(run)
    of_run = run_facts(run)["options"]
    if of_run.get("critic") is None:
        raise OptionError(f"{run}: its algorithm has no critic; give a run of TPPO, PPO or VAPO")
    seed = int(of_run.get("seed") or 0)
    trained, held = split_by_problem(responses, heldout, seed)
    config = learner_config(
        run, changes, {"num_learners": 0, "critic_warmup_updates": _FROZEN, "value_batch_tokens": None}
    )
    options, generator = config.options, np.random.default_rng(seed)
    gamma = options.advantages.gamma
    mean_return = float(np.mean([returns_along(one, gamma)[0] for one in trained]))
    with learners_alone(config) as learners:
        from tppo_rl.learner.learner import TPPOLearner

        learners.ask(partial(TPPOLearner.start_critic, value=mean_return))
        for epoch in range(epochs + 1):
            if epoch:
                parts = list(_batches(trained, options.batch_tokens, generator))
                for number, part in enumerate(parts, 1):
                    with stage(f"pass {epoch} of {epochs}, update {number} of {len(parts)}"):
                        learners.update(part)
            sees = options.critic.critic_sees_answer
            known = learners.ask(partial(_explained, responses=held, gamma=gamma, sees_answer=sees))[0]
            yield Knowledge(epoch, *known), len(held)
        learners.ask(partial(_save, folder=out))


def returns_along(response: Fragment, gamma: float) -> np.ndarray:
    """Returns G_t of each sampled token of a finished response, its context included, float64 [n]; environment text is no step."""
    rewards = np.concatenate([response.context_rewards, response.rewards]).astype(np.float64)
    sampled = np.concatenate([response.context_sampled, response.sampled]).astype(bool)
    found = rewards[sampled]
    for place in range(len(found) - 2, -1, -1):
        found[place] += gamma * found[place + 1]
    return found


def explained_variance(returns: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns 1 - Var(G - V) / Var(G) over all tokens, with one weight for each token, and with one for each response; 0 without variance."""
    lengths = np.array([len(one) for one in returns])
    all_returns, all_values = np.concatenate(returns), np.concatenate(values)
    found = []
    for weights in (np.ones(len(all_returns)), np.repeat(1 / lengths, lengths)):
        variance = _variance(all_returns, weights)
        found.append(1 - _variance(all_returns - all_values, weights) / variance if variance else 0.0)
    return found[0], found[1]


def _variance(values: np.ndarray, weights: np.ndarray) -> float:
    mean = np.average(values, weights=weights)
    return float(np.average((values - mean) ** 2, weights=weights))


def _batches(responses: Sequence[Fragment], tokens: int, generator: np.random.Generator) -> Iterator[list[Fragment]]:
    """Yields all responses in another order, in parts of about so many sampled tokens."""
    part: list[Fragment] = []
    size = 0
    for index in generator.permutation(len(responses)):
        part.append(responses[index])
        size += int(np.count_nonzero(responses[index].context_sampled)) + len(responses[index])
        if size >= tokens:
            yield part
            part, size = [], 0
    if part:
        yield part


def _explained(learner: Any, *, responses: Sequence[Fragment], gamma: float, sees_answer: bool) -> tuple[float, float]:
    from tppo_rl.lab.critics import values_after

    answers = [one.answer if sees_answer else one.answer[:0] for one in responses]
    sequences = [
        np.concatenate([answer, one.context, one.tokens])[:-1] for answer, one in zip(answers, responses, strict=True)
    ]
    sampled = [np.concatenate([one.context_sampled, one.sampled])[1:].astype(bool) for one in responses]
    along = values_after(learner.language_model().critic, sequences)
    values = [values[len(answer) :][chosen] for answer, values, chosen in zip(answers, along, sampled, strict=True)]
    return explained_variance([returns_along(one, gamma) for one in responses], values)


def _save(learner: Any, *, folder: Path) -> None:
    from tppo_rl.learner.saved_policy import save_critic

    save_critic(learner.language_model(), folder)
