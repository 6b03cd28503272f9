"""The tensors that F depends on: what a gradient method must give a gradient to.

Parameters are known; tensors that F reaches otherwise (attributes, closures, arguments, globals) are found by looking
into F and, for what cannot be seen that way, by walking the graph of F's first evaluation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import GradientError
from odenet.solvers.problem import Problem
from odenet.solvers.reach import reachable

Edge = tuple[Any, int]


class Inputs:
    """Tensors that require a gradient and that F uses, piece by piece of depth, each counted once.

    Args:
        problem: whose F to look into.

    Attributes:
        tensors: all of them.
        of: for each piece, indices into `tensors`.
        computed: whether F may use a tensor that was computed before the solve, so that its graph must not be freed.
    """

    def __init__(self, problem: Problem):
        self.tensors: list[Tensor] = []
        self._index: dict[int, int] = {}
        self.of: list[list[int]] = []
        self.computed = self._kept = False
        shared = list(reachable(problem.args))
        for piece, found in enumerate(problem.field.found):
            self.of.append([])
            for thing in [*found, *shared]:
                if isinstance(thing, Tensor) and thing.requires_grad:
                    self._add(piece, thing)

    def piece(self, index: int) -> list[Tensor]:
        """The tensors that F uses on a piece of depth."""
        return [self.tensors[i] for i in self.of[index]]

    def observe(self, piece: int, k: Tensor) -> None:
        """Add the leaf tensors that the graph of an evaluation reaches and that were not known."""
        for leaf in _walk([k], self.piece(piece))[0]:
            self._add(piece, leaf)
            self.computed = True

    def keep(self, wanted: Iterable[Tensor]) -> None:
        """Leave out all tensors but those in `wanted`, and count those among them that F does not use as well."""
        wanted = [tensor for tensor in wanted if tensor.requires_grad]
        index = {id(tensor): at for at, tensor in enumerate(wanted)}
        self.of = [sorted(index[id(t)] for t in self.piece(i) if id(t) in index) for i in range(len(self.of))]
        self.tensors, self._index, self._kept = wanted, index, True

    def check(self, piece: int, outputs: Iterable[Tensor], *known: Tensor) -> None:
        """Raise if the graph of recomputed steps reaches a leaf that is not among the inputs.

        Raises:
            GradientError: F used a tensor that was not found when the forward pass began.
        """
        if self._kept:
            return
        for leaf in _walk(outputs, [*self.piece(piece), *known])[0]:
            raise GradientError(
                f"F uses a tensor of shape {tuple(leaf.shape)} that requires a gradient but was not found when the "
                "solve began (does F use it at some depths only?); make it a parameter of F or hand it over in args=, "
                "or use gradient='autograd'"
            )

    def check_unrelated(self, piece: int, k: Tensor) -> None:
        """Raise if one input of F was computed from another, so that a plain vjp of F would count the latter twice.

        Raises:
            GradientError: names both tensors.
        """
        known = self.piece(piece)
        for z in _walk([k], known)[1]:
            for behind in _walk(z.grad_fn.next_functions if z.grad_fn else [], known)[1]:
                raise GradientError(
                    f"F uses a tensor of shape {tuple(z.shape)} that was computed from another one it holds, of shape "
                    f"{tuple(behind.shape)}; the adjoint would count that one twice, so compute the first inside F, "
                    "or use gradient='checkpoint'"
                )

    def _add(self, piece: int, tensor: Tensor) -> None:
        index = self._index.get(id(tensor))
        if index is None:
            index = self._index[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            self.computed = self.computed or tensor.grad_fn is not None
        if index not in self.of[piece]:
            self.of[piece].append(index)


def needs_gradient(problem: Problem, inputs: Inputs) -> bool:
    """Whether anything that the answer depends on requires a gradient, and gradients are enabled."""
    return torch.is_grad_enabled() and (problem.x0.requires_grad or bool(inputs.tensors))


def vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Any],
    keep: bool = True,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Σ_i cotangents_iᵀ ∂outputs_i/∂inputs, the inputs taken as independent even where one was computed from another.

    The graph behind an input belongs to whoever computed it: no gradient enters it here, and `keep` keeps it. So do the
    hooks of an input: they see its gradient once, when all parts of it have been added up.
    """
    with _cut(inputs), _unhooked(inputs):
        return torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=keep, create_graph=create_graph, allow_unused=True
        )


@contextlib.contextmanager
def _cut(tensors: Iterable[Tensor]) -> Iterator[None]:
    """While this holds, gradients arrive at `tensors` but do not pass through them."""

    def stop(output: int) -> Callable[[Any], Any]:
        def hook(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(g if i != output or g is None else torch.zeros_like(g) for i, g in enumerate(grads))

        return hook

    handles = [t.grad_fn.register_prehook(stop(t.output_nr)) for t in tensors if t.grad_fn is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _unhooked(tensors: Iterable[Tensor]) -> Iterator[None]:
    """While this holds, the tensors have no hooks, and afterwards those that keep their gradient have what they had."""
    hooked = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    kept = [(t, t.grad) for t in tensors if t.retains_grad]
    for hooks, _ in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in hooked:
            hooks.update(before)
        for tensor, grad in kept:
            tensor.grad = grad


def _walk(start: Iterable[Tensor | Edge], known: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Walk the graph behind tensors or edges, not past a tensor in `known`: unknown leaves, known tensors reached."""
    leaves, edges = {}, {}
    for tensor in known:
        if tensor.grad_fn is None:
            leaves[id(tensor)] = tensor
        else:
            edges[tensor.grad_fn, tensor.output_nr] = tensor
    unknown: dict[int, Tensor] = {}
    reached: dict[int, Tensor] = {}
    stack: list[Edge] = [(s.grad_fn, s.output_nr) if isinstance(s, Tensor) else s for s in start]
    seen = set()
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node is None or node in seen:
            continue
        if edge in edges:
            reached[id(edges[edge])] = edges[edge]
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is None:
            stack.extend(node.next_functions)
        elif id(leaf) in leaves:
            reached[id(leaf)] = leaf
        else:
            unknown[id(leaf)] = leaf
    return list(unknown.values()), list(reached.values())
