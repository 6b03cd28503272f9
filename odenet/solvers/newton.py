"""The equations of an implicit step, solved by Newton's method.

    K = G(K),   G(K)_i = F(t_i, base + h Σ_j a_ij K_j)

The corrections (I - h a⊗J) δ = G(K) - K are solved with a dense matrix, factorised once and kept as long as the
iteration converges fast with it, up to `DENSE` unknowns; beyond, by GMRES on products with the Jacobian at the present
iterate. The last evaluation of F is at the K that is returned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet.solvers.control import scale
from odenet.solvers.explicit import combine
from odenet.solvers.gmres import gmres
from odenet.solvers.implicit_function import DENSE
from odenet.solvers.jacobian import Products, flat, jacobian, leaf, shaped, size, taped
from odenet.solvers.stepper import Evaluate

ITERATIONS, PATIENCE = 12, 50  # of an adaptive step, which may be made smaller, and of a fixed one
LEAST_DAMPING = 1e-3
SHARE = 1e-4  # of the tolerance of an adaptive solve; smaller than values need, so that gradients are exact
TRUSTED = 0.1  # of a stage and of what the step does to it: a larger first correction says that a guess was bad
ROUNDING = 16  # units of rounding, for fixed steps
FORCING = 1e-4  # relative residual of a linear solve by GMRES
SINGULAR = sys.float_info.max  # what the residual is said to be where the matrix of the corrections has no inverse


class Equations(NamedTuple):
    """K = G(K) for one stage, or for several that are solved together.

    Attributes:
        f: evaluates F.
        times: t_i.
        base: what the step has so far.
        h: size of the step.
        a: rows of coefficients.
    """

    f: Evaluate
    times: Sequence[float]
    base: Tensor
    h: float
    a: Sequence[Sequence[float]]

    def points(self, K: Tensor) -> list[Tensor]:
        """base + h Σ_j a_ij K_j."""
        return [combine(self.base, self.h, row, list(K)) for row in self.a]

    def __call__(self, K: Tensor) -> Tensor:
        """G(K)."""
        return torch.stack([self.f(t, y) for t, y in zip(self.times, self.points(K), strict=True)])


class Solved(NamedTuple):
    """Where Newton's method ended.

    Attributes:
        K: the values, without a graph.
        at: the tensor of these values that G was evaluated at.
        value: G(K), with a graph if gradients are enabled.
        residual: size of the last correction, in units of what was asked for; up to 1 if it converged.
        converged: whether it did.
    """

    K: Tensor
    at: Tensor
    value: Tensor
    residual: float
    converged: bool


class Precision:
    """How small a correction has to be: a share of an adaptive solve's tolerance, or rounding.

    Args:
        tolerances: (rtol, atol) of an adaptive solve, or None.
        norm: of a scaled state.
    """

    def __init__(self, tolerances: tuple[Any, Any] | None, norm: Callable[[Tensor], Any]):
        self.tolerances, self.norm = tolerances, norm

    def size(self, delta: Tensor, K: Tensor, equations: Equations) -> float:
        """Size of what a correction of K does to the stages; 1 is small enough."""
        x, h = equations.base.detach(), equations.h
        rounding = ROUNDING * torch.finfo(x.dtype).eps
        moved = [combine(None, h, row, list(delta)) for row in equations.a]
        if self.tolerances is not None:
            rtol, atol = self.tolerances
            weight = scale(x, SHARE * rtol + rounding, SHARE * atol)
            return max(float(self.norm(m / weight)) for m in moved)
        taken = [combine(None, h, row, list(K)) for row in equations.a]
        lengths = torch.stack([torch.linalg.vector_norm(m) for m in (*moved, *taken, x)]).tolist()
        change = max(lengths[: len(moved)])
        return change / (rounding * max(change, *lengths[len(moved) :])) if change else 0.0

    def astray(self, delta: Tensor, K: Tensor, equations: Equations) -> bool:
        """Whether a first correction changes an element so much that the guess must have been far off."""
        x, h = equations.base.detach().abs(), equations.h
        off = [combine(None, h, row, list(delta)).abs() for row in equations.a]
        taken = [combine(None, h, row, list(K)).abs() for row in equations.a]
        far = [(moved > TRUSTED * (x + part)).any() for moved, part in zip(off, taken, strict=True)]
        return bool(torch.stack(far).any())

    @property
    def iterations(self) -> int:
        """How many are tried."""
        return PATIENCE if self.tolerances is None else ITERATIONS

    @property
    def loose(self) -> float:
        """A correction of this size is accepted where iterating does not make it smaller, the Jacobian being new."""
        return 0.3 / SHARE if self.tolerances is not None else 1e4


class Dense:
    """Corrections by a factorised matrix; kept from stage to stage of a step."""

    exact = False
    room = 0.0

    def __init__(self) -> None:
        self.jacobians: list[Tensor] | None = None
        self._factors: Any = None

    @property
    def stale(self) -> bool:
        """Whether the Jacobian has to be taken before the next correction."""
        return self.jacobians is None

    @property
    def singular(self) -> bool:
        """Whether the matrix has no inverse."""
        return bool((self._factors[0].diagonal() == 0).any())

    def start(self) -> None:
        """Begin with other equations: the Jacobian is kept."""

    def forget(self) -> None:
        """Take the Jacobian anew."""
        self.jacobians = None

    def take(self, equations: Equations, K: Tensor) -> Tensor:
        """G(K) without a graph; its Jacobian is kept, factorised."""
        values, self.jacobians = [], []
        with taped():
            for t, point in zip(equations.times, equations.points(K.detach()), strict=True):
                at = leaf(point)
                value = equations.f(t, at)
                self.jacobians.append(jacobian(value, at))
                values.append(value.detach())
        blocks = [
            torch.cat([-equations.h * w * J for w in row], 1)
            for row, J in zip(equations.a, self.jacobians, strict=True)
        ]
        matrix = torch.cat(blocks)
        matrix.diagonal().add_(1)
        self._factors = torch.linalg.lu_factor_ex(matrix)[:2]
        return torch.stack(values)

    def solve(self, equations: Equations, K: Tensor, residual: Tensor) -> Tensor:
        """δ."""
        b = flat(residual).to(self._factors[0].dtype)
        return shaped(torch.linalg.lu_solve(*self._factors, b[:, None])[:, 0], residual)

    def filtered(self, equations: Equations, gamma: float, error: Tensor) -> Tensor:
        """(I - h γ J)⁻¹ error."""
        assert self.jacobians is not None
        matrix = -equations.h * gamma * self.jacobians[0]
        matrix.diagonal().add_(1)
        return shaped(torch.linalg.solve(matrix, flat(error).to(matrix.dtype)), error)


class Krylov:
    """Corrections by GMRES, as exactly as it pays: to a residual of η, and of the square of what the last correction
    made of it (Eisenstat and Walker 1996), but to no more than a tenth of what a correction may be at the end."""

    exact, stale = True, False

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin with other equations."""
        self._before, self.room = 0.0, 0.0

    def forget(self) -> None:
        """The Jacobian is that at the present iterate already."""

    def take(self, equations: Equations, K: Tensor) -> Tensor:
        """Not needed."""
        raise NotImplementedError

    def solve(self, equations: Equations, K: Tensor, residual: Tensor) -> Tensor:
        """δ."""
        points = equations.points(K.detach())
        products = [Products(equations.f, t, y) for t, y in zip(equations.times, points, strict=True)]

        def product(v: Tensor) -> Tensor:
            delta = list(shaped(v, residual))
            moved = [p(combine(None, equations.h, row, delta)) for p, row in zip(products, equations.a, strict=True)]
            return v - flat(torch.stack(moved))

        b = flat(residual)
        length = float(torch.linalg.vector_norm(b))
        forcing = min(FORCING, (length / self._before) ** 2 if self._before else 1.0)
        self._before = length
        return shaped(gmres(product, b, max(forcing * length, 0.1 * self.room))[0], residual)

    def filtered(self, equations: Equations, gamma: float, error: Tensor) -> Tensor:
        """(I - h γ J)⁻¹ error."""
        one = equations._replace(times=equations.times[:1], a=((gamma,),))
        self.start()
        return self.solve(one, torch.zeros_like(error)[None], error[None])[0]


def linear_solver(x: Tensor) -> Dense | Krylov:
    """How corrections are found for states like x."""
    return Dense() if size(x) <= DENSE else Krylov()


def newton(
    equations: Equations, guess: Tensor, linear: Dense | Krylov, precision: Precision, doubted: bool = False
) -> Solved:
    """K = G(K) from a guess.

    The matrix is taken anew where three more corrections with it would not do. A correction after which the next one is
    larger is taken back and halved (Deuflhard's monotonicity test).

    Args:
        equations: G.
        guess: K_0, without a graph.
        linear: finds the corrections.
        precision: when they are small enough.
        doubted: whether to give up where the first correction says that the guess was far off.

    Reference:
        Hairer and Wanner 1996, Solving Ordinary Differential Equations II, section IV.8; Deuflhard 2004, Newton Methods
        for Nonlinear Problems.
    """
    K, before, correction, damping = guess, guess, torch.zeros_like(guess), 1.0
    last, fresh = math.inf, False
    linear.start()
    for iteration in range(1, precision.iterations + 1):
        taking = linear.stale
        if taking:
            at, value = K, linear.take(equations, K)
        else:
            at = known(K, equations.base)
            value = equations(at)
        with torch.no_grad():
            delta = linear.solve(equations, K, value.detach() - K)
            size_of = precision.size(delta, K, equations)
            if not math.isfinite(size_of) and isinstance(linear, Dense) and linear.singular:
                return Solved(K, at, value, SINGULAR, False)
            rate = size_of / last if last else 0.0
            stagnates = rate > 0.5 and (fresh or linear.exact)
            settled = size_of <= 1 or (size_of <= precision.loose and stagnates)
            done = settled and not taking
            first = last == math.inf and not math.isfinite(size_of)
            if doubted and iteration == 1 and not first and precision.astray(delta, K, equations):
                return Solved(K, at, value, size_of, False)
            if done or first or iteration == precision.iterations or damping < LEAST_DAMPING:
                return Solved(K, at, value, size_of, done)
            if settled or rate < 1:
                if not taking and size_of * rate * rate > 1:
                    linear.forget()
                before, correction, damping, last, fresh = K, delta, 1.0, size_of, taking
                linear.room = float(torch.linalg.vector_norm(delta)) / size_of if linear.exact and size_of else 0.0
                K = K + delta
            elif fresh or linear.exact:
                damping /= 2
                K = before + damping * correction
            else:
                linear.forget()
                K, last = before, math.inf
    raise AssertionError


class _Known(torch.autograd.Function):
    """K as a tensor that gradients can be taken with respect to, and that hands on none itself."""

    @staticmethod
    def forward(ctx: Any, K: Tensor, base: Tensor) -> Tensor:
        return K.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None]:
        return None, None


def known(K: Tensor, base: Tensor) -> Tensor:
    """K as the start of G's graph if gradients are enabled."""
    if not torch.is_grad_enabled():
        return K
    return _Known.apply(K, base) if base.requires_grad else leaf(K)
