"""Roots of steps under x' = z x, against formulas from the literature and against walks."""

import math

import numpy as np
import pytest
import torch

import odenet
from odenet.diagnostics import stability, stability_roots
from odenet.solvers import solvers
from odenet.solvers.coupled import Coupled
from odenet.solvers.momentum import ExactMomentum, Momentum

Z = torch.tensor([-0.4 + 0.3j, -0.05 + 0j, 0.2j, -0.9 + 0j], dtype=torch.complex128)
PAIRS = [name for name in odenet.list_solvers() if solvers[name].partitioned]
IMPLICIT = {  # Hairer and Wanner 1996, Solving Ordinary Differential Equations II, sections IV.3 and IV.5
    "implicit_euler": lambda z: 1 / (1 - z),
    "implicit_midpoint": lambda z: (2 + z) / (2 - z),
    "trapezoid": lambda z: (2 + z) / (2 - z),
    "gl4": lambda z: (12 + 6 * z + z**2) / (12 - 6 * z + z**2),
    "gl6": lambda z: (120 + 60 * z + 12 * z**2 + z**3) / (120 - 60 * z + 12 * z**2 - z**3),
    "radau3": lambda z: (1 + z / 3) / (1 - 2 * z / 3 + z**2 / 6),
    "radau5": lambda z: (1 + 2 * z / 5 + z**2 / 20) / (1 - 3 * z / 5 + 3 * z**2 / 20 - z**3 / 60),
}


@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_methods_have_the_rational_functions_of_the_book(name):
    torch.testing.assert_close(stability_roots(solvers[name], Z)[..., 0], IMPLICIT[name](Z), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in odenet.list_solvers() if name not in PAIRS])
def test_the_principal_root_is_the_exponential_to_the_order_of_the_method(name):
    method, gaps = solvers[name], []
    for h in (0.2, 0.1):
        z = torch.tensor(h * (-0.6 + 0.8j), dtype=torch.complex128)
        gaps.append(float((stability_roots(method, z)[0] - z.exp()).abs()))
    assert gaps[1] < 1e-13 or math.log2(gaps[0] / gaps[1]) > method.order + 0.7


@pytest.mark.parametrize("name", ["ab2", "ab3", "ab4", "ab5"])
def test_the_roots_of_adams_methods_are_those_of_their_characteristic_polynomial(name):
    weights = {  # newest first; Hairer, Nørsett and Wanner 1993, section III.1
        "ab2": [3 / 2, -1 / 2],
        "ab3": [23 / 12, -16 / 12, 5 / 12],
        "ab4": [55 / 24, -59 / 24, 37 / 24, -9 / 24],
        "ab5": [1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720],
    }[name]
    for z in Z.tolist():
        polynomial = np.array([1, -1, *[0] * (len(weights) - 1)], dtype=complex)
        polynomial[1:] -= z * np.array(weights)
        found = stability_roots(solvers[name], torch.tensor(z, dtype=torch.complex128))
        np.testing.assert_allclose(np.poly(found.numpy()), polynomial, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coupling", [0.999, 0.9, 0.5])
@pytest.mark.parametrize("base", ["euler", "rk4", "dopri5"])
def test_the_product_of_the_roots_of_a_coupled_pair_is_its_coupling(base, coupling):
    roots = stability_roots(Coupled(solvers[base], coupling), Z)
    torch.testing.assert_close(roots.prod(-1), torch.full_like(Z, coupling), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", [Momentum, ExactMomentum])
def test_the_product_of_the_roots_of_momentum_is_gamma(form):
    roots = stability_roots(form(0.75), Z)
    torch.testing.assert_close(roots.prod(-1), torch.full_like(Z, 0.75), rtol=1e-10, atol=1e-10)


COUPLED = {"solver": "rk4", "gradient": "reversible", "gradient_options": {"coupling": 0.95}}


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        (solvers["alf"], {"solver": "alf"}),
        (solvers["reversible_heun"], {"solver": "reversible_heun"}),
        (Coupled(solvers["rk4"], 0.95), COUPLED),
    ],
    ids=["alf", "reversible_heun", "coupled"],
)
def test_a_long_walk_grows_by_the_parasite(method, scheme):
    z, n = -0.2, 300
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    ys = odenet.solve(lambda t, x: z * x, x, (0, n), ts=[n - 1, n], steps=n, **scheme).ys.detach()
    root = stability_roots(method, torch.tensor(z, dtype=torch.complex128))[1:].abs().max()
    assert float(abs(ys[1] / ys[0])) == pytest.approx(float(root), rel=1e-6) and root > 1.1


def test_pairs_are_refused():
    for name in PAIRS:
        with pytest.raises(odenet.errors.InputError, match="walks pairs"):
            stability_roots(solvers[name], Z)


class Decay(torch.nn.Module):
    def forward(self, t, x):
        return -3 * x


def test_a_block_is_judged_by_the_steps_that_it_takes():
    x = torch.ones(2, 2, dtype=torch.float64)
    stored = stability(odenet.ODEBlock(Decay(), solver="rk4", steps=20), x)
    undone = stability(odenet.ODEBlock(Decay(), solver="rk4", steps=20, gradient="reversible"), x)
    implicit = stability(odenet.ODEBlock(Decay(), solver="implicit_midpoint", steps=1), x)
    assert stored.verdict is True and stored.parasites == 1 and stored.solver == "rk4"
    assert undone.verdict is False and undone.solver == "reversible rk4"
    assert undone.parasites == pytest.approx(0.999**20 * math.exp(3), rel=1e-3)
    assert "its other roots multiply errors by up to" in str(undone) and "method" not in undone.numbers()
    assert implicit.solver == "implicit_midpoint" and implicit.amplification == pytest.approx(1 / 5)
    assert implicit.flips == 1 and implicit.verdict is False  # (2 + z) / (2 - z) turns inside out where z < -2


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_solve_that_the_parasite_breaks_says_so(per_sample):
    x = torch.ones(2, 1, requires_grad=True)
    with pytest.raises(odenet.errors.SolveError, match="however small h is; take a coupling below 0.999"):
        odenet.solve(Decay(), 40 * x, (0, 100), solver="rk4", steps=2000, gradient="reversible", per_sample=per_sample)
    with pytest.raises(odenet.errors.StepBudgetError, match="reversible_heun .* use another solver"):
        odenet.solve(
            lambda t, x: -40 * x, x, (0, 20), solver="reversible_heun", rtol=1e-3, atol=1e-3, per_sample=per_sample,
            max_steps=500,
        )  # fmt: skip
