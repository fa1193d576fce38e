"""RLlib's host of the update step. Modules, optimizers, checkpoints, metrics and the process group are RLlib's."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray.rllib.connectors.learner import LearnerConnectorPipeline
from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)

from tppo_rl.config.sections.advantages import AUTO
from tppo_rl.core.background import begun
from tppo_rl.core.fragments import Fragment, concatenate_tables, fragments_from_table, table_from_fragments
from tppo_rl.core.update_report import DEFAULT_SETTINGS, UpdateSettings
from tppo_rl.kernels.denormals import flushed_subnormals
from tppo_rl.kernels.half_precision import warn_of_slow_dtype
from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.collective import current_collective
from tppo_rl.learner.connectors import ESTIMATES, connectors
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.critic_start import initial_value, is_cold, start_critic
from tppo_rl.learner.empty_models import without_weights
from tppo_rl.learner.models import parse_dtype
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.learner.optimizers import parameters_of, trainable
from tppo_rl.learner.packing import check_packing
from tppo_rl.learner.rllib_internals import MODULE_STATE, InsideTorchLearner
from tppo_rl.learner.sharding import gather_optimizer_state
from tppo_rl.learner.slices import TakenSlices, take_learner
from tppo_rl.learner.targets import Estimates, Targets, default_stages
from tppo_rl.learner.update import UpdateResult, UpdateStep
from tppo_rl.learner.value_buffer import ValueBuffer
from tppo_rl.learner.weight_checksum import weights_checksum
from tppo_rl.maths.advantages import load_compiled

FRAGMENT_REPORT = "fragment_report"
"""Key of the Arrow table (`FRAGMENT_REPORT_SCHEMA`) beside the metrics in the result of `update`."""
STALENESS_HISTOGRAM = "staleness_histogram"
"""Key of the int64 histogram beside the metrics in the result of `update`."""

_UPDATE_STEP = "update_step"


class TPPOLearner(InsideTorchLearner):
    """Updates a `LanguageModelModule` on Arrow tables of fragments.

    It reads its options from `config.options`. There is no DDP wrapper: the update step sums gradients over RLlib's process
    group itself, so that learners may hold shards of any size.

    With `distributed="fsdp"` no learner holds all weights: models are built without them, and each learner reads its slices
    (`sharded_build`). A checkpoint is written and read by all of them, each its slices (`write_state`). But where RLlib wants the
    group's state it asks a single learner. So all learners first gather it (`gather_state`, called by `TPPOLearnerGroup`), and
    learner 0 holds it.
    """

    @flushed_subnormals()
    def build(self) -> None:
        """Builds module, optimizers and the learner pipeline; sets torch's threads to `num_cpus_per_learner`.

        The pipeline is the config's `learner_connector`, if any, followed by the default stages unless the
        config says `add_default_connectors_to_learner_pipeline=False`.

        Raises:
            ValueError: a bad setting, or models that cannot be loaded.
        """
        if self.is_built:
            return
        self._options = self.config.options
        torch.set_num_threads(self._options.learners.num_threads)
        self._update_step: UpdateStep | None = None
        self._settings = DEFAULT_SETTINGS
        """What the driver has said of the updates to come."""
        tokens = self._options.compute.context_cache_tokens
        self._caches = {name: ContextCache(tokens) for name in ("policy", "critic")} if tokens else {}
        self._gathered_optimizers: dict[str, Any] | None = None
        self._writing: Future[dict[str, dict[str, Any]]] | None = None
        super().build()
        self._value_buffer = (
            ValueBuffer(self._options.critic.value_batch_tokens, current_collective(self.device))
            if self._options.critic.value_batch_tokens is not None
            else None
        )
        self.use_pipeline(self._build_pipeline())
        if self.module[DEFAULT_MODULE_ID].critic is not None:
            load_compiled()
        if self.device.type == "cpu":
            warn_of_slow_dtype(parse_dtype(self._options.models.dtype))

    def building(self) -> contextlib.AbstractContextManager[Any]:
        return without_weights() if self._is_to_be_sharded() else super().building()

    def place_module(self, module: Any) -> None:
        if self._is_to_be_sharded():
            module[DEFAULT_MODULE_ID].place(self.device)
        else:
            super().place_module(module)

    def _is_to_be_sharded(self) -> bool:
        # One learner alone has nobody to share with, and the update step says so.
        return self._options.learners.distributed == "fsdp" and current_collective().size > 1

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers the optimizers "policy" and "critic"; their learning rates are set by the update step."""
        module = self.module[module_id]
        assert isinstance(module, LanguageModelModule)
        self._update_step = UpdateStep(
            module.policy,
            module.critic,
            self._options,
            current_collective(self.device),
            self._caches.get("policy"),
            module.reference,
        )
        optimizers: dict[str, tuple[torch.optim.Optimizer, torch.nn.Module]]
        optimizers = {"policy": (self._update_step.policy_optimizer, module.policy)}
        if self._update_step.critic_optimizer is not None and module.critic is not None:
            optimizers["critic"] = (self._update_step.critic_optimizer, module.critic)
        for name, (optimizer, model) in optimizers.items():
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=optimizer, params=trainable(model.parameters())
            )

    @flushed_subnormals()
    def update(
        self,
        batch: pa.Table | None = None,
        *,
        training_data: TrainingData | None = None,
        timesteps: dict[str, Any] | None = None,
        return_state: bool = False,
    ) -> dict[str, Any]:
        """Trains on this learner's shard of the fragments and raises the policy version by one.

        Args:
            batch: Table of fragments, as an alternative to `training_data`.
            training_data: Holds fragments as `episodes` (in this process), a table of them (`FRAGMENT_SCHEMA`) as `batch`,
                or references to tables as `batch_refs`. It may hold no fragment.
            timesteps: Passed to `before_gradient_based_update` and `after_gradient_based_update`.
            return_state: Whether to add the policy's weights after the update under `MODULE_STATE`.

        Returns:
            Metrics (those of the update under the default module's id), and `FRAGMENT_REPORT` and `STALENESS_HISTOGRAM`,
            which are no metrics: take them out before aggregating.

        Raises:
            ValueError: the data are not fragments.
        """
        self._check_is_built()
        assert self._update_step is not None
        self.before_gradient_based_update(timesteps=timesteps or {})
        fragments = _fragments(training_data or TrainingData(batch=batch))
        version = self.policy_version
        self._forget_gathered()
        train_batch, targets = self._estimate(fragments)
        frozen = self._settings.policy_is_frozen
        result = self._update_step.run(train_batch, targets, version, policy_is_frozen=frozen)
        self.policy_version += 1
        # The engines are sent the policy's weights after every update.
        self.gather_state(inference_only=True)
        self.after_gradient_based_update(timesteps=timesteps or {})

        self._log(result, num_tokens=int(train_batch.window.lengths[~train_batch.hindsight].sum()))
        results = self.metrics.reduce()
        results[FRAGMENT_REPORT] = result.fragment_report
        results[STALENESS_HISTOGRAM] = result.staleness_histogram
        if return_state:
            results[MODULE_STATE] = self.get_state(components=COMPONENT_RL_MODULE, inference_only=True)
        return results

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Does nothing: the update step sets learning rates and reports them."""

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        """Not used: the update step has its own losses and loop."""
        raise NotImplementedError("TPPOLearner trains in update(): change the update step or the learner pipeline")

    def start_critic(self, value: float) -> None:
        """Lets a critic that has learned nothing begin with the mean return, in units of reward, unless the options say otherwise.

        All learners must call it.
        """
        critic, collective = self.language_model().critic, current_collective(self.device)
        if critic is None or initial_value(critic, self._options) != "mean_return":
            return
        if is_cold(critic, collective):
            start_critic(critic, torch.zeros(0), value, collective)

    def take_settings(self, settings: UpdateSettings) -> None:
        """Sets what follows from earlier updates, for those to come."""
        self._settings = settings

    def weights_checksum(self) -> int:
        """Returns that of all trained weights (`weight_checksum`); all learners must call it."""
        parameters = [parameter for _, optimizer in self.optimizers() for parameter in parameters_of(optimizer)]
        return weights_checksum(parameters, current_collective(self.device))

    def held_episodes(self) -> pa.Table:
        """Returns this learner's finished episodes that wait for a full value batch (`FRAGMENT_SCHEMA`)."""
        return table_from_fragments([]) if self._value_buffer is None else self._value_buffer.table()

    def hold_episodes(self, table: pa.Table) -> None:
        """Holds this learner's shard of the finished episodes that were held when a checkpoint was saved."""
        if self._value_buffer is not None:
            self._value_buffer.hold(table)

    def gather_state(self, *, inference_only: bool = False) -> None:
        """Gathers the state for `get_state` from the slices of sharded learners; does nothing if learners are whole.

        All learners must call it, after the same updates. A state that is at hand is not gathered again. So the policy's
        weights may be asked for while an update is on its way to the learners: a learner that gets this request first waits
        for no other.

        Args:
            inference_only: Whether to gather the policy's weights alone, which are at hand since the last update.
        """
        if self._options.learners.distributed == "ddp":
            return
        keep = current_collective(self.device).rank == 0
        self.language_model().gather(inference_only=inference_only, keep=keep)
        if not inference_only:
            states = {name: gather_optimizer_state(optimizer, keep=keep) for name, optimizer in self.optimizers()}
            self._gathered_optimizers = states if keep else None

    def write_state(self, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Writes the slices of a sharded learner; all learners must call it, after the same updates.

        Args:
            folder: Is there, and the same one for all learners.

        Returns:
            What `get_state` returns, with a `Sliced` in the place of each array, and `Fingerprint.facts` of the files.
        """
        taken = self._take_slices()
        return self._state_of(taken), taken.write(folder)

    def begin_state(self, folder: Path) -> dict[str, Any]:
        """Begins to write the slices of now, in a thread; the learner may train on. All learners must call it, after the same updates.

        Args:
            folder: As for `write_state`.

        Returns:
            What `write_state` returns as the state.
        """
        taken = self._take_slices().copied()
        self._writing = begun(partial(taken.write, folder), "checkpoint")
        return self._state_of(taken)

    def written_files(self) -> dict[str, dict[str, Any]] | None:
        """Returns `Fingerprint.facts` of the files that `begin_state` has begun to write; None: it has not ended.

        Raises:
            OSError: they cannot be written.
        """
        assert self._writing is not None, "nothing was begun"
        return self._writing.result() if self._writing.done() else None

    def _take_slices(self) -> TakenSlices:
        return take_learner(current_collective(self.device), self.language_model().trained_tensors(), self.optimizers())

    def _state_of(self, taken: TakenSlices) -> dict[str, Any]:
        state = self.get_state(not_components=[COMPONENT_RL_MODULE, COMPONENT_OPTIMIZER])
        state[COMPONENT_RL_MODULE] = {DEFAULT_MODULE_ID: taken.weights}
        state[COMPONENT_OPTIMIZER] = self._with_modules(taken.optimizers)
        assert self._update_step is not None
        return state | {_UPDATE_STEP: self._update_step.get_state()}

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Returns RLlib's learner state; with the optimizers it has the update step's counters.

        Raises:
            RuntimeError: the learners are sharded, and they have not gathered their state since it changed
                (`gather_state`), or this is not learner 0.
        """
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self.asks_for(COMPONENT_OPTIMIZER, components, not_components):
            assert self._update_step is not None
            state[_UPDATE_STEP] = self._update_step.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Loads all parts of `state`, even weights of an earlier version than the current ones."""
        state = dict(state)
        self._forget_gathered()
        for cache in self._caches.values():
            cache.clear()
        # RLlib leaves the weights alone if the state's version is not above the learner's: going back to a checkpoint would
        # join old optimizer moments with new weights.
        if COMPONENT_RL_MODULE in state:
            self.module.set_state(state.pop(COMPONENT_RL_MODULE))
        # RLlib makes tensors of the arrays in place: optimizer steps would write into the caller's state, or into the
        # read-only object store that other learners read as well. Sharded optimizers copy their rows.
        if COMPONENT_OPTIMIZER in state and self._options.learners.distributed == "ddp":
            state[COMPONENT_OPTIMIZER] = copy.deepcopy(state[COMPONENT_OPTIMIZER])
        super().set_state(state)
        self.policy_version = state.get(WEIGHTS_SEQ_NO, self.policy_version)
        if _UPDATE_STEP in state:
            assert self._update_step is not None
            self._update_step.set_state(state[_UPDATE_STEP])

    def optimizer_state(self) -> dict[str, Any]:
        states = self._gathered_optimizers
        if self._options.learners.distributed == "ddp":
            states = {name: gather_optimizer_state(optimizer) for name, optimizer in self.optimizers()}
        if states is None:
            raise RuntimeError("the sharded optimizers are not gathered here: ask TPPOLearnerGroup.get_state")
        return self._with_modules(states)

    def _with_modules(self, states: dict[str, Any]) -> dict[str, Any]:
        return {name: {"module_id": self.module_of_optimizer(name), "state": state} for name, state in states.items()}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        if self._options.learners.distributed == "ddp":
            super().load_optimizer_state(state)
            return
        # RLlib would move the whole tensors to the device, which may have room for the slices alone.
        for name, optimizer in self.optimizers():
            if name in state:
                optimizer.load_state_dict(state[name]["state"])

    def language_model(self) -> LanguageModelModule:
        """Returns the module with policy, critic and reference."""
        module = self.module[DEFAULT_MODULE_ID]
        assert isinstance(module, LanguageModelModule)
        return module

    def _forget_gathered(self) -> None:
        self.language_model().forget_gathered()
        self._gathered_optimizers = None

    def _build_pipeline(self) -> LearnerConnectorPipeline:
        pieces = self.custom_connectors()
        if self.config.add_default_connectors_to_learner_pipeline:
            module = self.language_model()
            if self._options.compute.packing and module.reference is not None:
                check_packing(module.reference)
            stages = default_stages(
                self._options,
                critic=module.critic is not None,
                collective=current_collective(self.device),
                value_buffer=self._value_buffer,
                cache=self._caches.get("critic"),
                unfinished_scale=lambda: self._settings.unfinished_scale or 0.0,
            )
            pieces += connectors(stages)
        if not pieces:
            raise ValueError(
                "the learner pipeline is empty: give a learner_connector, or leave "
                "add_default_connectors_to_learner_pipeline=True"
            )
        return LearnerConnectorPipeline(connectors=pieces)

    def _estimate(self, fragments: Sequence[Fragment]) -> tuple[TrainBatch, Targets]:
        """Runs the learner pipeline on fragments."""
        start = time.perf_counter()
        columns = self.run_pipeline(
            rl_module=self.module,
            batch={},
            episodes=fragments,
            shared_data={},
            metrics=self.metrics,
        )[DEFAULT_MODULE_ID]
        estimates: Estimates = columns[ESTIMATES]
        return estimates.batch, estimates.targets(time.perf_counter() - start)

    def _log(self, result: UpdateResult, *, num_tokens: int) -> None:
        for name, value in result.metrics.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)
        if self._options.advantages.unfinished_advantage_scale == AUTO:
            scale = self._settings.unfinished_scale or 0.0
            self.metrics.log_value((DEFAULT_MODULE_ID, "unfinished_scale"), scale, window=1)
        self.metrics.log_value((DEFAULT_MODULE_ID, WEIGHTS_SEQ_NO), self._weights_seq_no, window=1)
        self.metrics.log_value((DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED), num_tokens, reduce="sum")
        for key in (
            (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED_LIFETIME),
            (ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME),
            (ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME),
        ):
            self.metrics.log_value(key, num_tokens, reduce="lifetime_sum")


def _fragments(data: TrainingData) -> Sequence[Fragment]:
    """Returns the fragments to train: given as such in this process, or as tables from other processes."""
    data.validate()
    if data.episodes is not None:
        return data.episodes
    data.solve_refs()
    tables = data.batches if data.batches is not None else [data.batch]
    if not all(isinstance(table, pa.Table) for table in tables):
        found = next(type(table).__name__ for table in tables if not isinstance(table, pa.Table))
        raise ValueError(
            f"TPPOLearner trains on fragments, got {found}: pass TrainingData(episodes=[...]) of fragments, or "
            "TrainingData(batch=table_from_fragments(...))"
        )
    return fragments_from_table(concatenate_tables(tables))
