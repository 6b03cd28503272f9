"""Accuracy of the native solvers: slopes, order conditions, dense output, against answers from elsewhere."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.integrate import RK45

import odenet
from odenet.solvers import solvers
from odenet.solvers.tableau import TABLEAUS
from tests.oracles import PROBLEMS
from tests.oracles.problems import VOLTERRA_X0, lotka_volterra, lotka_volterra_invariant, problems_for

CASES = [
    pytest.param(name, problem, id=f"{name}-{problem.name}")
    for name, solver in solvers.items()
    for problem in problems_for(solver)
]
ADAPTIVE = [name for name, solver in solvers.items() if solver.adaptive]


def observed_order(solver, F, x0, interval, answer):
    """The slope between two grids fine enough to be asymptotic and coarse enough to stay above rounding."""
    errors = []
    for steps in (16, 32, 64, 128, 256, 512):
        solution = odenet.solve(F, x0, interval, solver=solver, steps=steps)
        errors.append(float(torch.linalg.vector_norm(solution.last - answer)))
        if errors[-1] < 1e-12:
            break
    *_, coarse, fine = errors if errors[-1] > 1e-12 else errors[:-1]
    return math.log2(coarse / fine)


@pytest.mark.parametrize(("solver", "problem"), CASES)
def test_the_error_falls_with_the_order_of_the_method(solver, problem):
    order = solvers[solver].order
    slope = observed_order(solver, problem.F, problem.x0, problem.interval, problem.answer(problem.interval[1]))
    assert slope > order - 0.1
    if problem.name in ("linear", "growth"):  # on the others leading terms may happen to cancel at t1
        assert slope < order + 0.1


@pytest.mark.parametrize("solver", solvers)
def test_backwards_in_time_has_the_same_order(solver):
    problem = problems_for(solvers[solver])[0]
    t0, t1 = problem.interval
    slope = observed_order(solver, problem.F, problem.answer(t1), (t1, t0), problem.x0)
    assert slope == pytest.approx(solvers[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", solvers)
def test_dense_output_and_outputs_between_steps_are_accurate(solver):
    """Errors at interior times fall with order min(p, dense) where dense output is at least of order min(p, 3)."""
    problem = problems_for(solvers[solver])[0]
    order = min(solvers[solver].order, 3)
    inside = [0.0, 0.123, 0.777, 1.501, 1.999]
    truth = torch.stack([problem.answer(t) for t in inside])

    def errors(steps):
        at = odenet.solve(problem.F, problem.x0, problem.interval, solver=solver, steps=steps, ts=inside)
        dense = odenet.solve(problem.F, problem.x0, problem.interval, solver=solver, steps=steps, dense=True)
        called = torch.stack([dense(t) for t in inside])
        torch.testing.assert_close(called, at.ys, rtol=0, atol=1e-14)
        return float((at.ys - truth).abs().max())

    assert math.log2(errors(20) / errors(160)) / 3 > order - 0.3


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_tolerance_governs_the_error(solver, problem):
    middle = sum(problem.interval) / 2 + 0.01
    ts = [middle, problem.interval[1]]
    truth = torch.stack([problem.answer(t) for t in ts])
    tolerances = (1e-4, 1e-7, 1e-10) if solvers[solver].error_order > 2 else (1e-3, 1e-5, 1e-7)
    errors = []
    for tolerance in tolerances:
        solution = odenet.solve(
            problem.F, problem.x0, problem.interval, solver=solver, rtol=tolerance, atol=tolerance, ts=ts
        )
        errors.append(float((solution.ys - truth).abs().max()))
        assert errors[-1] < 30 * tolerance
    assert errors[-1] < errors[0] * math.sqrt(tolerances[-1] / tolerances[0])


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_invariant_of_lotka_and_volterra_is_kept(solver):
    before = lotka_volterra_invariant(VOLTERRA_X0)
    tolerance = 1e-9 if solvers[solver].error_order > 2 else 1e-5
    last = odenet.solve(lotka_volterra, VOLTERRA_X0, (0, 10), solver=solver, rtol=tolerance, atol=tolerance).last
    torch.testing.assert_close(lotka_volterra_invariant(last), before, rtol=1000 * tolerance, atol=0)
    assert (last - VOLTERRA_X0).abs().max() > 0.1


@pytest.mark.parametrize("solver", solvers)
@pytest.mark.parametrize("degree", range(6))
def test_polynomials_up_to_degree_p_minus_1_are_integrated_exactly(solver, degree):
    x0, mask = torch.zeros(1, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    if solvers[solver].partitioned:
        mask[0] = 0
    got = odenet.solve(lambda t, x: t**degree * mask + 0 * x, x0, (0.5, 2.0), solver=solver, steps=3).last[0, 1]
    exact = (2.0 ** (degree + 1) - 0.5 ** (degree + 1)) / (degree + 1)
    if degree <= solvers[solver].order - 1:
        assert float(got) == pytest.approx(exact, rel=1e-13)
    elif degree == solvers[solver].order + 2:
        assert float(got) != pytest.approx(exact, rel=1e-9)


def trees(order):
    """Rooted trees with `order` nodes, as sorted tuples of their root's branches."""
    if order == 1:
        return [()]
    found = set()

    def branches(left, largest):
        if left == 0:
            yield ()
        for size in range(min(left, largest), 0, -1):
            for tree in trees(size):
                for rest in branches(left - size, size):
                    yield (tree, *rest)

    for combination in branches(order - 1, order - 1):
        found.add(tuple(sorted(combination, key=repr)))
    return sorted(found, key=repr)


def nodes(tree):
    return 1 + sum(map(nodes, tree))


def density(tree):
    return nodes(tree) * math.prod(map(density, tree))


def stage_weights(tree, a):
    """Φ_i(τ) = Π over branches of Σ_j a_ij Φ_j(branch)."""
    weights = np.ones(len(a))
    for branch in tree:
        weights = weights * (a @ stage_weights(branch, a))
    return weights


def square(tableau):
    a = np.zeros((tableau.stages, tableau.stages))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    return a


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_tableau_meets_every_order_condition_up_to_its_order_and_no_further(name):
    """Butcher's conditions Σ_i b_i Φ_i(τ) = 1/γ(τ) for all rooted trees τ of up to p nodes."""
    tableau = TABLEAUS[name]
    a, b = square(tableau), np.array(tableau.b, dtype=float)
    np.testing.assert_allclose(a.sum(1), tableau.c, atol=1e-14)
    counts = [len(trees(n)) for n in range(1, 7)]
    assert counts == [1, 1, 2, 4, 9, 20]
    for order in range(1, tableau.order + 1):
        for tree in trees(order):
            assert b @ stage_weights(tree, a) == pytest.approx(1 / density(tree), abs=1e-13), (order, tree)
    misses = [abs(b @ stage_weights(t, a) - 1 / density(t)) for t in trees(tableau.order + 1)]
    assert max(misses) > 1e-6
    if tableau.b_error is not None:
        embedded = b - np.array(tableau.b_error)
        for order in range(1, tableau.order):
            for tree in trees(order):
                assert embedded @ stage_weights(tree, a) == pytest.approx(1 / density(tree), abs=1e-13)


@pytest.mark.parametrize("name", [n for n, t in TABLEAUS.items() if t.dense is not None])
def test_the_dense_output_meets_the_quadrature_conditions_and_the_ends(name):
    """Σ_i b_i(θ) c_i^(q-1) = θ^q / q, and b_i(1) = b_i."""
    tableau = TABLEAUS[name]
    dense, c = np.array(tableau.dense), np.array(tableau.c, dtype=float)
    np.testing.assert_allclose(dense.sum(1), tableau.b, atol=1e-14)
    for theta in (0.25, 0.6, 0.9):
        b = dense @ [theta ** (j + 1) for j in range(dense.shape[1])]
        for q in range(1, min(tableau.order, 4) + 1):
            assert b @ c ** (q - 1) == pytest.approx(theta**q / q, abs=1e-13)


def test_dopri5_is_the_method_of_scipys_rk45():
    tableau = TABLEAUS["dopri5"]
    np.testing.assert_allclose(tableau.c[:6], RK45.C, atol=1e-16)
    np.testing.assert_allclose(square(tableau)[:6, :5], RK45.A, atol=1e-15)
    np.testing.assert_allclose(tableau.b[:6], RK45.B, atol=1e-16)
    np.testing.assert_allclose(np.abs(tableau.b_error), np.abs(RK45.E), atol=1e-16)
    np.testing.assert_allclose(tableau.dense, RK45.P, atol=1e-14)


def test_the_classic_methods_have_their_textbook_coefficients():
    assert TABLEAUS["rk4"].b == (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    assert TABLEAUS["midpoint"].c == (0, Fraction(1, 2))
    assert TABLEAUS["heun2"].b == (0.5, 0.5)


@pytest.mark.parametrize("solver", [name for name, solver in solvers.items() if not solver.partitioned])
def test_one_step_is_the_textbook_formula(solver):
    """Ψ_h(x) for x' = λx is the Taylor polynomial of e^{λh} up to order p (all s-stage methods with p = s <= 4)."""
    order = solvers[solver].order
    h = 0.3
    got = odenet.solve(lambda t, x: x, torch.ones(1, 1, dtype=torch.float64), (0, h), solver=solver, steps=1).last
    taylor = sum(h**k / math.factorial(k) for k in range(order + 1))
    assert abs(float(got) - taylor) < (1e-15 if order <= 4 else h ** (order + 1) / 500)
