"""Time per trained token, occupancy, staleness and intensity of each mode and window: `predict`, `recommend`.

    async    env-runners and learners work at the same time; the slower side sets the pace, unless the bound on staleness
             holds one of them back (simulated, `tppo_rl.plan.pipeline`)
    sync     the sides take turns: one window of every slot, then the update
    ppo      the same with one response of every slot

Env-runners and learners have devices of their own, as this package places them. With `colocated` the sides of the sync
modes take turns on all devices; on one device those of every mode do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.costs import Costs
from tppo_rl.plan.generation import Generation, generation
from tppo_rl.plan.lengths import ResponseLengths
from tppo_rl.plan.pipeline import Pipeline, simulate
from tppo_rl.plan.roofline import ModelShape
from tppo_rl.plan.staleness import staleness_law
from tppo_rl.plan.windows import LearnerWork, Mode, work_per_token

SHORTEST_WINDOW = 8
"""Tokens; the shortest window that `default_windows` tries."""
_NEARLY_BEST = 1.02
"""A window this much slower than the fastest is as good: of such, the longest is recommended."""


@dataclass(frozen=True)
class Workload:
    """A run to be planned."""

    lengths: ResponseLengths
    slots: int = 64
    """Of one env-runner."""
    prompt_length: float = 16.0
    """Mean, tokens."""
    batch_tokens: int = 4096
    """Trained tokens of an update in async mode; the other modes train what one step of all slots gives."""
    devices: int = 2
    """To be divided between env-runners and learners."""
    max_staleness: int = 2
    policy_epochs: int = 1
    critic_epochs: int = 1
    engine_steps: int = 32
    """Of one request to an env-runner; at most a window."""
    colocated: bool = False
    """Whether in sync modes every device has an env-runner and a learner, which take turns."""
    cached_contexts: bool = False
    """Whether learners keep keys and values of open episodes (`context_cache_tokens`)."""

    def __post_init__(self) -> None:
        for key in ("slots", "batch_tokens", "devices", "max_staleness", "policy_epochs", "critic_epochs"):
            if getattr(self, key) < 1:
                raise OptionError(f"{key}={getattr(self, key)} will not do: give at least 1")
        if self.prompt_length < 0:
            raise OptionError(f"prompt_length={self.prompt_length:g} will not do: give a number of tokens, at least 0")


@dataclass(frozen=True)
class Prediction:
    """One mode at one window length."""

    mode: Mode
    window: int | None
    """Tokens; None is whole responses."""
    env_runners: int
    """Devices that sample."""
    learners: int
    """Devices that train; some or all may be the same."""
    occupancy: float
    tokens_per_step: float
    """Of one env-runner."""
    tokens_per_update: float
    generation_s: float
    """Seconds of sampling for each trained token, of all env-runners together; weight updates included."""
    learner_s: float
    """Seconds of training for each trained token, of all learners together."""
    seconds_per_token: float
    processed_per_trained_token: float
    """The policy's forward positions for each trained token."""
    staleness_mean: float
    """Policy versions."""
    staleness_max: int
    staleness_law: float | None
    """Its mean in closed form (`plan.staleness`); None where there is none."""
    intensity: float
    """Operations per byte of generation."""


def default_windows(cap: int) -> list[int]:
    """Returns the cap, its half, quarter and so on, down to `SHORTEST_WINDOW` tokens."""
    windows = [cap]
    while windows[-1] // 2 >= SHORTEST_WINDOW:
        windows.append(windows[-1] // 2)
    return windows


def predict(workload: Workload, costs: Costs, shape: ModelShape, windows: Sequence[int]) -> list[Prediction]:
    """Returns a prediction for each mode and window, each with its best split of the devices.

    Args:
        workload: The run.
        costs: Of the machine.
        shape: Of the policy.
        windows: Tokens; those above the longest response come out as whole responses.

    Raises:
        OptionError: a window below 1, or more slots than the engine's memory has room for.
    """
    for window in windows:
        if window < 1:
            raise OptionError(f"windows={window} will not do: give lengths in tokens, at least 1")
    _check_room(workload, costs, shape)
    cases: list[tuple[Mode, int | None]] = [(mode, window) for mode in ("async", "sync") for window in windows]  # type: ignore[misc]
    return [_predict(workload, costs, shape, mode, window) for mode, window in [*cases, ("ppo", None)]]


def recommend(predictions: Iterable[Prediction]) -> Prediction:
    """Returns the longest window of the fastest mode that is nearly as fast as its fastest one.

    A longer window leaves less to the value at its boundary.
    """
    predictions = list(predictions)
    fastest = min(predictions, key=lambda one: one.seconds_per_token)
    good = [
        one
        for one in predictions
        if one.mode == fastest.mode and one.seconds_per_token <= _NEARLY_BEST * fastest.seconds_per_token
    ]
    return max(good, key=lambda one: one.window or 0)


def learner_work(workload: Workload, mode: Mode, window: int | None) -> LearnerWork:
    """Returns the work for one trained token, all epochs included."""
    work = _work_per_token(workload, mode, window)
    return replace(
        work, policy=work.policy.times(workload.policy_epochs), critic=work.critic.times(workload.critic_epochs)
    )


def _work_per_token(workload: Workload, mode: Mode, window: int | None) -> LearnerWork:
    return work_per_token(
        workload.lengths, mode, window, workload.prompt_length, cached_contexts=workload.cached_contexts
    )


def _check_room(workload: Workload, costs: Costs, shape: ModelShape) -> None:
    held = generation(
        workload.lengths,
        "async",
        slots=workload.slots,
        prompt_length=workload.prompt_length,
        cost=costs.engine,
        shape=shape,
    ).held_tokens
    if held > costs.engine.room:
        most = int(workload.slots * costs.engine.room / held)
        raise OptionError(
            f"slots={workload.slots}: they hold {held:,.0f} tokens on average, and the memory has room for the keys and "
            f"values of {costs.engine.room:,.0f}; give at most {most} slots, or raise tensor_parallel"
        )


def _predict(workload: Workload, costs: Costs, shape: ModelShape, mode: Mode, window: int | None) -> Prediction:
    shared = workload.devices == 1 or (workload.colocated and mode != "async")
    splits = [_Split(count, workload.devices - count) for count in range(1, workload.devices)]
    if shared:
        splits = [_Split(workload.devices, workload.devices)]
    sides = [_Sides(workload, costs, shape, mode, window, split) for split in splits]
    at_once = mode == "async" and not shared
    best = min(sides, key=lambda side: max(side.seconds) if at_once else sum(side.seconds))
    generation_s, learner_s = best.seconds
    seconds, staleness, law = generation_s + learner_s, (0.0, 0), None
    tokens = best.tokens_per_update
    if mode == "async":
        pipeline = best.pipeline(shared=shared)
        result, law = simulate(pipeline), staleness_law(pipeline)
        seconds, staleness = result.seconds_per_token, (result.staleness_mean, result.staleness_max)
        tokens = result.tokens_per_update
        generation_s, learner_s = best.seconds_at(tokens)
    return Prediction(
        mode=mode,
        window=window,
        env_runners=best.split.env_runners,
        learners=best.split.learners,
        occupancy=best.generation.occupancy,
        tokens_per_step=best.generation.tokens_per_step,
        tokens_per_update=tokens,
        generation_s=generation_s,
        learner_s=learner_s,
        seconds_per_token=seconds,
        processed_per_trained_token=_work_per_token(workload, mode, window).policy.positions,
        staleness_mean=staleness[0],
        staleness_max=staleness[1],
        staleness_law=0.0 if mode != "async" else None if law is None else law.mean,
        intensity=best.generation.intensity,
    )


@dataclass(frozen=True)
class _Split:
    env_runners: int
    learners: int


class _Sides:
    """Generation and training of one mode and window, on one split of the devices."""

    def __init__(
        self, workload: Workload, costs: Costs, shape: ModelShape, mode: Mode, window: int | None, split: _Split
    ) -> None:
        self.split = split
        self._workload, self._window = workload, window
        self._slots = workload.slots * split.env_runners
        self.tokens_per_update = _tokens_per_update(workload, mode, window, self._slots)
        self.generation: Generation = generation(
            workload.lengths,
            mode,
            slots=workload.slots,
            prompt_length=workload.prompt_length,
            cost=costs.engine,
            shape=shape,
            env_runners=split.env_runners,
        )
        # What slots hold is prefilled in the step after an update, which is made anyway.
        recompute = costs.engine.seconds(0, 0, self.generation.held_tokens) - costs.engine.seconds(0, 0, 0)
        self._weight_s = float(costs.engine.weight_update + recompute)
        work = learner_work(workload, mode, window)
        self._token_s = costs.learner.seconds(work, 0.0) / split.learners
        # An optimizer step costs each learner as much, however many there are.
        self._update_s = costs.learner.seconds(work.times(0.0), 1.0)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of sampling and of training, for each trained token."""
        return self.seconds_at(self.tokens_per_update)

    def seconds_at(self, tokens: float) -> tuple[float, float]:
        """The same where updates have so many tokens."""
        return (
            self.generation.seconds_per_token / self.split.env_runners + self._weight_s / tokens,
            self._token_s + self._update_s / tokens,
        )

    def pipeline(self, *, shared: bool) -> Pipeline:
        """Returns the asynchronous run; where both sides share a device each is slowed down by the other."""
        workload, lengths = self._workload, self._workload.lengths
        slow = [sum(self.seconds) / one if shared and one > 0 else 1.0 for one in self.seconds]
        steps_s = self.generation.seconds_per_token * workload.slots
        window = min(self._window or lengths.longest, lengths.longest)
        return Pipeline(
            lengths=lengths,
            window=window,
            # As the option of that name is by default.
            max_queued_batches=None if window < lengths.longest else 1.0,
            slots=self._slots,
            batch_tokens=workload.batch_tokens,
            max_staleness=workload.max_staleness,
            engine_steps=workload.engine_steps,
            step_seconds=steps_s * slow[0],
            weight_seconds=self._weight_s * slow[0],
            update_seconds=self._update_s * slow[1],
            token_seconds=self._token_s * slow[1],
        )


def _tokens_per_update(workload: Workload, mode: Mode, window: int | None, slots: int) -> float:
    if mode == "async":
        return float(workload.batch_tokens)
    return float(slots * window) if window is not None else slots * workload.lengths.mean
