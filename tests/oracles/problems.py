"""x' = F(t, x), x(t0) = x0, and the answer at any t in the interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odenet.solvers.stepper import Stepper


@dataclass(frozen=True)
class Oracle:
    """A problem with a known answer.

    Attributes:
        name: as it reads in a test's id.
        F: the right-hand side.
        x0: initial state, (batch, dim), float64.
        interval: (t0, t1).
        answer: t -> x(t), of x0's shape.
        separable: whether x = (q, p), q' = f(p) and p' = g(t, q).
    """

    name: str
    F: Callable[[Tensor, Tensor], Tensor]
    x0: Tensor
    interval: tuple[float, float]
    answer: Callable[[float], Tensor]
    separable: bool = False


def _double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


A = _double([[-0.4, 1.0, 0.2], [-1.3, -0.2, 0.5], [0.1, -0.6, -0.5]])
LINEAR_X0 = _double([[1.0, 0.5, -0.3], [-0.7, 1.2, 0.4]])
FORCING = _double([[1.0, 0.3], [-0.5, 1.0], [0.2, -0.7]])
SCALAR_X0 = _double([[1.0], [-0.5]])
LOGISTIC_X0 = _double([[0.1], [0.3], [0.9]])
PENDULUM_X0 = _double([[1.0, 0.2], [-2.0, 0.5]])
VOLTERRA_X0 = _double([[1.0, 1.0], [2.0, 0.5]])
VOLTERRA = (1.5, 1.0, 1.0, 3.0)


def linear(t: Tensor, x: Tensor) -> Tensor:
    return x @ A.T


def forced(t: Tensor, x: Tensor) -> Tensor:
    return x @ A.T + torch.stack([torch.cos(2 * t), torch.sin(2 * t)]) @ FORCING.T


def cosine(t: Tensor, x: Tensor) -> Tensor:
    return torch.cos(3 * t) - t * x


def growth(t: Tensor, x: Tensor) -> Tensor:
    return t * x


def quadrature(t: Tensor, x: Tensor) -> Tensor:
    return torch.exp(-t) * torch.sin(4 * t) + torch.zeros_like(x)


def logistic(t: Tensor, x: Tensor) -> Tensor:
    return x * (1 - x)


def harmonic(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -x[:, 0]], 1)


def pendulum(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], torch.cos(2 * t) - torch.sin(x[:, 0])], 1)


def orbit(t: Tensor, x: Tensor) -> Tensor:
    """Kepler's problem q'' = -q/|q|³, x = (q, q'), (batch, 4)."""
    q, p = x[:, :2], x[:, 2:]
    return torch.cat([p, -q / torch.linalg.vector_norm(q, dim=1, keepdim=True) ** 3], 1)


def lotka_volterra(t: Tensor, x: Tensor) -> Tensor:
    a, b, d, g = VOLTERRA
    prey, predator = x[:, 0], x[:, 1]
    return torch.stack([a * prey - b * prey * predator, d * prey * predator - g * predator], 1)


def lotka_volterra_invariant(x: Tensor) -> Tensor:
    """V = d x - g ln x + b y - a ln y, constant along solutions."""
    a, b, d, g = VOLTERRA
    return d * x[:, 0] - g * x[:, 0].log() + b * x[:, 1] - a * x[:, 1].log()


@lru_cache(maxsize=64)
def _cosine_answer(t: float) -> Tensor:
    if t == 0:
        return SCALAR_X0
    answers = [
        solve_ivp(lambda s, y: math.cos(3 * s) - s * y, (0, t), [float(x0)], "DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
        for x0 in SCALAR_X0
    ]
    return _double([[float(answer[0])] for answer in answers])


@lru_cache(maxsize=64)
def _pendulum_answer(t: float) -> Tensor:
    if t == 0:
        return PENDULUM_X0
    slope = lambda s, y: [y[1], math.cos(2 * s) - math.sin(y[0])]  # noqa: E731
    answers = [solve_ivp(slope, (0, t), x0.tolist(), "DOP853", rtol=1e-13, atol=1e-13).y[:, -1] for x0 in PENDULUM_X0]
    return _double([answer.tolist() for answer in answers])


def _forced_answer(t: float) -> Tensor:
    """The matrix exponential of the system of x, cos 2t and sin 2t."""
    whole = torch.zeros(5, 5, dtype=torch.float64)
    whole[:3, :3], whole[:3, 3:], whole[3, 4], whole[4, 3] = A, FORCING, -2, 2
    start = torch.cat([LINEAR_X0, _double([[1.0, 0.0]] * 2)], 1)
    return (start @ torch.linalg.matrix_exp(t * whole).T)[:, :3]


def _quadrature_answer(t: float) -> Tensor:
    return SCALAR_X0 + (4 - math.exp(-t) * (math.sin(4 * t) + 4 * math.cos(4 * t))) / 17


def _logistic_answer(t: float) -> Tensor:
    return LOGISTIC_X0 * math.exp(t) / (1 + LOGISTIC_X0 * (math.exp(t) - 1))


def _harmonic_answer(t: float) -> Tensor:
    q, p = SCALAR_X0[:, 0], 0.5 * SCALAR_X0[:, 0]
    return torch.stack([q * math.cos(t) + p * math.sin(t), p * math.cos(t) - q * math.sin(t)], 1)


PROBLEMS = [
    Oracle("linear", linear, LINEAR_X0, (0.0, 2.0), lambda t: LINEAR_X0 @ torch.linalg.matrix_exp(t * A).T),
    Oracle("forced", forced, LINEAR_X0, (0.0, 3.0), _forced_answer),
    Oracle("cosine", cosine, SCALAR_X0, (0.0, 2.0), _cosine_answer),
    Oracle("growth", growth, SCALAR_X0, (0.0, 2.0), lambda t: SCALAR_X0 * math.exp(t * t / 2)),
    Oracle("quadrature", quadrature, SCALAR_X0, (0.0, 2.0), _quadrature_answer),
    Oracle("logistic", logistic, LOGISTIC_X0, (0.0, 3.0), _logistic_answer),
    Oracle("harmonic", harmonic, _harmonic_answer(0.0), (0.0, 3.0), _harmonic_answer, separable=True),
    Oracle("pendulum", pendulum, PENDULUM_X0, (0.0, 3.0), _pendulum_answer, separable=True),
]


def problems_for(solver: Stepper) -> list[Oracle]:
    """The problems that a method is for: partitioned ones take separable problems."""
    return [problem for problem in PROBLEMS if problem.separable or not solver.partitioned]
