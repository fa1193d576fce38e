"""The driver's time per fragment against the number of env-runners: `tppo-rl bench scale`.

    env-runners on simulated engines ──fragments──▶ the training loop ──batch──▶ a pause ──▶ weights
      Ray actors, or a stand-in for                 the product's own,          instead of
      RLlib's group in this process                 measured                    a learner

Weak scaling: an update takes one window of every slot of every env-runner, so all env-runners generate all the time and
staleness is that of a run. Driver time is CPU time of the driver's thread; in this process without the env-runners' part.
"""

from __future__ import annotations

import gc
import pickle
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.ray_start import quiet_libraries
from tppo_rl.algorithms.tppo import TrainingLoop
from tppo_rl.base_models import resolve_model
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.simulated_group import MODEL, MeasuredGroup, RunnerLoad
from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.update_report import UpdateReport, UpdateSettings
from tppo_rl.learner.boundaries import BoundaryTracker
from tppo_rl.learner.update import FRAGMENT_REPORT_SCHEMA
from tppo_rl.observability.recorder import RunRecorder
from tppo_rl.rollout.batch_sources import Queued
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.controller import RolloutController
from tppo_rl.rollout.env_runner import VLLMEnvRunner
from tppo_rl.rollout.resting_engines import RestingEngines
from tppo_rl.rollout.sample_result import SampleResult
from tppo_rl.rollout.weight_proof import WeightProof
from tppo_rl.rollout.weight_sync import WeightSync

_ENV = "tppo_rl/ArithmeticChain-v0"
_MAX_PROMPT = 128
_MAX_STALENESS = 2
_WARM_UP_UPDATES = 3
_UPDATE_SHARE = 0.75
"""Duration of a simulated update relative to the time in which its tokens are generated: sampling is the bottleneck."""
_POLLS_OF_UPDATE = 3
"""Polls of the controller during a simulated update where env-runners are in this process and no time passes."""
_WINDOWS_OF_UPDATE = 2
"""Of every slot in one batch, as in the quickstart."""
_RUNNER_UPDATES = 400
"""Updates of a measurement times env-runners, in this process: few env-runners make few fragments an update."""
_KEPT_RESULTS = 64
_IN_PROCESS = "in process"
_ACTORS = "actors"


@dataclass
class Side:
    """Measurements of one number of env-runners, one entry a repeat."""

    driver_us: list[float] = field(default_factory=list)
    """CPU time per fragment."""
    size: list[float] = field(default_factory=list)
    """Bytes of the results per fragment."""
    fragments_per_second: list[float] = field(default_factory=list)
    staleness_mean: list[float] = field(default_factory=list)
    staleness_max: list[float] = field(default_factory=list)


def scale_figures(
    *,
    actors: Sequence[int],
    in_process: Sequence[int],
    slots: int,
    window: int,
    mean_length: int,
    cap: int,
    step_seconds: float,
    updates: int,
    repeats: int,
) -> list[Figure]:
    """Measures every number of env-runners in turn, `repeats` times. Starts Ray on this machine.

    Args:
        actors: Numbers of env-runners that are Ray actors; the largest number of them is started, once.
        in_process: Numbers of env-runners of the stand-in.
        slots: Of an env-runner.
        window: Most sampled tokens of a fragment, and engine steps of a request.
        mean_length: Mean of the response lengths, tokens.
        cap: Largest response length, tokens.
        step_seconds: What an engine step of an actor takes.
        updates: Updates of a measurement with actors. In this process they are as many as it takes to make
            `_RUNNER_UPDATES` batches of one env-runner.
        repeats: Measurements of each number.

    Raises:
        ValueError: no numbers, or one twice.
    """
    for name, numbers in (("actors", actors), ("in_process", in_process)):
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"{name}={tuple(numbers)}: give at least one number of env-runners, and each once")
    load = RunnerLoad(_ENV, slots, window, mean_length, cap, _MAX_PROMPT, step_seconds)
    quiet_libraries()
    with _own_ray(max(actors)):
        remote = _measure_actors(sorted(actors), load, updates, repeats)
        local = _measure_in_process(sorted(in_process), load, repeats)
    return [
        _growth("driver_scaling", remote),
        _growth(f"driver_scaling, {_IN_PROCESS}", local),
        *_figures(remote, _ACTORS),
        *_figures(local, _IN_PROCESS),
    ]


def _growth(name: str, sides: dict[int, Side]) -> Figure:
    """Driver time per fragment with the most env-runners over that with the fewest, repeat by repeat."""
    few, many = sides[min(sides)], sides[max(sides)]
    ratios = [most / least for most, least in zip(many.driver_us, few.driver_us, strict=True)]
    return figure_of(name, ratios, f"times {min(sides)} env-runner(s), at {max(sides)}")


def _figures(sides: dict[int, Side], kind: str) -> list[Figure]:
    figures = []
    for count, side in sides.items():
        point = f"{count} {kind}"
        figures += [
            figure_of(f"driver_time_per_fragment, {point}", side.driver_us, "CPU us"),
            figure_of(f"bytes_per_fragment, {point}", side.size, "bytes"),
            figure_of(f"staleness_mean, {point}", side.staleness_mean, "versions"),
            figure_of(f"staleness_max, {point}", side.staleness_max, "versions"),
        ]
        # In this process the env-runners take turns with the driver, so that time on the clock says nothing.
        if kind == _ACTORS:
            wall_us = [1e6 / rate for rate in side.fragments_per_second]
            figures += [
                figure_of(f"wall_time_per_fragment, {point}", wall_us, "us"),
                figure_of(f"fragments_per_second, {point}", side.fragments_per_second, "fragments/s"),
            ]
    return figures


@contextmanager
def _own_ray(num_actors: int) -> Iterator[None]:
    """A Ray of our own, whatever else runs on the machine."""
    assert not ray.is_initialized(), "the benchmark starts its own Ray"
    ray.init(
        address="local", num_cpus=num_actors + 1, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    try:
        yield
    finally:
        ray.shutdown()


def _measure_actors(counts: Sequence[int], load: RunnerLoad, updates: int, repeats: int) -> dict[int, Side]:
    config = _config(load)
    # What a run would do with each number of its own; actors that nobody asks cost nothing.
    env_runners = [
        ray.remote(num_cpus=1)(VLLMEnvRunner).remote(config=config, worker_index=index + 1)
        for index in range(max(counts))
    ]
    ray.get([env_runner.ping.remote() for env_runner in env_runners])
    sides = {count: Side() for count in counts}
    seconds = _UPDATE_SHARE * _WINDOWS_OF_UPDATE * load.window * load.step_seconds
    for _ in range(repeats):
        for count, side in sides.items():
            ray.get([env_runner.abandon.remote() for env_runner in env_runners])
            group = EnvRunnerGroup(config=config, _setup=False)
            group.reset(env_runners[:count])
            with tempfile.TemporaryDirectory() as folder:
                driver = Driver(group, run_options(load, count), Path(folder), polls=lambda: _polls_for(seconds))
                _measure(driver, side, updates)
                driver.drain()
    return sides


def _measure_in_process(counts: Sequence[int], load: RunnerLoad, repeats: int) -> dict[int, Side]:
    chat = Chat.from_pretrained(resolve_model(MODEL))
    sides = {count: Side() for count in counts}
    for _ in range(repeats):
        for count, side in sides.items():
            group = MeasuredGroup(count, load, chat)
            with tempfile.TemporaryDirectory() as folder, _collector_off():
                driver = Driver(
                    group, run_options(load, count), Path(folder), polls=lambda: iter(range(_POLLS_OF_UPDATE))
                )
                _measure(driver, side, max(2, _RUNNER_UPDATES // count), partial(getattr, group, "runner_cpu_seconds"))
                driver.recorder.close()
    return sides


@contextmanager
def _collector_off() -> Iterator[None]:
    """Switches the garbage collector off; the stand-in runs it on the env-runners' time.

    It would walk through the objects of all env-runners, which a driver does not have, on the driver's time.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _config(load: RunnerLoad) -> TPPOConfig:
    return TPPOConfig().update_from_dict(run_options(load, 1).flat())


def run_options(load: RunnerLoad, num_env_runners: int) -> Options:
    """Those of a run whose updates take `_WINDOWS_OF_UPDATE` windows of every slot."""
    return Options.of(
        env=load.env,
        policy_model=MODEL,
        num_env_runners=num_env_runners,
        num_envs_per_env_runner=load.slots,
        window_length=load.window,
        engine_steps_per_sample=load.window,
        max_response_length=load.cap,
        max_prompt_length=load.max_prompt,
        max_staleness=_MAX_STALENESS,
        train_batch_size_per_learner=_WINDOWS_OF_UPDATE * num_env_runners * load.slots * load.window,
        engine={
            "type": "tppo_rl.bench.simulated_group:simulated_engine",
            "mean_length": load.mean_length,
            "step_seconds": load.step_seconds,
        },
    )


def _polls_for(seconds: float) -> Iterator[None]:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield


class _LearnerGroup:
    """What the weight sync asks of RLlib's LearnerGroup."""

    def __init__(self) -> None:
        self.version = 0
        self._weights = {DEFAULT_MODULE_ID: {"weight": np.zeros(1024, np.float32)}}
        self.module = {DEFAULT_MODULE_ID: SimpleNamespace(kept_in_float32=())}

    def ask_first(self, function: Callable[[Any], Any]) -> Any:
        return function(self)

    def check_alive(self) -> None: ...

    def get_state(self, **_: Any) -> dict[str, Any]:
        return {COMPONENT_RL_MODULE: self._weights, WEIGHTS_SEQ_NO: self.version}


class _WeightSync(WeightSync):
    """There is no model whose weights could be proven."""

    def verify(self) -> float:
        self.wait_until_delivered()
        return 0.0


class _Pause:
    """What the loop asks of the learner client: as long as an update lasts, and a report of made-up values.

    Args:
        group: Counts the updates.
        polls: Yields as long as an update lasts; the loop's `meanwhile` is called each time.
    """

    def __init__(self, group: _LearnerGroup, polls: Callable[[], Iterator[Any]]) -> None:
        self.staleness: list[np.ndarray] = []
        """Of the tokens of the last update, an array a fragment."""
        self.num_fragments = 0
        self._group = group
        self._polls = polls

    def update(
        self, fragments: Sequence[Fragment], meanwhile: Callable[[], object], settings: UpdateSettings
    ) -> UpdateReport:
        """Waits, and counts."""
        for _ in self._polls():
            meanwhile()
        version, self._group.version = self._group.version, self._group.version + 1
        # Tables come from learners, who make them on their own time.
        staleness = [version - fragment.versions[fragment.sampled.astype(bool)] for fragment in fragments]
        self.staleness, self.num_fragments = staleness, len(fragments)
        metrics = {
            "trained_tokens": float(sum(map(len, fragments))),
            "staleness_max": float(max(of_fragment.max() for of_fragment in staleness)),
        }
        return UpdateReport(metrics, _report_of(fragments), np.bincount(np.concatenate(staleness)))


def _report_of(fragments: Sequence[Fragment]) -> pa.Table:
    values = np.full(len(fragments), 0.5, np.float32)
    columns = [
        [fragment.episode_id for fragment in fragments],
        [fragment.window_index for fragment in fragments],
        [len(fragment) for fragment in fragments],
        values,
        values,
        values,
        *[[None] * len(fragments)] * 3,
    ]
    fields = FRAGMENT_REPORT_SCHEMA
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays(arrays, schema=FRAGMENT_REPORT_SCHEMA)


class _Controller(RolloutController):
    """Keeps the last results, to count their bytes when the clock stands."""

    results: deque[SampleResult]

    def ingest(self, env_runner: int, result: SampleResult) -> None:
        self.results.append(result)
        super().ingest(env_runner, result)


class Driver:
    """The product's training loop on simulated env-runners, with a pause in the learners' place.

    Args:
        group: EnvRunnerGroup or its stand-in.
        options: Of a run with as many env-runners.
        folder: Of what the run recorder writes.
        polls: Yields as long as an update lasts.
    """

    def __init__(self, group: Any, options: Options, folder: Path, *, polls: Callable[[], Iterator[Any]]) -> None:
        self._group = group
        learner_group = _LearnerGroup()
        weights = _WeightSync(learner_group, group, proof=WeightProof(exact=True), probe=[0, 1])
        self.rollouts = _Controller(group, options, weights, restore=lambda: None)
        self.rollouts.results = deque(maxlen=_KEPT_RESULTS)
        self.learners = _Pause(learner_group, polls)
        self.recorder = RunRecorder(options, folder, str)
        self.loop = TrainingLoop(
            rollouts=self.rollouts,
            batches=Queued(self.rollouts),
            learners=self.learners,  # type: ignore[arg-type]
            boundaries=BoundaryTracker(options),
            weights=weights,
            engines=RestingEngines(group, lambda: None, sleeps=False, timeout_s=1.0),
            recorder=self.recorder,
            batch_log=None,
            meanwhile=self.rollouts.poll,
        )
        weights.push()

    def drain(self) -> None:
        """Waits for the requests that are under way, so that the next driver finds idle env-runners."""
        self.recorder.close()
        while any(self._group.num_in_flight_async_reqs(tag) for tag in ("tppo_sample", "tppo_weights")):
            self._group.fetch_ready_async_reqs(tags=["tppo_sample", "tppo_weights"], timeout_seconds=1.0)


def _measure(driver: Driver, side: Side, updates: int, others_seconds: Callable[[], float] = lambda: 0.0) -> None:
    for _ in range(_WARM_UP_UPDATES):
        driver.loop.training_step()
    cpu = wall = 0.0
    num_fragments, staleness = 0, []
    for _ in range(updates):
        started_cpu, started = time.thread_time() - others_seconds(), time.perf_counter()
        driver.loop.training_step()
        cpu += time.thread_time() - others_seconds() - started_cpu
        wall += time.perf_counter() - started
        num_fragments += driver.learners.num_fragments
        staleness += driver.learners.staleness
    every = np.concatenate(staleness)
    results = list(driver.rollouts.results)
    num_of_results = sum(result.fragments.num_rows for result in results)
    side.driver_us.append(1e6 * cpu / num_fragments)
    side.fragments_per_second.append(num_fragments / wall)
    side.size.append(sum(map(_num_bytes, results)) / num_of_results)
    side.staleness_mean.append(float(every.mean()))
    side.staleness_max.append(float(every.max()))


def _num_bytes(result: SampleResult) -> int:
    """Bytes of a result as Ray serializes it: a pickle, and the table's buffers beside it."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)
