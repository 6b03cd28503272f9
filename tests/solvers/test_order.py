"""Accuracy of the native solvers: slopes, tolerances, dense output, against answers from elsewhere."""

import math

import pytest
import torch

import odenet
from odenet.solvers import solvers
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.implicit import ImplicitRungeKutta
from odenet.solvers.trees import dense_order_of
from tests.oracles import PROBLEMS
from tests.oracles.problems import VOLTERRA_X0, lotka_volterra, lotka_volterra_invariant, problems_for

CASES = [
    pytest.param(name, problem, id=f"{name}-{problem.name}")
    for name, solver in solvers.items()
    for problem in problems_for(solver)
]
SETTLED = [case for case in CASES if case.values[1].name in ("linear", "forced", "harmonic", "pendulum")]
SETTLED = [case for case in SETTLED if solvers[case.values[0]].partitioned or not case.values[1].separable]
# The estimates of Fehlberg's pairs are small beside the error: that of the first is h/512 (k_3 - k_1).
ALLOWED = {"fehlberg2": 3000, "fehlberg45": 200, "kvaerno5": 200}
ADAPTIVE = [name for name, solver in solvers.items() if solver.adaptive]


def observed_order(solver, F, x0, interval, answer, most=256, floor=1e-12):
    """The slope between two grids fine enough to be asymptotic and coarse enough to stay above rounding."""
    errors, steps = [], 4
    if isinstance(solvers[solver], ImplicitRungeKutta):  # whose steps are slow, and unsolvable where h ∂F/∂x is 1
        most, steps = min(most, {1: 512, 5: 128}.get(solvers[solver].order, 64)), 8
    while steps <= most and not (errors and errors[-1] < floor):
        solution = odenet.solve(F, x0, interval, solver=solver, steps=steps)
        errors.append(float(torch.linalg.vector_norm(solution.last - answer)))
        steps *= 2
    *_, coarse, fine = errors if errors[-1] > floor else errors[:-1]
    return math.log2(coarse / fine)


@pytest.mark.parametrize(("solver", "problem"), [case for case in CASES if case not in SETTLED])
def test_the_error_falls_at_least_with_the_order_of_the_method(solver, problem):
    """On some problems it falls faster: leading terms may happen to cancel at t1."""
    t1 = problem.interval[1]
    slope = observed_order(solver, problem.F, problem.x0, problem.interval, problem.answer(t1), most=128)
    assert slope > solvers[solver].order - 0.5


@pytest.mark.parametrize(("solver", "problem"), SETTLED)
def test_the_observed_order_is_the_order_of_the_method(solver, problem):
    """On an autonomous and a non-autonomous problem where it settles before rounding is reached."""
    slope = observed_order(solver, problem.F, problem.x0, (0.0, 3.0), problem.answer(3.0), most=256, floor=2e-14)
    assert slope == pytest.approx(solvers[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", solvers)
def test_backwards_in_time_has_the_same_order(solver):
    problem = problems_for(solvers[solver])[0]
    t0, t1 = problem.interval
    slope = observed_order(solver, problem.F, problem.answer(t1), (t1, t0), problem.x0, most=512)
    assert slope == pytest.approx(solvers[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", solvers)
def test_dense_output_and_outputs_between_steps_are_accurate(solver):
    """Errors at the same places in steps fall like h^min(p, q+1), q the order of the dense output; Hermite's is 3."""
    problem, stepper = problems_for(solvers[solver])[0], solvers[solver]
    tableau = getattr(stepper, "tableau", None)
    own = 3 if tableau is None or tableau.dense is None else dense_order_of(tableau)

    def errors(steps):
        inside = [2 * (int(part * steps) + theta) / steps for part, theta in ((0.3, 0.2), (0.5, 0.77), (0.95, 0.51))]
        truth = torch.stack([problem.answer(t) for t in inside])
        at = odenet.solve(problem.F, problem.x0, problem.interval, solver=solver, steps=steps, ts=inside)
        dense = odenet.solve(problem.F, problem.x0, problem.interval, solver=solver, steps=steps, dense=True)
        called = torch.stack([dense(t) for t in inside])
        torch.testing.assert_close(called, at.ys, rtol=0, atol=1e-14)
        return float((at.ys - truth).abs().max())

    coarse = 4 if stepper.order > 5 else 20
    halvings = 2 if stepper.order > 5 else 3
    slope = math.log2(errors(coarse) / errors(coarse * 2**halvings)) / halvings
    assert slope > min(stepper.order, own + 1 if tableau is not None else own) - 0.4


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("problem", PROBLEMS[:3] + PROBLEMS[-1:], ids=lambda p: p.name)
def test_the_tolerance_governs_the_error(solver, problem):
    middle = sum(problem.interval) / 2 + 0.01
    ts = [middle, problem.interval[1]]
    truth = torch.stack([problem.answer(t) for t in ts])
    tolerances = (1e-4, 1e-7, 1e-10) if solvers[solver].error_order > 3 else (1e-3, 1e-4, 1e-6)
    share = min(1, solvers[solver].order / solvers[solver].error_order)  # h^q a step is h^p in all
    errors = []
    for tolerance in tolerances:
        solution = odenet.solve(
            problem.F, problem.x0, problem.interval, solver=solver, rtol=tolerance, atol=tolerance, ts=ts
        )
        errors.append(float((solution.ys - truth).abs().max()))
        assert errors[-1] < ALLOWED.get(solver, 30) * tolerance**share
    assert errors[-1] < errors[0] * (tolerances[-1] / tolerances[0]) ** (share / 2)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_invariant_of_lotka_and_volterra_is_kept(solver):
    before = lotka_volterra_invariant(VOLTERRA_X0)
    tolerance = 1e-8 if solvers[solver].error_order > 2 else 1e-5
    last = odenet.solve(lotka_volterra, VOLTERRA_X0, (0, 10), solver=solver, rtol=tolerance, atol=tolerance).last
    share = min(1, solvers[solver].order / solvers[solver].error_order)  # h^q a step is h^p in all
    torch.testing.assert_close(
        lotka_volterra_invariant(last), before, rtol=30 * ALLOWED.get(solver, 30) * tolerance**share, atol=0
    )
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


@pytest.mark.parametrize("solver", [name for name, solver in solvers.items() if not solver.partitioned])
def test_one_step_agrees_with_the_taylor_polynomial_up_to_the_order(solver):
    """Ψ_h(x) for x' = x is Σ_{k<=p} h^k/k! + O(h^(p+1)), without the remainder for explicit methods with p = s."""
    stepper = solvers[solver]
    got = odenet.solve(lambda t, x: x, torch.ones(1, 1, dtype=torch.float64), (0, 0.3), solver=solver, steps=1).last
    taylor = sum(0.3**k / math.factorial(k) for k in range(stepper.order + 1))
    whole = isinstance(stepper, ExplicitRungeKutta) and stepper.tableau.used == stepper.order
    remainder = 2 * 0.3 ** (stepper.order + 1) / math.factorial(stepper.order)
    assert abs(float(got) - taylor) < (1e-15 if whole else remainder)
