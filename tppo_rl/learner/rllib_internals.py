"""RLlib's learner from inside: everything that we use of it beside its documented API.

See `tppo_rl.core.insides` for what `CONTRACT` is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from tppo_rl.core.insides import RAY, Contract

CONTRACT: Contract = {
    "ray.rllib.core.learner.torch.torch_learner:TorchLearner": (
        "_check_component",
        "_check_is_built",
        "_get_optimizer_state",
        "_set_optimizer_state",
        "_log_trainable_parameters",
        "_make_module",
        "_map_module_to_device",
        "_make_modules_ddp_if_necessary",
        "before_gradient_based_update",
        "configure_optimizers_for_module",
        "register_optimizer",
    ),
    "ray.rllib.core.learner.learner_group:LearnerGroup": (
        "_check_component",
        "_get_results",
        "foreach_learner",
        "is_remote",
        "update",
    ),
    "ray.rllib.core.learner.learner:Learner": ("apply",),
    "ray.rllib.core.learner.training_data:TrainingData": ("batch", "batches", "batch_refs", "episodes", "solve_refs"),
}
"""Beside these a group has `_workers` and `_worker_manager`, a learner has `_is_built`, `_weights_seq_no`, `_named_optimizers`,
`_optimizer_name_to_module`, `_device` and `_learner_connector`, and a config `_learner_connector`: attributes that are set when they
are made, and that the learner's tests read."""
MODULE_STATE = "_rl_module_state_after_update"
"""Key under which RLlib expects the weights in the result of `update(return_state=True)`."""


class InsideTorchLearner(TorchLearner):
    """RLlib's learner with names for its insides, and without what an update step of our own makes needless."""

    @property
    def is_built(self) -> bool:
        """Whether `build` has been called."""
        with RAY.insides("Learner._is_built"):
            return bool(self._is_built)

    @property
    def policy_version(self) -> int:
        """Number of updates; RLlib sends it with the weights."""
        with RAY.insides("Learner._weights_seq_no"):
            return int(self._weights_seq_no)

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self._weights_seq_no = version

    @property
    def device(self) -> torch.device:
        """Of the module."""
        with RAY.insides("TorchLearner._device"):
            return torch.device(self._device)

    def optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        """Registered optimizers, by RLlib's names."""
        with RAY.insides("Learner._named_optimizers"):
            return list(self._named_optimizers.items())

    def module_of_optimizer(self, name: str) -> str:
        """Id of the module that an optimizer trains."""
        with RAY.insides("Learner._optimizer_name_to_module"):
            return str(self._optimizer_name_to_module[name])

    def custom_connectors(self) -> list[Any]:
        """The config's own pieces of the learner pipeline (`learner_connector`)."""
        with RAY.insides("AlgorithmConfig._learner_connector"):
            make = self.config._learner_connector
        if make is None:
            return []
        made = make(None, None)
        return list(made) if isinstance(made, list | tuple) else [made]

    def use_pipeline(self, pipeline: Any) -> None:
        """Makes a pipeline the learner's."""
        self._learner_connector = pipeline

    def run_pipeline(self, **arguments: Any) -> Mapping[str, Any]:
        """Calls the learner's pipeline."""
        with RAY.insides("Learner._learner_connector"):
            pipeline = self._learner_connector
        result: Mapping[str, Any] = pipeline(**arguments)
        return result

    def asks_for(self, component: str, components: Any, not_components: Any) -> bool:
        """Whether a component is among those that a state is to hold."""
        with RAY.insides("Learner._check_component"):
            return bool(self._check_component(component, components, not_components))

    def optimizer_state(self) -> dict[str, Any]:
        """State of every optimizer by name; to be overridden."""
        return dict(super()._get_optimizer_state())

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Loads what `optimizer_state` returned; to be overridden."""
        super()._set_optimizer_state(state)

    def building(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which the module is built; to be overridden."""
        return contextlib.nullcontext()

    def place_module(self, module: Any) -> None:
        """Moves the module to the learner's device; to be overridden."""
        super()._map_module_to_device(module)

    def _make_module(self) -> Any:
        with self.building():
            return super()._make_module()

    def _map_module_to_device(self, module: Any) -> None:
        self.place_module(module)

    def _get_optimizer_state(self) -> dict[str, Any]:
        return self.optimizer_state()

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        self.load_optimizer_state(state)

    def _log_trainable_parameters(self) -> None:
        """Does nothing: RLlib would log the numbers once, and a metric that is logged once is NaN ever after."""

    def _make_modules_ddp_if_necessary(self) -> None:
        """Leaves the module as it is: the update step sums gradients itself."""
