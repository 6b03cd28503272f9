"""The vector field of the continuous adjoint: state, cotangent and the parameters' gradient as one packed state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from odenet.depth import Constant
from odenet.gradients.inputs import Inputs, vjp
from odenet.solvers.field import VectorField
from odenet.solvers.grid import Piece
from odenet.solvers.problem import Problem
from odenet.solvers.stepper import Evaluate

Part = tuple[torch.Size, torch.dtype]


class _Nothing:
    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError("the way back evaluates F by its own vector field")


PLACE = Constant(_Nothing())


class Augmented(VectorField):
    """d/dt [x, a, θ̄] = [F, -aᵀ ∂F/∂x, -aᵀ ∂F/∂θ] on one piece of depth, of flat packed states.

    Args:
        problem: whose F it is.
        inputs: the tensors that F uses.
        number: the piece.
        carried: whether θ̄ is part of the state; if not, `products` has -aᵀ ∂F/∂θ.

    Attributes:
        tensors: the tensors that F uses on this piece.
        used: indices into `tensors` of those that have had a gradient.
        products: -aᵀ ∂F/∂θ of the last evaluation, None for a tensor that does not enter it.
    """

    def __init__(self, problem: Problem, inputs: Inputs, number: int, carried: bool):
        self.problem, self.inputs, self.number, self.carried = problem, inputs, number, carried
        self.tensors = inputs.piece(number)
        self.used: set[int] = set()
        self.products: list[Tensor | None] = []
        x = problem.x0
        self.parts: list[Part] = [(x.shape, x.dtype)] * 2
        self.parts += [(tensor.shape, tensor.dtype) for tensor in self.tensors] if carried else []
        self.sizes = [math.prod(shape) for shape, _ in self.parts]
        self.dtype = self.parts[0][1]
        for _, dtype in self.parts:
            self.dtype = torch.promote_types(self.dtype, dtype)
        super().__init__(PLACE, (), x, [Piece(0, problem.t1, problem.t0)], problem.stats)

    def pack(self, parts: Sequence[Tensor | None]) -> Tensor:
        """A flat state from its parts, where None is zero."""
        like = self.problem.x0
        flat = [
            torch.zeros(n, dtype=self.dtype, device=like.device) if part is None else part.reshape(-1).to(self.dtype)
            for part, n in zip(parts, self.sizes, strict=True)
        ]
        return torch.cat(flat)

    def unpack(self, z: Tensor) -> list[Tensor]:
        """The parts of a flat state."""
        found = []
        for part, (shape, dtype) in zip(z.split(self.sizes), self.parts, strict=True):
            part = part.reshape(shape)
            found.append((part.real if part.dtype.is_complex and not dtype.is_complex else part).to(dtype))
        return found

    def shown(self, z: Tensor) -> tuple[Tensor, ...]:
        """The parts of a flat state with a zero before them, as torchdiffeq's callbacks are shown them."""
        return torch.zeros((), dtype=self.dtype, device=z.device), *self.unpack(z)

    def piece(self, index: int) -> Evaluate:
        """The vector field, as a function of a host time and a packed state."""
        f, stats = self.problem.field.piece(self.number), self.problem.stats

        def evaluate(t: float, z: Tensor) -> Tensor:
            # An implicit method differentiates what it solves.
            taped = torch.is_grad_enabled() and z.requires_grad
            dual = forward_ad.unpack_dual(z).tangent is not None if _forward_mode() else False
            x, a, *_ = self.unpack(z if taped or dual else z.detach())
            with torch.enable_grad():
                leaf = x if taped else x.requires_grad_() if dual else x.detach().requires_grad_()
                k = f(t, leaf)
            stats.vjps += 1
            slopes: list[Tensor | None] = [None] * (1 + len(self.tensors))
            if k.requires_grad:
                self.inputs.check(self.number, [k], leaf)
                keep = self.inputs.computed or taped
                slopes = list(vjp([k], [leaf, *self.tensors], [-a], keep=keep, create_graph=taped))
            self.used.update(i for i, slope in enumerate(slopes[1:]) if slope is not None)
            self.products = slopes[1:]
            return self.pack([k if taped or dual else k.detach(), *(slopes if self.carried else slopes[:1])])

        return evaluate

    def norm(self, wanted: Any, of_state: Callable[[Tensor], Any] | None) -> Callable[[Tensor], Any]:
        """Size of a scaled packed state: the largest of the sizes of its parts.

        Args:
            wanted: "seminorm", "full", or a function of the tuple of parts.
            of_state: the norm of the solve, or None for RMS.
        """
        of_state = of_state or _rms

        def size(z: Tensor) -> Any:
            x, a, *rest = self.unpack(z)
            if callable(wanted):
                return wanted((x, a, *rest))
            sizes = [of_state(x), of_state(a)]
            if wanted == "full":
                sizes += [_rms(part) for part in rest]
            return torch.stack([torch.as_tensor(size, device=z.device) for size in sizes]).max()

        return size

    def tolerance(self, value: Any) -> Any:
        """A tolerance for packed states, from a number or a tensor that broadcasts to x; θ̄ gets the smallest."""
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value if not isinstance(value, Tensor) else float(value)
        flat = value.expand(self.problem.x0.shape).reshape(-1)
        return torch.cat([flat, flat, flat.min().expand(sum(self.sizes[2:]))])


def _forward_mode() -> bool:
    """Whether something is being differentiated in forward mode."""
    return forward_ad._current_level >= 0


def _rms(x: Tensor) -> Tensor:
    """Root mean square over all elements, on the device."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(1, x.numel()))
