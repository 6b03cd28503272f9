"""States that are not one tensor: tuples, lists, dicts and named tuples of tensors, packed into one for the solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenet.depth import DepthWeights
from odenet.errors import InputError, ResidualError
from odenet.solvers.events import Event, takes_args


class Packing:
    """How a pytree of tensors lies in one tensor.

    If all leaves have the same first dimension, the packed state is (batch, n), one row a sample; else it is (1, n).
    Leaves of several dtypes are promoted to a common one and cast back for F and in the answer.

    Args:
        tree: the initial state.

    Raises:
        InputError: a leaf is not a tensor of numbers on the same device as the others, or there is none.
    """

    def __init__(self, tree: Any):
        leaves, self.structure = pytree.tree_flatten(tree)
        if not leaves:
            raise InputError(f"the state must hold at least one tensor, got {tree!r}")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise InputError(f"the state must be a tensor or a tuple or dict of them, got {type(leaf).__name__}")
            if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
                raise InputError(
                    f"the state must be of a floating-point or complex dtype, got {leaf.dtype}; use .float()"
                )
            if leaf.device != leaves[0].device:
                raise InputError(
                    f"the state's tensors lie on {leaves[0].device} and {leaf.device}; move them to one device"
                )
        self.shapes = [leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.dtype = self.dtypes[0]
        for dtype in self.dtypes[1:]:
            self.dtype = torch.promote_types(self.dtype, dtype)
        first = self.shapes[0][:1]
        self.together = together = bool(first) and all(shape[:1] == first for shape in self.shapes)
        self.batch = first[0] if together else 1
        self.sizes = [math.prod(shape[1:] if together else shape) for shape in self.shapes]

    def pack(self, tree: Any) -> Tensor:
        """One tensor from a tree of this structure."""
        leaves = pytree.tree_leaves(tree)
        batch = len(leaves[0]) if self.together else 1
        rows = [leaf.to(self.dtype).reshape(batch, n) for leaf, n in zip(leaves, self.sizes, strict=True)]
        return torch.cat(rows, -1)

    def unpack(self, x: Tensor, lead: int = 0) -> Any:
        """The tree in a packed state, or in `lead` dimensions of them."""
        leaves = []
        for part, shape, dtype in zip(x.split(self.sizes, -1), self.shapes, self.dtypes, strict=True):
            rows = (x.shape[lead], *shape[1:]) if self.together else shape
            leaf = part.reshape((*x.shape[:lead], *rows))
            leaves.append(leaf if dtype == self.dtype else (leaf if dtype.is_complex else _real(leaf)).to(dtype))
        return pytree.tree_unflatten(leaves, self.structure)

    def pack_slope(self, k: Any, batch: int | None = None) -> Tensor:
        """F's value as one tensor.

        Args:
            k: a tree of the state's structure.
            batch: how many samples it is for, if they are not all.

        Raises:
            ResidualError: it is not built like the state.
        """
        leaves, structure = pytree.tree_flatten(k)
        if structure != self.structure:
            raise ResidualError(
                f"F(t, x) must return what x is built like, {_shown(self.structure)}, but returned {_shown(structure)}"
            )
        for number, (leaf, shape, dtype) in enumerate(zip(leaves, self.shapes, self.dtypes, strict=True)):
            where = f"tensor {number} of the state"
            if not isinstance(leaf, Tensor):
                raise ResidualError(f"F(t, x) must return tensors, got {type(leaf).__name__} for {where}")
            shape = (batch or self.batch, *shape[1:]) if self.together else tuple(shape)
            if leaf.shape != shape:
                raise ResidualError(
                    f"F(t, x) must keep the shapes of x, but returned {tuple(leaf.shape)} for {where}, {shape}"
                )
            if leaf.dtype != dtype and not torch.is_autocast_enabled(leaf.device.type):
                raise ResidualError(f"F(t, x) must keep x's dtypes, but returned {leaf.dtype} for {where}, {dtype}")
        return self.pack(k)

    def tolerance(self, name: str, value: Any, device: torch.device) -> Any:
        """A tolerance for the packed state, from a number, or from a tree of numbers or tensors like the state."""
        if value is None or isinstance(value, int | float | Tensor):
            return value
        leaves = pytree.tree_leaves(value)
        if len(leaves) != len(self.shapes):
            raise InputError(f"{name} must be a number or one for each of {len(self.shapes)} tensors, got {value!r}")
        wide = torch.float32 if device.type == "mps" else torch.float64
        parts = [
            torch.as_tensor(leaf, dtype=wide, device=device).expand(shape).reshape(self.batch, size)
            for leaf, shape, size in zip(leaves, self.shapes, self.sizes, strict=True)
        ]
        return torch.cat(parts, -1).to(self.dtype.to_real())

    def norm(self, norm: Callable[[Any], Any] | None) -> Callable[[Tensor], Any] | None:
        """A norm of trees as one of packed states."""
        return None if norm is None else lambda x: norm(self.unpack(x))


class Packed(DepthWeights):
    """F of trees as F of packed states.

    Args:
        weights: F with its weights over depth, called with trees.
        packing: how a tree lies in one tensor.
    """

    def __init__(self, weights: DepthWeights, packing: Packing):
        super().__init__()
        self.weights, self.packing, self.knots, self.varies = weights, packing, weights.knots, weights.varies

    def piece(self, index: int, t0: float = 0.0, t1: float = 1.0) -> Callable[..., Tensor]:
        """F on piece `index`, of packed states."""
        return PackedFunction(self.weights.piece(index, t0, t1), self.packing)


class PackedFunction:
    """F(t, x) of a packed state.

    Args:
        F: called with a tree.
        packing: how it lies in one tensor.
    """

    def __init__(self, F: Callable[..., Any], packing: Packing):
        self.F, self.packing = F, packing

    def __call__(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        return self.packing.pack_slope(self.F(t, self.packing.unpack(x), *args), x.shape[0])


def _real(x: Tensor) -> Tensor:
    return x.real if x.dtype.is_complex else x


def _shown(structure: Any) -> str:
    return str(pytree.tree_unflatten(["tensor"] * structure.num_leaves, structure)).replace("'tensor'", "tensor")


def is_tree(x: Any) -> bool:
    """Whether a state is built of several tensors."""
    return not isinstance(x, Tensor) and isinstance(x, Sequence | dict) and not isinstance(x, str | bytes)


def packed_event(event: Event, packing: Packing) -> Event:
    """An event of trees as one of packed states."""

    def function(t: Tensor, x: Tensor, *args: Any) -> Tensor:
        return event.function(t, packing.unpack(x), *args)

    def update(t: Tensor, x: Tensor, *args: Any) -> Tensor:
        assert event.update is not None
        tree = event.update(t, packing.unpack(x), *(args if takes_args(event.update) else ()))
        return packing.pack_slope(tree, x.shape[0])

    return replace(event, function=function, update=update if event.update else None)
