"""The DETEST problems are the ones of the paper: closed forms, invariants, and numbers that are known of them."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.optimize import brentq
from scipy.special import ellipj, jv

from tests.oracles.detest import DETEST, GRAVITY, PLANETS, SUN, reference

TIMES = (0.7, 3.0, 11.0, 20.0)
BY_NAME = {problem.name: problem for problem in DETEST}


def tridiagonal(n):
    return np.diag([-2.0] * n) + np.diag([1.0] * (n - 1), 1) + np.diag([1.0] * (n - 1), -1)


def chain(t):
    stages = [math.exp(-t) * t**i / math.factorial(i) for i in range(9)]
    return [*stages, 1 - sum(stages)]


def growing_chain(t):
    stages = [math.exp(-t) * (1 - math.exp(-t)) ** i for i in range(9)]
    return [*stages, (1 - math.exp(-t)) ** 9]


def rigid_body(t):
    sn, cn, dn, _ = ellipj(t, 0.51)
    return [sn, cn, dn]


def orbit(e):
    def at(t):
        E = brentq(lambda E: E - e * math.sin(E) - t, t - 1, t + 1, xtol=1e-15)
        b, speed = math.sqrt(1 - e * e), 1 / (1 - e * math.cos(E))
        return [math.cos(E) - e, b * math.sin(E), -speed * math.sin(E), b * speed * math.cos(E)]

    return at


def half_bessel(t):
    s = t + 1
    return [jv(0.5, s), (jv(-0.5, s) - jv(1.5, s)) / 2]


def pursuit(t):
    u = 25 / (25 - t)
    return [(25 * math.log(u) - t + t * t / 50) / 2, (u - 1 / u) / 2]


def falling(t):
    v = math.sqrt(0.032 / 0.4)
    return [30 + math.log(math.cosh(0.4 * v * t)) / 0.4, v * math.tanh(0.4 * v * t)]


MIX = np.array([[-1.0, 1, 0], [1, -2, 1], [0, 1, -1]])
CLOSED = {
    "A1": lambda t: [math.exp(-t)],
    "A2": lambda t: [1 / math.sqrt(t + 1)],
    "A3": lambda t: [math.exp(math.sin(t))],
    "A4": lambda t: [20 / (1 + 19 * math.exp(-t / 4))],
    "B2": lambda t: expm(MIX * t) @ [2, 0, 1],
    "B4": lambda t: [(2 + math.cos(t)) * math.cos(t), (2 + math.cos(t)) * math.sin(t), math.sin(t)],
    "B5": rigid_body,
    "C1": chain,
    "C2": growing_chain,
    "C3": lambda t: expm(tridiagonal(10) * t)[:, 0],
    "C4": lambda t: expm(tridiagonal(51) * t)[:, 0],
    **{f"D{i + 1}": orbit(e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))},
    "E1": half_bessel,
    "E4": falling,
    "E5": pursuit,
}


def planets_energy(y):
    q, v = y[:15].reshape(5, 3), y[15:].reshape(5, 3)
    barycentric = np.concatenate([[np.zeros(3)], v])
    masses = np.array([SUN, *PLANETS])
    barycentric = barycentric - masses @ barycentric / masses.sum()
    places = np.concatenate([[np.zeros(3)], q])
    pairs = [(i, j) for i in range(6) for j in range(i)]
    potential = sum(masses[i] * masses[j] / np.linalg.norm(places[i] - places[j]) for i, j in pairs)
    return 0.5 * masses @ (barycentric**2).sum(1) - GRAVITY * potential


INVARIANTS = {
    "A5": lambda t, y: math.log(t * t + y[0] ** 2) / 2 + math.atan2(t, y[0]) * -1,
    "B1": lambda t, y: y[0] - math.log(y[0]) + 2 * (y[1] - math.log(y[1])),
    "B3": lambda t, y: y.sum(),
    "C5": lambda t, y: planets_energy(y) * 1e4,
}
VAN_DER_POL = [2.008149762174948, -0.04250887527320057]  # y(20), Enright and Pryce 1987


def test_there_are_the_25_problems_of_five_classes():
    assert [problem.name for problem in DETEST] == [f"{c}{i}" for c in "ABCDE" for i in range(1, 6)]
    assert [len(BY_NAME[f"C{i}"].y0) for i in range(1, 6)] == [10, 10, 10, 51, 30]
    assert {*CLOSED, *INVARIANTS, "E2", "E3"} == set(BY_NAME)


@pytest.mark.parametrize("name", CLOSED)
def test_the_reference_is_the_closed_form(name):
    exact = np.array([CLOSED[name](t) for t in TIMES])
    np.testing.assert_allclose(reference(name, TIMES), exact, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(BY_NAME[name].y0, CLOSED[name](0.0), atol=1e-12)


@pytest.mark.parametrize("name", INVARIANTS)
def test_the_invariant_is_kept(name):
    before = INVARIANTS[name](0.0, np.array(BY_NAME[name].y0))
    for t, y in zip(TIMES, reference(name, TIMES), strict=True):
        assert INVARIANTS[name](t, y) == pytest.approx(before, rel=1e-9)


def test_van_der_pol_and_duffing_end_where_others_say():
    np.testing.assert_allclose(reference("E2", TIMES)[-1], VAN_DER_POL, rtol=1e-9)
    duffing = lambda t, y: [y[1], y[0] ** 3 / 6 - y[0] + 2 * math.sin(2.78535 * t)]  # noqa: E731
    other = solve_ivp(duffing, (0, 20), [0, 0], "Radau", rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(reference("E3", TIMES)[-1], other, rtol=1e-6)


def test_jupiter_goes_round_in_its_period():
    """4332.6 days are its year; the problem's unit of time is 100 days."""
    y = reference("C5", TIMES)
    start = np.array(BY_NAME["C5"].y0[:3])
    turn = math.acos(start @ y[-1][:3] / np.linalg.norm(start) / np.linalg.norm(y[-1][:3]))
    assert turn / (2 * math.pi) == pytest.approx(2000 / 4332.6, rel=0.06)
