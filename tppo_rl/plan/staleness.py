"""How old tokens are when they are trained, in closed form; `plan.pipeline` plays the same run event by event.

C slots sample a token each a step of s seconds; an update takes B tokens and T(B) seconds; W is the window, k the steps of a request, eta the
bound on staleness, d the batches that may wait. rho = T(B) C / (s B) is the load: above 1 learners are the slower side.

Versions per step. In the long run an update trains as many tokens as are sampled between two updates, so the version rises by C / B a step.

Age in the window. A token that is a steps away from the end of its fragment is a C / B versions older than the last one. Over all sampled
tokens the mean of a is

    A = E[sum over fragments of l (l - 1) / 2] / E[L],          fragments of l tokens of a response of L tokens

For whole responses that is (E[L^2] / E[L] - 1) / 2: half of the mean length times E[L^2] / E[L]^2, the factor of the tail.

Learners wait (rho < 1). Fragments close at any time between two updates. The weights that sampled the last token of a fragment were made T(B)
after an update began, so of the time to the next update a share rho still belongs to the version before: rho versions. A request
samples by the version at which it was sent, behind one other, and is handed over at its end: two requests of k steps. So

    staleness = (A + 2 k) C / B + rho

Env-runners wait (rho >= 1). The queue fills up to the bound: a fragment is trained when its oldest token is eta versions old, and the
others are younger by their place in it:

    staleness = eta - A C / B

if d >= eta. With a shorter queue a fragment waits for d updates: staleness = d + (A + k / 2) C / B. In both cases eta bounds it.

Tokens of an update. All windows that are open have to close within eta updates, which takes W steps and the rest of a request, so
B >= C (W + k) / eta; and what a full queue holds beyond eta B, a request and the open windows, is trained within eta updates as well:
C (k + A) / eta tokens more. Where updates wait for whole responses, the longest of those that are open decides, and there is
no law for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tppo_rl.plan.lengths import ResponseLengths
from tppo_rl.plan.pipeline import Pipeline, steps_of_request


@dataclass(frozen=True)
class StalenessLaw:
    """What the closed form says of an asynchronous run."""

    mean: float
    """Trainer's version minus the token's, over trained tokens."""
    tokens_per_update: float
    load: float
    """Seconds of an update by seconds in which env-runners sample its tokens."""


def staleness_law(pipeline: Pipeline) -> StalenessLaw | None:
    """Returns the staleness of a run that has gone on for long, without playing it; None where updates wait for whole responses."""
    slots, bound = pipeline.slots, pipeline.max_staleness
    steps = steps_of_request(pipeline)
    age = mean_age(pipeline.lengths, pipeline.window)
    tokens = max(pipeline.batch_tokens, slots * (pipeline.window + steps) / bound)
    if tokens > pipeline.batch_tokens and pipeline.window >= pipeline.lengths.longest:
        return None
    load = _load(pipeline, tokens)
    if load < 1:
        waiting = (age + 2 * steps) * slots / tokens + load
    elif pipeline.depth < bound:
        waiting = pipeline.depth + (age + steps / 2) * slots / tokens
    else:
        tokens = max(tokens, pipeline.batch_tokens + slots * (steps + age) / bound)
        waiting = float("inf")
    return StalenessLaw(min(waiting, bound - age * slots / tokens), tokens, load)


def mean_age(lengths: ResponseLengths, window: int) -> float:
    """Mean number of tokens of its fragment after a sampled token.

    Args:
        lengths: Of responses.
        window: Most tokens of a fragment.
    """
    numbers = np.arange(lengths.longest + 1)
    whole, rest = numbers // window, numbers % window
    return lengths.expected(whole * window * (window - 1) / 2 + rest * (rest - 1) / 2) / lengths.mean


def _load(pipeline: Pipeline, tokens: float) -> float:
    update = pipeline.update_seconds + tokens * pipeline.token_seconds
    return update * pipeline.slots / (pipeline.step_seconds * tokens)
