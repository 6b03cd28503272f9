"""The tensors of F that change with depth, read from modules and put back into them.

These are the parameters, and the running statistics of normalisation layers. Other buffers (masks, counters) are the
same at all depths.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from odenet.errors import InputError
from odenet.residual.layers import reset_tree

Coefficients = dict[str, Tensor]
VARIANCE = "running_var"
STATISTICS = ("running_mean", VARIANCE)


def statistics_of(module: nn.Module) -> dict[str, _NormBase]:
    """Names of the running statistics in a module, with the layers that they belong to."""
    return {
        f"{prefix}.{name}" if prefix else name: norm
        for prefix, norm in module.named_modules()
        if isinstance(norm, _NormBase)
        for name in STATISTICS
        if getattr(norm, name) is not None
    }


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that change with depth, by name; one that is used under two names is there once."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return {**dict(module.named_parameters()), **{name: buffers[name] for name in statistics_of(module)}}


class Slot(NamedTuple):
    """Where a tensor that changes with depth is held.

    Attributes:
        names: all that it has in the module, the first one first.
        owner: the module that holds it; not the dict of its parameters, which tracing replaces.
        key: the name that it has there.
    """

    names: tuple[str, ...]
    owner: nn.Module
    key: str


def slots_of(module: nn.Module) -> list[Slot]:
    """Where the tensors that change with depth are held."""
    everything = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    found = []
    for name, tensor in tensors_of(module).items():
        path, _, key = name.rpartition(".")
        owner = module.get_submodule(path)
        ties = [other for other, t in everything if t is tensor and other != name]
        found.append(Slot((name, *ties), owner, key))
    return found


def stacked(layers: Sequence[nn.Module]) -> Coefficients:
    """The tensors of modules of the same kind, each stacked to (len(layers), *shape), without a graph.

    Raises:
        InputError: the modules are not of the same kind, or a parameter has no shape yet.
    """
    for name, parameter in layers[0].named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(f"the parameter {name!r} of F has no shape yet; call F once, so that lazy layers are made")
    tensors = [tensors_of(layer) for layer in layers]
    shapes = [{name: t.shape for name, t in found.items()} for found in tensors]
    for number, (layer, found) in enumerate(zip(layers, shapes, strict=True)):
        if found != shapes[0]:
            raise InputError(
                f"layers {number} and 0 differ in their weights ({type(layer).__name__} and {type(layers[0]).__name__}"
                "); a function of depth through both needs layers of the same kind and shapes"
            )
    return {name: torch.stack([found[name].detach() for found in tensors]) for name in tensors[0]}


def check_buffers(layers: Sequence[nn.Module]) -> None:
    """Raise `InputError` if a buffer that is the same at all depths differs between layers."""
    first = dict(layers[0].named_buffers())
    for name in first.keys() - statistics_of(layers[0]).keys():
        for layer in layers[1:]:
            if first[name].is_floating_point() and not torch.equal(first[name], dict(layer.named_buffers())[name]):
                raise InputError(
                    f"the buffer {name!r} differs between layers; only parameters and the running statistics of norms "
                    "can be functions of depth"
                )


def drawn(F: nn.Module, n: int) -> list[nn.Module]:
    """F itself, and n - 1 copies with weights drawn anew (`reset_parameters`)."""
    layers = [F]
    for _ in range(n - 1):
        layer = copy.deepcopy(F)
        reset_tree(layer)
        layers.append(layer)
    return layers


def filled(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` with the given values, of any shape, in place of its own; ties and requires_grad are kept."""
    twin = copy.deepcopy(module)
    new: dict[int, Tensor] = {}
    for name, old in tensors_of(twin).items():
        value = tensors[name].detach().to(old.device, old.dtype).clone(memory_format=torch.contiguous_format)
        new[id(old)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    for inner in twin.modules():
        for held in (inner._parameters, inner._buffers):
            for name, old in held.items():
                if id(old) in new:
                    held[name] = new[id(old)]  # pyright: ignore[reportArgumentType]
    return twin


def mapped(A: Tensor, coefficients: Mapping[str, Tensor]) -> Coefficients:
    """A C for each tensor C, (M, *shape) -> (K, *shape), in float64 and back."""
    found = {}
    for name, C in coefficients.items():
        flat = C.reshape(len(C), -1)
        wide = flat.to("cpu", torch.complex128 if flat.is_complex() else torch.float64)
        product = (A.to(wide.dtype) @ wide).reshape(len(A), *C.shape[1:])
        found[name] = product.to(C.device, C.dtype)
    return found
