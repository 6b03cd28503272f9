"""What F is made of: a captured walk may be used again only where all of it is still the same."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from odenet.solvers.reach import DEPTH_OF_SEARCH, KNOWN

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType)


class Identity:
    """The tensors that F reaches, by place in memory, and the plain values, as they are now.

    It goes where `odenet.solvers.reach` goes: into modules, functions with what they close over, methods, containers
    and plain objects. An F that reads what cannot be found so (a file, a clock) must not be captured.

    Args:
        things: F and its arguments.

    Attributes:
        tensors: all of them, each once.
        key: what has to be equal.
    """

    def __init__(self, *things: Any):
        self.tensors: list[Tensor] = []
        self._seen: set[int] = set()
        self._values: list[Hashable] = []
        for thing in things:
            self._walk(thing, DEPTH_OF_SEARCH)
        self.key: Hashable = (tuple(map(place, self.tensors)), tuple(self._values))

    def versions(self) -> list[int]:
        """How often each tensor was changed in place."""
        return [0 if tensor.is_inference() else tensor._version for tensor in self.tensors]

    def _walk(self, thing: Any, depth: int) -> None:
        if isinstance(thing, PLAIN):
            self._values.append(thing)
            return
        if id(thing) in self._seen or depth < 0 or isinstance(thing, OPAQUE):
            return
        self._seen.add(id(thing))
        if isinstance(thing, Tensor):
            self.tensors.append(thing)
        elif isinstance(thing, nn.Module):
            for module in thing.modules():
                self._seen.add(id(module))
                self._module(module, depth)
        else:
            for part in _parts(thing):
                self._walk(part, depth - 1)

    def _module(self, module: nn.Module, depth: int) -> None:
        self._values.append((id(module), module.training, *module._forward_hooks, *module._forward_pre_hooks))
        for part in (*module._parameters.values(), *module._buffers.values()):
            self._walk(part, depth - 1)
        if type(module).__module__ not in KNOWN:
            for name, value in vars(module).items():
                if name[:1] != "_" or isinstance(value, PLAIN):
                    self._walk(value, depth - 1)
            forward = getattr(module.forward, "__func__", module.forward)
            self._walk(forward, depth - 1)


def place(tensor: Tensor) -> Hashable:
    """Where a tensor lies in memory, and how."""
    own = type(tensor) in (Tensor, nn.Parameter)
    address = tensor.data_ptr() if own else id(tensor)
    return address, tensor.shape, tensor.stride(), tensor.dtype


def layout(tensor: Tensor) -> Hashable:
    """How a tensor lies in memory, wherever that is."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FunctionType):
        return [*map(_content, thing.__closure__ or ()), *(thing.__defaults__ or ()),
                *(thing.__kwdefaults__ or {}).values(), *_globals(thing)]  # fmt: skip
    if hasattr(thing, "__dict__"):
        own = vars(thing).values()
        return [type(thing).__call__, *own] if isinstance(thing, Callable) else own
    return ()


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _globals(function: types.FunctionType) -> list[Any]:
    """Global numbers, tensors and modules that a function names, and functions of the same file."""
    space = function.__globals__
    named = [space[name] for name in function.__code__.co_names if name in space]
    return [
        value
        for value in named
        if isinstance(value, (*PLAIN, Tensor, nn.Module)) or getattr(value, "__globals__", None) is space
    ]
