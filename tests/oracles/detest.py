"""DETEST: the 25 non-stiff test problems of Hull, Enright, Fellen and Sedgwick, on [0, 20].

F(t, y, m) is written for any array library m (numpy, torch, jax.numpy), so that every solver is given the same problem.

Reference:
    Hull, Enright, Fellen and Sedgwick 1972, Comparing numerical methods for ordinary differential equations, SIAM J.
    Numer. Anal. 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

END = 20.0


@dataclass(frozen=True)
class Problem:
    """y' = F(t, y), y(0) = y0, on [0, 20].

    Attributes:
        name: class and number, as in the paper.
        about: what it is.
        F: F(t, y, m) with the array library m.
        y0: initial values.
    """

    name: str
    about: str
    F: Callable[[Any, Any, Any], Any]
    y0: tuple[float, ...]


def predator_prey(t: Any, y: Any, m: Any) -> Any:
    return m.stack([2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])])


def torus(t: Any, y: Any, m: Any) -> Any:
    r = m.sqrt(y[0] ** 2 + y[1] ** 2)
    return m.stack([-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r])


def decay_chain(t: Any, y: Any, m: Any) -> Any:
    out = m.concatenate([y[:-1], 0 * y[:1]])
    return m.concatenate([0 * y[:1], y[:-1]]) - out


def growing_decay_chain(t: Any, y: Any, m: Any) -> Any:
    rates = m.asarray(np.array([*range(1, len(y)), 0.0]))
    out = rates * y
    return m.concatenate([0 * y[:1], out[:-1]]) - out


def heat(t: Any, y: Any, m: Any) -> Any:
    return m.concatenate([0 * y[:1], y[:-1]]) - 2 * y + m.concatenate([y[1:], 0 * y[:1]])


GRAVITY, SUN = 2.95912208286, 1.00000597682
PLANETS = np.array([0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778])
PLACES = (
    (3.42947415189, 3.35386959711, 1.35494901715),
    (6.64145542550, 5.97156957878, 2.18231499728),
    (11.2630437207, 14.6952576794, 6.27960525067),
    (-30.1552268759, 1.65699966404, 1.43785752721),
    (-21.1238353380, 28.4465098142, 15.3882659679),
)
VELOCITIES = (
    (-0.557160570446, 0.505696783289, 0.230578543901),
    (-0.415570776342, 0.365682722812, 0.169143213293),
    (-0.325325669158, 0.189706021964, 0.0877265322780),
    (-0.0240476254170, -0.287659532608, -0.117219543175),
    (-0.176860753121, -0.216393453025, -0.0148647893090),
)


def outer_planets(t: Any, y: Any, m: Any) -> Any:
    """y_j'' = k² (-(m_0 + m_j) y_j / r_j³ + Σ_{k≠j} m_k ((y_k - y_j) / d_jk³ - y_k / r_k³))."""
    q, masses = y[:15].reshape(5, 3), m.asarray(PLANETS)
    pull = q / ((q**2).sum(-1) ** 1.5)[:, None]
    apart = q[None] - q[:, None]
    d = (apart**2).sum(-1) + m.asarray(np.eye(5))
    between = (masses[None, :, None] * (apart / (d**1.5)[:, :, None] - pull[None])).sum(1)
    own = masses[:, None] * pull  # k = j in the sum above
    return m.concatenate([y[15:], (GRAVITY * (-(SUN + masses)[:, None] * pull + between + own)).reshape(-1)])


def two_bodies(t: Any, y: Any, m: Any) -> Any:
    r3 = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return m.stack([y[2], y[3], -y[0] / r3, -y[1] / r3])


def kepler(e: float) -> tuple[float, ...]:
    return (1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e)))


def bessel(t: Any, y: Any, m: Any) -> Any:
    s = t + 1
    return m.stack([y[1], -(y[1] / s + (1 - 0.25 / s**2) * y[0])])


def first(n: int) -> tuple[float, ...]:
    return (1.0, *[0.0] * (n - 1))


DETEST = [
    Problem("A1", "decay", lambda t, y, m: -y, (1.0,)),
    Problem("A2", "a Riccati equation's special case", lambda t, y, m: -(y**3) / 2, (1.0,)),
    Problem("A3", "an oscillating growth rate", lambda t, y, m: y * m.cos(t), (1.0,)),
    Problem("A4", "a logistic curve", lambda t, y, m: y / 4 * (1 - y / 20), (1.0,)),
    Problem("A5", "a spiral", lambda t, y, m: (y - t) / (y + t), (4.0,)),
    Problem("B1", "two populations in conflict", predator_prey, (1.0, 3.0)),
    Problem(
        "B2",
        "a linear chemical reaction",
        lambda t, y, m: m.stack([-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]]),
        (2.0, 0.0, 1.0),
    ),
    Problem(
        "B3",
        "a nonlinear chemical reaction",
        lambda t, y, m: m.stack([-y[0], y[0] - y[1] ** 2, y[1] ** 2]),
        (1.0, 0.0, 0.0),
    ),
    Problem("B4", "an integral surface of a torus", torus, (3.0, 0.0, 0.0)),
    Problem(
        "B5",
        "a rigid body without external forces",
        lambda t, y, m: m.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
        (0.0, 1.0, 1.0),
    ),
    Problem("C1", "a radioactive decay chain", decay_chain, first(10)),
    Problem("C2", "another radioactive decay chain", growing_decay_chain, first(10)),
    Problem("C3", "a parabolic equation on 10 points", heat, first(10)),
    Problem("C4", "a parabolic equation on 51 points", heat, first(51)),
    Problem(
        "C5",
        "five outer planets",
        outer_planets,
        tuple(x for row in (*PLACES, *VELOCITIES) for x in row),
    ),
    *(
        Problem(f"D{i + 1}", f"two bodies, eccentricity {e}", two_bodies, kepler(e))
        for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ),
    Problem("E1", "Bessel's equation of order 1/2", bessel, (0.6713967071418030, 0.09540051444747446)),
    Problem("E2", "van der Pol's equation", lambda t, y, m: m.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]]), (2.0, 0.0)),
    Problem(
        "E3",
        "Duffing's equation",
        lambda t, y, m: m.stack([y[1], y[0] ** 3 / 6 - y[0] + 2 * m.sin(2.78535 * t)]),
        (0.0, 0.0),
    ),
    Problem("E4", "a falling body", lambda t, y, m: m.stack([y[1], 0.032 - 0.4 * y[1] ** 2]), (30.0, 0.0)),
    Problem("E5", "a linear pursuit", lambda t, y, m: m.stack([y[1], m.sqrt(1 + y[1] ** 2) / (25 - t)]), (0.0, 0.0)),
]


@lru_cache(maxsize=64)
def reference(name: str, times: tuple[float, ...]) -> np.ndarray:
    """y at times, shape (len(times), dim), by SciPy's DOP853 at 1e-13."""
    problem = next(p for p in DETEST if p.name == name)
    solution = solve_ivp(
        lambda t, y: problem.F(t, y, np), (0.0, END), problem.y0, "DOP853", t_eval=times, rtol=1e-13, atol=1e-13
    )
    return solution.y.T
