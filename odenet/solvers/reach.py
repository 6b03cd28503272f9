"""What F can reach: the tensors and modules in its attributes, closure, globals, defaults and arguments."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

DEPTH_OF_SEARCH = 6
UNSEARCHED = (str, bytes, int, float, type, types.ModuleType)
KNOWN = {
    f"torch.nn.modules.{name}"
    for name in ("activation", "batchnorm", "container", "conv", "dropout", "flatten", "linear", "normalization")
}  # modules whose other attributes are settings


def reachable(thing: Any) -> list[Tensor | nn.Module]:
    """Tensors and modules in modules, functions (with what they close over), methods and containers, each once."""
    seen: set[int] = set()
    found: list[Tensor | nn.Module] = []

    def walk(thing: Any, depth: int) -> None:
        if thing is None or id(thing) in seen or depth < 0 or isinstance(thing, UNSEARCHED):
            return
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
            return
        if isinstance(thing, nn.Module):
            modules = _tree(thing)
            seen.update(map(id, modules))
            found.extend(modules)
            parts = _parts_of(modules)
        else:
            parts = _parts(thing)
        for part in parts:
            walk(part, depth - 1)

    walk(thing, DEPTH_OF_SEARCH)
    return found


def _tree(module: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once."""
    found = {module: None}
    left = [module]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                left.append(child)
    return list(found)


def _parts_of(modules: Iterable[nn.Module]) -> Iterable[Any]:
    """Parameters, buffers and public attributes of modules."""
    parts, inner = [], []
    for module in modules:
        parts += [*module._parameters.values(), *module._buffers.values()]
        if type(module).__module__ not in KNOWN:
            inner += [v for k, v in vars(module).items() if k[:1] != "_" and not isinstance(v, UNSEARCHED)]
    return [*parts, *inner]


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        owner = thing.__self__
        return [owner, thing.__func__, *getattr(owner, "__dict__", {}).values()]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        return [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *_globals(thing)]
    if isinstance(thing, Callable) and hasattr(thing, "__dict__"):
        return vars(thing).values()
    return ()


def _globals(function: types.FunctionType) -> list[Any]:
    """Global tensors, modules and functions of the same file that a function names, as in a notebook's `net(x)`."""
    space = function.__globals__
    named = [space[name] for name in function.__code__.co_names if name in space]
    return [v for v in named if isinstance(v, Tensor | nn.Module) or getattr(v, "__globals__", None) is space]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
