"""The Jacobian of F: dense by rows, or as products with vectors.

A state counts as one real vector, a complex one as its real and imaginary parts, so that F need not be holomorphic.
Nothing is assumed of the Jacobian's structure: F may couple the samples of a batch.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from odenet.errors import OdenetError
from odenet.solvers.stepper import Evaluate


def flat(x: Tensor) -> Tensor:
    """A state, or several, as one real vector."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)


def shaped(v: Tensor, like: Tensor) -> Tensor:
    """The states of `like`'s shape and dtype that a real vector, or each row of a matrix, holds."""
    lead = v.shape[:-1]
    if like.is_complex():
        return torch.view_as_complex(v.reshape(*lead, *like.shape, 2).to(like.dtype.to_real()).contiguous())
    return v.reshape((*lead, *like.shape)).to(like.dtype)


def size(x: Tensor) -> int:
    """Number of real unknowns in a state."""
    return x.numel() * (2 if x.is_complex() else 1)


@contextlib.contextmanager
def taped() -> Iterator[None]:
    """Gradients on, even where the caller has switched them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaf(x: Tensor) -> Tensor:
    """x as the start of a graph."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def rows(value: Tensor, at: Tensor, seeds: Tensor) -> Tensor:
    """seeds · ∂value/∂at as real rows: (k, size(at)) for seeds (k, size(value)); the graph is kept.

    All at once if autograd can batch the backward pass of F, else one after the other.
    """
    width = size(at)
    if not value.requires_grad or not len(seeds):
        return seeds.new_zeros(len(seeds), width)
    cotangents = shaped(seeds, value)

    def pull(cotangent: Tensor, batched: bool = False) -> Tensor | None:
        return torch.autograd.grad(
            value, at, cotangent, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )[0]

    try:
        found = pull(cotangents, batched=True)
    except (RuntimeError, NotImplementedError):
        each = [pull(cotangent) for cotangent in cotangents]
        found = None if each[0] is None else torch.stack([g for g in each if g is not None])
    if found is None:
        return seeds.new_zeros(len(seeds), width)
    return (torch.view_as_real(found.resolve_conj()) if found.is_complex() else found).reshape(len(seeds), -1)


def jacobian(value: Tensor, at: Tensor) -> Tensor:
    """∂value/∂at, a matrix of real numbers in float32 or float64."""
    wide = torch.promote_types(value.dtype.to_real(), torch.float32)
    eye = torch.eye(size(value), dtype=value.dtype.to_real(), device=value.device)
    return rows(value, at, eye).to(wide)


@lru_cache
def load_forward_mode() -> None:
    """Let torch load its forward mode, during which it warns of its own use of torch.jit."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


class Products:
    """v -> ∂F/∂x v at one point.

    By forward-mode differentiation, as `torch.func.jvp` does it but without its wrappers around tensors, which F may
    not be able to work with (running statistics, gradients inside F): each product evaluates F once. Where a part of F
    has no forward mode, by differentiating a vector-Jacobian product with respect to the vector: F is evaluated once
    for all products.

    Args:
        f: evaluates F.
        t: time of the point.
        x: state of the point.
    """

    def __init__(self, f: Evaluate, t: float, x: Tensor):
        self.f, self.t, self.x = f, t, x
        self._linear: tuple[Tensor, Tensor] | None = None

    def __call__(self, v: Tensor) -> Tensor:
        if self._linear is None:
            try:
                return self._forward(v)
            except OdenetError:
                raise
            except (RuntimeError, NotImplementedError):
                self._linear = self._backward()
        pulled, seed = self._linear
        with taped():
            (product,) = torch.autograd.grad(pulled, seed, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if product is None else product.detach()

    def _forward(self, v: Tensor) -> Tensor:
        load_forward_mode()
        with taped(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            k = self.f(self.t, forward_ad.make_dual(leaf(self.x), v))
            tangent = forward_ad.unpack_dual(k).tangent
        return torch.zeros_like(v) if tangent is None else tangent.detach()

    def _backward(self) -> tuple[Tensor, Tensor]:
        with taped(), sdpa_kernel(SDPBackend.MATH):
            at = leaf(self.x)
            k = self.f(self.t, at)
            seed = torch.zeros_like(k).requires_grad_()
            if not k.requires_grad:
                return 0 * seed, seed
            (pulled,) = torch.autograd.grad(k, at, seed, create_graph=True, allow_unused=True)
            return 0 * seed if pulled is None else pulled, seed
