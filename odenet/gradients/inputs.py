"""The tensors that F depends on: what a gradient method must give a gradient to.

Parameters are known; tensors that F reaches otherwise (attributes, closures, arguments, globals) are found by looking
into F and, for what cannot be seen that way, by walking the graph of F's first evaluation.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from odenet.errors import GradientError
from odenet.solvers.problem import Problem

DEPTH_OF_SEARCH = 6


class Inputs:
    """Tensors that require a gradient and that F uses, piece by piece of depth, each counted once.

    Args:
        problem: whose F to look into.

    Attributes:
        tensors: all of them.
        of: for each piece, indices into `tensors`.
    """

    def __init__(self, problem: Problem):
        self.tensors: list[Tensor] = []
        self._index: dict[int, int] = {}
        self.of: list[list[int]] = []
        shared = list(reachable(problem.args))
        for piece in range(problem.weights.pieces):
            found = [*reachable(problem.weights.piece(piece)), *shared]
            self.of.append([])
            for tensor in found:
                self._add(piece, tensor)

    def piece(self, index: int) -> list[Tensor]:
        """The tensors that F uses on a piece of depth."""
        return [self.tensors[i] for i in self.of[index]]

    def observe(self, piece: int, k: Tensor) -> None:
        """Add the leaf tensors that the graph of an evaluation reaches and that were not known."""
        for leaf in unknown_leaves([k], self.piece(piece)):
            self._add(piece, leaf)

    def check(self, piece: int, outputs: Iterable[Tensor], x: Tensor) -> None:
        """Raise if the graph of recomputed steps reaches a leaf that is not among the inputs.

        Raises:
            GradientError: F used a tensor that was not found when the forward pass began.
        """
        for leaf in unknown_leaves(outputs, [*self.piece(piece), x]):
            raise GradientError(
                f"F uses a tensor of shape {tuple(leaf.shape)} that requires a gradient but was not found when the "
                "solve began (does F use it at some depths only?); make it a parameter of F or hand it over in args=, "
                "or use gradient='autograd'"
            )

    def _add(self, piece: int, tensor: Tensor) -> None:
        index = self._index.get(id(tensor))
        if index is None:
            index = self._index[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        if index not in self.of[piece]:
            self.of[piece].append(index)


def needs_gradient(problem: Problem, inputs: Inputs) -> bool:
    """Whether anything that the answer depends on requires a gradient, and gradients are enabled."""
    return torch.is_grad_enabled() and (problem.x0.requires_grad or bool(inputs.tensors))


def reachable(thing: Any) -> Iterator[Tensor]:
    """Tensors that require a gradient, found in modules, functions (with closures and defaults) and containers."""
    seen: set[int] = set()

    def walk(thing: Any, depth: int) -> Iterator[Tensor]:
        if isinstance(thing, str | bytes | int | float | type | types.ModuleType) or id(thing) in seen or depth < 0:
            return
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            if thing.requires_grad:
                yield thing
            return
        for part in _parts(thing):
            yield from walk(part, depth - 1)

    yield from walk(thing, DEPTH_OF_SEARCH)


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, nn.Module):
        inner = [v for module in thing.modules() for k, v in vars(module).items() if not k.startswith("_")]
        return [*thing.parameters(), *thing.buffers(), *inner]
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        return [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, Callable) and hasattr(thing, "__dict__"):
        return vars(thing).values()
    return ()


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def unknown_leaves(outputs: Iterable[Tensor], known: Iterable[Tensor]) -> list[Tensor]:
    """Leaf tensors that the graph of `outputs` reaches without passing through a tensor in `known`."""
    leaves_known, edges_known = set(), set()
    for tensor in known:
        if tensor.grad_fn is None:
            leaves_known.add(id(tensor))
        else:
            edges_known.add((tensor.grad_fn, tensor.output_nr))
    found: dict[int, Tensor] = {}
    stack: list[tuple[Any, int]] = [(out.grad_fn, out.output_nr) for out in outputs]
    seen = set()
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node is None or node in seen or edge in edges_known:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            if id(leaf) not in leaves_known:
                found[id(leaf)] = leaf
            continue
        stack.extend(node.next_functions)
    return list(found.values())
