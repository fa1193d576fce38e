"""Models without weights: parameters on torch's meta device have names and shapes, and take no memory.

Buffers, such as the frequencies of rotary embeddings, are real: no file has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import nn

_wanted: ContextVar[bool] = ContextVar("models without weights", default=False)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Makes `LanguageModelModule` leave weights out that its owner will place."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def weights_are_left_out() -> bool:
    """Whether `without_weights` is in force."""
    return _wanted.get()


def is_empty(model: nn.Module) -> bool:
    """Whether a model has no weights yet."""
    return any(parameter.is_meta for parameter in model.parameters())


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Makes every module that is built meanwhile without weights; each parameter is there alone for a moment."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # One that is empty already is being tied: it must stay the same one.
        if parameter is not None and not parameter.is_meta:
            parameter = _like(parameter, parameter.to("meta"))
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Gives an empty model's parameters a device meanwhile: CPU tensors of one number each, stretched to the shape.

    What looks at the device of a model, and makes parts of its own there, would otherwise make them without weights.
    """
    if not is_empty(model):
        yield
        return
    of_meta: dict[int, nn.Parameter] = {}

    def stretched(parameter: nn.Parameter) -> nn.Parameter:
        made = _like(parameter, torch.zeros((), dtype=parameter.dtype).expand(parameter.shape))
        of_meta[id(made)] = made
        return made

    def emptied(parameter: nn.Parameter) -> nn.Parameter:
        return _like(parameter, torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))

    _replace(model, lambda parameter: parameter.is_meta, stretched)
    try:
        yield
    finally:
        _replace(model, lambda parameter: id(parameter) in of_meta, emptied)


def _like(parameter: nn.Parameter, tensor: torch.Tensor) -> nn.Parameter:
    made = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    # transformers marks parameters with attributes of their own.
    made.__dict__.update(parameter.__dict__)
    return made


def _replace(
    model: nn.Module, chosen: Callable[[nn.Parameter], bool], make: Callable[[nn.Parameter], nn.Parameter]
) -> None:
    """Puts other parameters in the place of the chosen ones; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and chosen(parameter):
                if id(parameter) not in made:
                    made[id(parameter)] = make(parameter)
                module._parameters[name] = made[id(parameter)]


def empty_again(module: nn.Module) -> None:
    """Takes the weights out of a module."""
    _replace(
        module,
        lambda parameter: not parameter.is_meta,
        lambda parameter: _like(parameter, torch.empty_like(parameter, device="meta")),
    )
