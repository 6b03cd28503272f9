"""The derivative of a solved equation, by the implicit function theorem instead of through the iterations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from odenet.errors import GradientError
from odenet.solvers.gmres import gmres
from odenet.solvers.jacobian import flat, jacobian, leaf, shaped, size

Map = Callable[[Tensor, Tensor], Tensor]
Solve = Callable[[Tensor, Tensor, Tensor], Tensor]
DENSE = 256
PRECISION = 8


def attach(
    G: Map, K: Tensor, at: Tensor, value: Tensor, base: Tensor, tensors: Sequence[Tensor], solve: Solve | None = None
) -> Tensor:
    """K = G(K, base) with the gradient of all that G depends on:

        K̄ -> y with y = K̄ + (∂G/∂K)ᵀ y, handed on to the graph of G(K, base)

    by a dense matrix up to `DENSE` unknowns, by GMRES on vector-Jacobian products beyond. For second derivatives G is
    evaluated once more, at K as a function of what it depends on, and y is differentiated in the same way.

    Args:
        G: the map; evaluated for second derivatives only.
        K: the solution, without a graph.
        at: the tensor of K's values at which G was evaluated.
        value: G(at, base), with its graph.
        base: what the step has so far.
        tensors: what else G depends on; needed for second derivatives only.
        solve: (value, at, g) -> y, instead of `transposed_solve`.

    Reference:
        Bai, Kolter and Koltun 2019, Deep Equilibrium Models (the backward pass of a fixed point).
    """
    if not depends(value, at, base, tensors):
        return K
    return _Solved.apply(G, solve or transposed_solve, K, at, value, base, *tensors)


class _Solved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, G: Map, solve: Solve, K: Tensor, at: Tensor, value: Tensor, base: Tensor, *tensors: Tensor
    ) -> Tensor:
        ctx.G, ctx.solve, ctx.at, ctx.value, ctx.tensors = G, solve, at, value, tensors
        K = K.clone()
        ctx.save_for_backward(K, base)
        return K

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        nothing = (None,) * len(ctx.tensors)
        if not torch.is_grad_enabled():
            return None, None, None, None, ctx.solve(ctx.value, ctx.at, g), None, *nothing
        K, base = ctx.saved_tensors
        _check_known(ctx.value, (ctx.at, base, *ctx.tensors))
        found = _Derivative.apply(ctx.G, ctx.solve, K, base, g, *ctx.tensors)
        wanted = [part if t.requires_grad else None for part, t in zip(found, (base, *ctx.tensors), strict=True)]
        return None, None, None, None, None, *wanted


class _Derivative(torch.autograd.Function):
    """(K, base, g) -> (∂G/∂base)ᵀ y and (∂G/∂tensors)ᵀ y, differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, G: Map, solve: Solve, K: Tensor, base: Tensor, g: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.leaves = [leaf(K), leaf(base), leaf(g)]
            K, base, g = ctx.leaves
            value = G(K, base)

            def H(y: Tensor) -> Tensor:
                (pulled,) = torch.autograd.grad(value, K, y, create_graph=True, allow_unused=True)
                return g if pulled is None else g + pulled

            at = leaf(solve(value, K, g.detach()))
            y = _Solved.apply(None, solve, at.detach(), at, H(at), g)
            ctx.tensors = [t for t in tensors if t.requires_grad]
            ctx.outputs = _vjp([value], [base, *tensors], [y], create_graph=True)
        return tuple(part.detach() for part in ctx.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *seeds: Tensor) -> Any:
        pairs = [(out, seed) for out, seed in zip(ctx.outputs, seeds, strict=True) if out.requires_grad]
        inputs = [*ctx.leaves, *ctx.tensors]
        found = _vjp([out for out, _ in pairs], inputs, [seed for _, seed in pairs]) if pairs else [None] * len(inputs)
        rest = dict(zip(map(id, ctx.tensors), found[3:], strict=True))
        return None, None, *found[:3], *(rest.get(id(t)) for t in ctx.tensors)


def _vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor]:
    """Σ seedsᵀ ∂outputs/∂inputs, zero where there is no dependence."""
    wanted = [t for t in inputs if t.requires_grad]
    grads = torch.autograd.grad(
        outputs, wanted, seeds, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    found = dict(zip(map(id, wanted), grads, strict=True))
    return [found[id(t)] if id(t) in found else torch.zeros_like(t) for t in inputs]


def transposed_solve(value: Tensor, at: Tensor, g: Tensor) -> Tensor:
    """y = g + (∂value/∂at)ᵀ y.

    Raises:
        GradientError: GMRES does not get there.
    """
    wide = torch.promote_types(g.dtype.to_real(), torch.float32)
    b = flat(g.detach()).to(wide)
    if size(g) <= DENSE:
        J = jacobian(value, at).detach()
        eye = torch.eye(len(J), dtype=J.dtype, device=J.device)
        return shaped(torch.linalg.solve((eye - J).T, b), g)

    def product(y: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(value, at, shaped(y, g), retain_graph=True, allow_unused=True)
        return y if pulled is None else y - flat(pulled.detach()).to(wide)

    length = float(torch.linalg.vector_norm(b))
    y, _ = gmres(product, b, PRECISION * torch.finfo(wide).eps * length)
    left = float(torch.linalg.vector_norm(b - product(y)))
    if not left <= math.sqrt(torch.finfo(wide).eps) * length:
        raise GradientError(
            f"the linear equations of an implicit step's gradient were solved to a relative {left / length:.1g} only; "
            "take smaller steps, or solve in float64"
        )
    return shaped(y, g)


def depends(value: Tensor, at: Tensor, base: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient is wanted of anything that `value` was computed from, beside `at`."""
    if not value.requires_grad:
        return False
    if base.requires_grad or any(t.requires_grad for t in tensors):
        return True
    return any(found is not at for found in _leaves(value))


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The leaf tensors of a graph."""
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # type: ignore[attr-defined]
        stack += [behind for behind, _ in node.next_functions]


def _check_known(value: Tensor, known: Sequence[Tensor]) -> None:
    """Raise `GradientError` if F uses a tensor that cannot be seen in it: its second derivatives would be lost."""
    behind = {id(t) for t in known}
    for computed in known:
        if computed.grad_fn is not None:
            behind.update(map(id, _leaves(computed)))
    for found in _leaves(value):
        if id(found) not in behind:
            raise GradientError(
                f"F uses a tensor of shape {tuple(found.shape)} that cannot be found in it, so that second derivatives "
                "through an implicit step would miss it; make it a parameter of F or hand it over in args="
            )
