"""Implicit methods: tableaus, stability, stiff problems, Newton and GMRES, what happens when they fail."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.integrate._ivp import radau
from torch import nn

import odenet
from odenet.errors import FunctionBudgetError, NonFiniteFunctionError, NonFiniteStateError, NonlinearSolveError
from odenet.solvers.implicit_tableaus import IMPLICIT
from odenet.solvers.newton import DENSE
from odenet.solvers.stepper import Span
from odenet.solvers.trees import error_order_of, order_of_weights
from tests.oracles import PROBLEMS, Counted
from tests.oracles.problems import pendulum

ADAPTIVE = [name for name, tableau in IMPLICIT.items() if tableau.b_error is not None]
GAUSS = ["implicit_midpoint", "gl4", "gl6"]
L_STABLE = [name for name in IMPLICIT if name not in (*GAUSS, "trapezoid")]


def matrices(name):
    tableau = IMPLICIT[name]
    return np.array(tableau.a), np.array(tableau.b), np.array(tableau.c)


def growth(name, z):
    """R(z) = 1 + z bᵀ (I - z A)⁻¹ 1."""
    a, b, _ = matrices(name)
    return 1 + z * (b @ np.linalg.solve(np.eye(len(b)) - z * a, np.ones(len(b))))


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", IMPLICIT)
def test_the_tableau_has_the_orders_that_it_says(name):
    """Of x⁺, of the error estimate (with F(t, x) as one more stage), of the dense output."""
    tableau, (a, b, c) = IMPLICIT[name], matrices(name)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    assert order_of_weights(a, b) == tableau.order
    if tableau.b_error is not None:
        error = np.array([tableau.error_first, *tableau.b_error])
        assert error_order_of(np.pad(a, ((1, 0), (1, 0))), error) == tableau.error_order
    if tableau.dense is not None:
        np.testing.assert_allclose(np.sum(tableau.dense, 1), b, atol=1e-14)
        degree = len(tableau.dense[0])
        for q, theta in itertools.product(range(1, degree + 1), (0.25, 0.6, 1.0)):
            weights = np.array(tableau.dense) @ theta ** np.arange(1, degree + 1)
            assert weights @ c ** (q - 1) == pytest.approx(theta**q / q, abs=1e-14)


def test_radau5_has_the_constants_of_scipys():
    a, b, c = matrices("radau5")
    np.testing.assert_allclose(c, radau.C, atol=1e-15)
    np.testing.assert_allclose(b, a[-1], atol=0)
    assert IMPLICIT["radau5"].filter == pytest.approx(1 / radau.MU_REAL, rel=1e-14)
    np.testing.assert_allclose(IMPLICIT["radau5"].b_error, radau.E @ a / radau.MU_REAL, atol=1e-14)
    np.testing.assert_allclose(np.sort_complex(np.linalg.eigvals(np.linalg.inv(a)))[-1], radau.MU_REAL, rtol=1e-10)


@pytest.mark.parametrize("name", IMPLICIT)
def test_stability_and_structure_are_what_the_name_promises(name):
    a, b, _ = matrices(name)
    assert max(abs(growth(name, 1j * y)) for y in np.logspace(-3, 6, 200)) <= 1 + 1e-9
    assert abs(growth(name, -1e9)) == pytest.approx(0 if name in L_STABLE else 1, abs=1e-6)
    symplectic = b[:, None] * a + (b[:, None] * a).T - np.outer(b, b)
    assert (np.abs(symplectic).max() < 1e-15) == (name in GAUSS)


@pytest.mark.parametrize("name", IMPLICIT)
@pytest.mark.parametrize("z", [0.3, -2.0, -1e4, -1e6, 0.5j, -3 + 40j], ids=str)
def test_one_step_multiplies_by_the_stability_function(name, z):
    x0 = torch.ones(2, 1, dtype=torch.complex128)
    x0[1] = 2j
    reference = name if odenet.solvers.solvers[name].companion is None else "radau5"  # a stage would lie behind t1
    got = odenet.solve(lambda t, x: z * x / 0.5, x0, (0, 0.5), solver=name, steps=1).last
    torch.testing.assert_close(got, x0 * growth(reference, z), rtol=1e-10, atol=1e-8)


def test_kvaerno5_takes_its_own_steps_but_for_those_that_would_look_behind_the_end():
    F = Counted(lambda t, x: -2.0 * x)
    got = float(odenet.solve(F, real([1.0]), (0, 1), solver="kvaerno5", steps=4).last)
    assert got == pytest.approx(growth("kvaerno5", -0.5) ** 3 * growth("radau5", -0.5), rel=1e-12)
    assert max(F.times) <= 1 and pytest.approx(max(t for t in F.times if t < 0.82), abs=1e-4) == 1.2303 * 0.25 + 0.5


def test_gl4_evaluates_at_both_its_abscissae_and_has_order_4_where_F_depends_on_time():
    """With 1/2 - √3/6 twice, as torchdiffeq has them, it is of first order there."""
    problem = PROBLEMS[1]
    F = Counted(problem.F)
    odenet.solve(F, problem.x0, (0, 1), solver="gl4", steps=1)
    assert sorted(set(F.times)) == pytest.approx([0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6], abs=1e-15)
    truth = problem.answer(problem.interval[1])
    errors = [
        float((odenet.solve(problem.F, problem.x0, problem.interval, solver="gl4", steps=n).last - truth).norm())
        for n in (16, 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("name", IMPLICIT)
def test_prothero_and_robinson(name):
    """x' = λ (x - cos t) - sin t with λ = -1e6: the step follows cos t, not λ."""
    F = lambda t, x: -1e6 * (x - torch.cos(t)) - torch.sin(t)  # noqa: E731
    error = float(odenet.solve(F, real([1.0]), (0, 2), solver=name, steps=20).last - math.cos(2))
    assert abs(error) < (1e-5 if IMPLICIT[name].stiffly_accurate else 0.1)
    if name in ADAPTIVE:
        solution = odenet.solve(F, real([0.0]), (0, 2), solver=name, rtol=1e-5, atol=1e-5)
        most = 150 if IMPLICIT[name].error_order > 2 else 500
        assert abs(float(solution.last) - math.cos(2)) < 1e-4 and solution.stats.accepted < most


def van_der_pol(t, x):
    return torch.stack([x[1], 1000 * (1 - x[0] ** 2) * x[1] - x[0]])


@pytest.mark.parametrize(
    ("name", "end", "tolerance"),
    [
        ("radau5", 820.0, 1e-5),
        pytest.param("trapezoid", 2000.0, 1e-3, marks=pytest.mark.slow),
        pytest.param("trapezoid", 820.0, 1e-5, marks=pytest.mark.slow),
        pytest.param("implicit_euler", 820.0, 1e-5, marks=pytest.mark.slow),
        pytest.param("radau5", 2000.0, 1e-7, marks=pytest.mark.slow),
        pytest.param("kvaerno5", 2000.0, 1e-7, marks=pytest.mark.slow),
        pytest.param("kvaerno3", 2000.0, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_van_der_pols_oscillator_at_mu_1000_is_scipys(name, end, tolerance):
    slope = lambda t, y: [y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]]  # noqa: E731
    fine = max(1e-12, 1e-4 * tolerance)
    reference = solve_ivp(slope, (0, end), [2.0, 0.0], "Radau", rtol=fine, atol=fine).y[:, -1]
    solution = odenet.solve(van_der_pol, real(2.0, 0.0), (0, end), solver=name, rtol=tolerance, atol=tolerance)
    assert abs(float(solution.last[0]) - reference[0]) < 500 * tolerance
    assert solution.stats.accepted < (3000 if IMPLICIT[name].error_order > 2 else 9000)


@pytest.mark.parametrize(
    "name", ["kvaerno5", *(pytest.param(n, marks=pytest.mark.slow) for n in ADAPTIVE if n != "kvaerno5")]
)
def test_robertsons_reaction_is_scipys(name):
    def F(t, x):
        a, b, c = x
        return torch.stack([-0.04 * a + 1e4 * b * c, 0.04 * a - 1e4 * b * c - 3e7 * b * b, 3e7 * b * b])

    slope = lambda t, y: F(t, torch.tensor(y, dtype=torch.float64)).numpy()  # noqa: E731
    reference = solve_ivp(slope, (0, 1e4), [1.0, 0.0, 0.0], "Radau", rtol=1e-10, atol=1e-14).y[:, -1]
    solution = odenet.solve(F, real(1.0, 0.0, 0.0), (0, 1e4), solver=name, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(solution.last, reference, rtol=1e-3 if IMPLICIT[name].order > 1 else 3e-3)
    assert float(solution.last.sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["implicit_euler", "trapezoid"])
def test_the_estimate_of_a_step_is_its_error(name):
    """On x' = λx, R(hλ) - e^(hλ) where hλ is small; where it is large the estimate is neither large nor nothing.

    And on x' = λ (x - g(t)) + g'(t) for λ to -∞ it goes to zero with the error, which is of size h^q/λ.
    """
    tableau, stepper = IMPLICIT[name], odenet.solvers.solvers[name]

    def step(F, x0, h):
        trial = stepper.step(lambda t, x: F(torch.tensor(t), x), Span(0, 0.0, h, h), real(x0), error=True)
        return float(trial.error), float(trial.x_next)

    for z in (0.01, -0.01):
        estimate, got = step(lambda t, x, z=z: z * x, 1.0, 1.0)
        assert estimate == pytest.approx(got - math.exp(z), rel=0.02)
        assert got == pytest.approx(growth(name, z), rel=1e-12)
    for z in (-1e3, -1e6):
        estimate, _ = step(lambda t, x, z=z: z * x, 1.0, 1.0)
        assert 0.4 < abs(estimate) < 1
    for rate in (-1e4, -1e6):
        F = lambda t, x, rate=rate: rate * (x - torch.sin(3 * t)) + 3 * torch.cos(3 * t)  # noqa: E731
        estimate, got = step(F, 0.0, 0.1)
        assert 0.2 < estimate / (got - math.sin(0.3)) < 1
        assert 0 < abs(estimate * rate) < 30 * 0.1**tableau.error_order


@pytest.mark.parametrize("name", [n for n in IMPLICIT if IMPLICIT[n].explicit_first])
def test_the_last_slope_of_a_step_is_the_first_of_the_next(name):
    """F(t, x) is evaluated where the solve begins and where a jump lets it begin anew, and gradients go through it."""
    if odenet.solvers.solvers[name].companion is None:  # else another method takes the last step before the jump
        calls = [
            odenet.solve(lambda t, x: 1 + 0 * x, real(1.0), (0, 1), solver=name, steps=4, jumps=jumps).stats.nfe
            for jumps in ([], [0.5], [0.25, 0.5])
        ]
        assert calls == [calls[0], calls[0] + 1, calls[0] + 2]
    x0, F = real(1.0).requires_grad_(), (lambda t, x: -4 * torch.sin(x) * (1 + t))
    for how in ({"steps": 6}, {"rtol": 1e-6, "atol": 1e-6}):
        found = {}
        for gradient in ("autograd", "checkpoint"):
            last = odenet.solve(F, x0, solver=name, gradient=gradient, **how).last
            found[gradient] = last.detach(), *torch.autograd.grad(last.sum(), x0)
        for ours, theirs in zip(*found.values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


class Heat(nn.Module):
    """x' = Δx on a square of n x n points, zero outside: its answer is in sines."""

    def __init__(self, n):
        super().__init__()
        self.rate = nn.Parameter(real(1.0)[0])
        stencil = real([0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0])[None, None]
        self.register_buffer("stencil", stencil * (n + 1) ** 2)
        k = torch.arange(1, n + 1, dtype=torch.float64)
        self.sines = torch.sin(math.pi * torch.outer(k, k) / (n + 1)) * math.sqrt(2 / (n + 1))
        self.eigenvalues = -4 * (n + 1) ** 2 * torch.sin(math.pi * k / (2 * (n + 1))) ** 2

    def forward(self, t, x):
        return self.rate * nn.functional.conv2d(x, self.stencil, padding=1)

    def answer(self, t, x):
        decay = torch.exp(t * (self.eigenvalues[:, None] + self.eigenvalues))
        return self.sines @ (decay * (self.sines @ x @ self.sines)) @ self.sines


def bumps(n):
    s = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]
    return (s * (1 - s) ** 2)[:, None] * torch.sin(3 * math.pi * s) + 0.05 * torch.randn(n, n, dtype=torch.float64)


@torch.no_grad()
def test_a_large_stiff_state_is_solved_without_its_jacobian():
    F, x0 = Heat(64), bumps(64)[None, None]
    assert x0.numel() > DENSE
    solution = odenet.solve(F, x0, (0, 0.05), solver="trbdf2", rtol=1e-2, atol=1e-3)
    assert (solution.last - F.answer(0.05, x0)).abs().max() < 1e-2
    assert solution.stats.accepted < 20
    explicit = odenet.solve(F, x0, (0, 0.05), rtol=1e-2, atol=1e-3).stats
    assert explicit.accepted > 400


@pytest.mark.parametrize("name", GAUSS)
def test_quadratic_invariants_are_kept_and_the_energy_of_a_pendulum_stays_bounded(name):
    turn = lambda t, x: torch.stack([x[1], -4 * x[0]])  # noqa: E731
    x = odenet.solve(turn, real(1.0, 0.3), (0, 30), solver=name, steps=60).last
    assert float(4 * x[0] ** 2 + x[1] ** 2) == pytest.approx(4.09, rel=1e-11)

    def energies(solver):
        swing = lambda t, x: torch.stack([x[1], -torch.sin(x[0])])  # noqa: E731
        ts = torch.linspace(0, 60, 121)
        ys = odenet.solve(swing, real(1.5, 0.0), (0, 60), solver=solver, steps=120, ts=ts).ys
        energy = ys[:, 1] ** 2 / 2 - torch.cos(ys[:, 0])
        return (energy - energy[0]).abs()

    drift = energies(name)
    assert 0 < drift[60:].max() < 1.5 * drift[:60].max()
    if name == "implicit_midpoint":
        assert energies("implicit_euler")[-1] > 10 * drift.max()


def test_a_step_whose_matrix_is_singular_is_named():
    """x⁺ = x + h t⁺ x⁺ with h t⁺ = 1."""
    F, x0 = (lambda t, x: t * x), real([1.0])
    with pytest.raises(NonlinearSolveError, match="the matrix of the step's equations is singular .* at t=1.5, h=0.5"):
        odenet.solve(F, x0, (0, 2), solver="implicit_euler", steps=4)


def test_without_a_solution_of_its_equations_a_step_fails_in_words_and_an_adaptive_one_shrinks():
    """x⁺ = x + h (x⁺)² has no real solution for 4 h x > 1."""
    F, x0 = (lambda t, x: x * x), real([1.0])
    with pytest.raises(NonlinearSolveError, match=r"Newton's method could not .* at t=0, h=0.9") as raised:
        odenet.solve(F, x0, (0, 0.9), solver="implicit_euler", steps=1)
    assert raised.value.residual > 1 and raised.value.h == 0.9
    reached = odenet.solve(F, x0, (0, 0.9), solver="implicit_euler", steps=1, on_failure="status")
    assert reached.status == "nonlinear_solve" and torch.equal(reached.last, x0)
    solution = odenet.solve(F, x0, (0, 0.9), solver="kvaerno3", rtol=1e-6, atol=1e-6, first_step=0.9)
    assert solution.stats.rejected > 0
    torch.testing.assert_close(solution.last, real([10.0]), rtol=1e-3, atol=0)
    with pytest.raises(NonlinearSolveError):
        odenet.solve(F, x0, (0, 0.9), solver="kvaerno3", first_step=0.9, h_min=0.9)


def test_nan_inside_newtons_method_is_said_to_be_fs():
    F = lambda t, x: torch.where(t > 0.5, torch.full_like(x, float("nan")), -x)  # noqa: E731
    for scheme in ({"steps": 4}, {}):
        with pytest.raises(NonFiniteFunctionError, match="F returned NaN"):
            odenet.solve(F, real([1.0]), solver="radau5", **scheme)
    with pytest.raises(NonFiniteFunctionError, match="the derivative of F"):
        odenet.solve(lambda t, x: torch.sqrt(0 * x), real([1.0]), solver="radau5", steps=4)


@pytest.mark.parametrize("size", [3, 300])
def test_the_budget_of_evaluations_holds_inside_newtons_method(size):
    F = Counted(lambda t, x: -torch.sinh(5 * x))
    with pytest.raises(FunctionBudgetError):
        odenet.solve(F, torch.ones(1, size, dtype=torch.float64), solver="trapezoid", steps=5, max_nfe=7)
    assert F.calls == 7


class Attention(nn.Module):
    """No forward mode in torch's fused kernel."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True).double()

    def forward(self, t, x):
        return self.inner(x, x, x, need_weights=False)[0] - 30 * x


class Normalised(nn.Module):
    """Samples coupled by their statistics."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()).double()

    def forward(self, t, x):
        return self.inner(x) - 30 * x


class Hamiltonian(nn.Module):
    """Its own gradient inside."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, t, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (k,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -20 * k - x


class Hidden(torch.autograd.Function):
    """Neither forward mode nor batched backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -x - x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        assert g.shape == x.shape
        return g * (-1 - 3 * x**2)


FIELDS = {
    "attention": (Attention, (2, 5, 8)),
    "batch norm": (Normalised, (4, 8)),
    "Hamiltonian": (Hamiltonian, (4, 8)),
    "custom": (lambda: lambda t, x: Hidden.apply(x), (4, 8)),
    "not holomorphic": (lambda: lambda t, x: -8 * x.conj() + x.abs() * 1j, (4, 8)),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_any_F_that_autograd_can_differentiate_will_do(kind, large, mode, monkeypatch):
    if kind == "Hamiltonian" and mode is torch.inference_mode:
        pytest.skip("F itself cannot be evaluated there")
    make, shape = FIELDS[kind]
    F = make()
    x0 = torch.randn(shape, dtype=torch.complex128 if kind == "not holomorphic" else torch.float64)
    reference = odenet.solve(F, x0, (0, 0.3), solver="radau5", steps=2 if large else 5).last.detach()
    if not large:
        explicit = odenet.solve(F, x0, (0, 0.3), rtol=1e-9, atol=1e-9).last.detach()
        torch.testing.assert_close(reference, explicit, rtol=1e-4, atol=1e-4)
    else:
        monkeypatch.setattr("odenet.solvers.newton.DENSE", 1)
        monkeypatch.setattr("odenet.solvers.implicit_function.DENSE", 1)
    with mode():
        solution = odenet.solve(F, x0, (0, 0.3), solver="radau5", steps=2 if large else 5)
    torch.testing.assert_close(solution.last.detach(), reference, rtol=1e-9, atol=1e-9)
    assert solution.stats.nfe < 2500


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "scheme", [{"solver": "gl4", "steps": 8}, {"solver": "kvaerno3", "rtol": 1e-5, "atol": 1e-5}], ids=str
)
def test_low_precision_converges_to_its_rounding(dtype, scheme):
    F = lambda t, x: -50 * (x - 1) - x**3  # noqa: E731
    x0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=dtype)
    solution = odenet.solve(F, x0, **scheme)
    wide = x0.to(torch.complex128 if dtype.is_complex else torch.float64)
    truth = odenet.solve(F, wide, solver="radau5", rtol=1e-6, atol=1e-6).last
    assert solution.last.dtype == dtype
    torch.testing.assert_close(solution.last.to(truth.dtype), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("on_failure", ["raise", "status"])
def test_nan_in_the_initial_state_is_not_put_down_to_F(on_failure):
    x0 = torch.ones(3, 1)
    x0[1] = float("nan")
    try:
        error = odenet.solve(lambda t, x: -x, x0, solver="trapezoid", steps=2, on_failure=on_failure).error
    except NonFiniteStateError as raised:
        error = raised
    assert isinstance(error, NonFiniteStateError) and error.sample == 1


@pytest.mark.parametrize(("name", "steps"), [("radau5", None), ("trbdf2", None), ("gl4", 4)])
def test_states_of_no_sample_and_of_no_dimension(name, steps):
    empty = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    last = odenet.solve(lambda t, x: -x, empty, solver=name, steps=steps).last
    last.sum().backward()
    assert last.shape == (0, 2) and empty.grad is not None
    number = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    last = odenet.solve(lambda t, x: -x, number, solver=name, steps=steps).last
    (slope,) = torch.autograd.grad(last, number)
    assert float(last.detach()) == pytest.approx(math.exp(-1), abs=1e-3) == float(slope)


def test_radau5_begins_where_the_step_before_points_and_evaluates_no_more_than_scipys():
    slope = lambda t, y: [y[1], 100 * (1 - y[0] ** 2) * y[1] - y[0]]  # noqa: E731
    F = lambda t, x: torch.stack([x[1], 100 * (1 - x[0] ** 2) * x[1] - x[0]])  # noqa: E731
    with torch.no_grad():
        solution = odenet.solve(F, real(2.0, 0.0), (0, 150), solver="radau5", rtol=1e-7, atol=1e-7)
    peer = solve_ivp(slope, (0, 150), [2.0, 0.0], "Radau", rtol=1e-7, atol=1e-7)
    assert solution.stats.nfe <= peer.nfev
    np.testing.assert_allclose(solution.last.numpy(), peer.y[:, -1], rtol=1e-4)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", [n for n, tableau in IMPLICIT.items() if tableau.damps and n != "kvaerno5"])
def test_fixed_steps_do_not_go_to_another_solution_of_their_equations(name, per_sample):
    """Steps of Robertson's problem have one with a negative concentration, near where slopes point at first."""

    def F(t, x):
        a, b, c = x.unbind(-1)
        return torch.stack([-0.04 * a + 1e4 * b * c, 0.04 * a - 1e4 * b * c - 3e7 * b * b, 3e7 * b * b], -1)

    slope = lambda t, y: F(t, torch.from_numpy(y)).numpy()  # noqa: E731
    truth = solve_ivp(slope, (0, 1), [1.0, 0.0, 0.0], "Radau", rtol=1e-10, atol=1e-14).y[:, -1]
    with torch.no_grad():
        last = odenet.solve(F, real(1.0, 0.0, 0.0)[None], solver=name, steps=20, per_sample=per_sample).last[0]
    np.testing.assert_allclose(last.numpy(), truth, rtol=1e-2 if name == "implicit_euler" else 1e-3)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", ["gl4", "radau5"])
def test_a_step_whose_prediction_leads_astray_begins_again_at_the_slope(name, per_sample):
    """x' = -log x from a short step to one 99 times as long: the former polynomial leads to where log is NaN."""
    F = lambda t, x: -x.log()  # noqa: E731
    got = odenet.solve(F, real(0.1), (0, 1), solver=name, grid=[0.0, 0.01, 1.0], per_sample=per_sample).last
    one = odenet.solve(F, real(0.1), (0, 0.01), solver=name, steps=1).last
    other = odenet.solve(F, one, (0.01, 1.0), solver=name, steps=1).last
    torch.testing.assert_close(got, other, rtol=1e-12, atol=0)


ONE_BY_ONE = [name for name, tableau in IMPLICIT.items() if not tableau.coupled and tableau.stages > 2]


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_search_for_a_stage_begins_on_the_polynomial_through_those_before(name, per_sample, monkeypatch):
    tableau = IMPLICIT[name]
    for i in range(1, tableau.stages):
        row, c = np.array(tableau.guesses[i]), np.array(tableau.c[:i])
        for power in range(min(i, len(set(tableau.c[:i])), 3)):
            assert (row * c**power).sum() == pytest.approx(tableau.c[i] ** power, rel=1e-12)

    def solved():
        x0 = torch.tensor([[1.5, 0.0]], dtype=torch.float64)
        solution = odenet.solve(
            pendulum, x0, (0.0, 5.0), solver=name, rtol=1e-6, atol=1e-6, per_sample=per_sample, compile=False
        )
        return solution.last, int(solution.stats.nfe)

    last, calls = solved()
    monkeypatch.setitem(vars(tableau), "guesses", [(0.0,) * (i - 1) + (1.0,) for i in range(tableau.stages)])
    plain, more = solved()
    assert calls < 0.97 * more
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-6)
