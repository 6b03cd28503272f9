"""A compiled solve is the eager one to rounding: states, gradients and counts; where there is none, the user is told.

The quick tests trace the graphs and run them as they were traced; the slow ones have code made of them.
"""

import math
import warnings
from itertools import accumulate

import pytest
import torch
from torch import nn

import odenet
from odenet import compiled
from odenet.compiled import CompileWarning, lowering, record
from odenet.solvers import solvers
from odenet.solvers.explicit import ExplicitRungeKutta

FIXED = {"solver": "rk4", "steps": 7}
ADAPTIVE = {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-7}
ts = [0.0, 0.3, 0.31, 1.0, 1.7]
EXPLICIT = [name for name, stepper in solvers.items() if type(stepper) is ExplicitRungeKutta]
INTERVAL = (0.0, 1.7)


class Swirl(nn.Module):
    """x' = tanh(x A + t) - x / 2, with a sharp turn so that steps are rejected."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, t, x, u=0.0):
        return torch.tanh(x @ self.A + 4 * torch.tanh(60 * (t - 0.7))) - x / 2 + u


def solved(F, x, compile, interval=INTERVAL, args=(), **scheme):
    F.zero_grad()
    x0 = x.clone().requires_grad_()
    solution = odenet.solve(F, x0, interval, compile=compile, args=args, **scheme)
    weights = torch.linspace(1, 2, solution.ys.numel(), dtype=x.dtype, device=x.device).reshape(solution.ys.shape)
    leaves = [x0, *F.parameters(), *(arg for arg in args if arg.requires_grad)]
    return solution, torch.autograd.grad((weights * solution.ys).sum(), leaves)


def agree(F, x, within=1e-10, counts=("nfe", "accepted", "rejected", "forced"), **scheme):
    got, gradients = compiled_without_warning(F, x, **scheme)
    expected, truth = solved(F, x, False, **scheme)
    same_numbers(got, gradients, expected, truth, within)
    same_steps(got, expected, counts)
    return got


def compiled_without_warning(F, x, **scheme):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return solved(F, x, True, **scheme)


def same_numbers(got, gradients, expected, truth, within):
    torch.testing.assert_close(got.ys, expected.ys, rtol=within, atol=within)
    for a, b in zip(gradients, truth, strict=True):
        assert float((a - b).abs().max()) <= within * float(b.abs().max()) and b.abs().max() > 0


def same_steps(got, expected, counts):
    for count in counts:
        assert getattr(got.stats, count) == getattr(expected.stats, count), count
    assert got.stats.h == pytest.approx(expected.stats.h, rel=1e-4 if got.ys.dtype == torch.float64 else 0.3)
    assert got.times == expected.times


@pytest.mark.slow
def test_an_adaptive_solve_its_outputs_gradients_and_counts_are_the_eager_ones(traced, x):
    got = agree(Swirl(), x, within=1e-9, ts=ts, gradient="checkpoint", **ADAPTIVE)  # h is rounded otherwise
    assert len(traced) == 2 and got.stats.rejected > 0
    assert got.stats.vjps == got.stats.nfe_backward == 7 * got.stats.accepted
    agree(Swirl(), x, within=1e-9, interval=(1.7, 0.0), **ADAPTIVE)


@pytest.mark.parametrize("solver", ["euler", pytest.param("rk4", marks=pytest.mark.slow)])
def test_fixed_steps_are_the_eager_ones(traced, solver, x):
    u = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    got = agree(Swirl(), x, ts=[0.0, 0.75, 1.5], interval=(0.0, 1.5), args=(u,), solver=solver, steps=6)
    assert len(traced) == 2 and got.stats.nfe == 6 * solvers[solver].tableau.stages


@pytest.mark.slow
@pytest.mark.parametrize("solver", EXPLICIT)
def test_every_explicit_method_is_the_eager_one(traced, solver, x):
    agree(Swirl(), x, solver=solver, counts=("nfe", "accepted"), steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [name for name in EXPLICIT if solvers[name].adaptive])
def test_every_adaptive_explicit_method_takes_the_eager_steps_and_on_them_gives_the_eager_numbers(traced, solver, x):
    """The estimate is a small difference of large numbers, summed in another order, and the sharp turn magnifies what
    that makes of h: a factor that is wrong in the last place in each step of an eager solve changes a gradient by 9e-9
    (tsit5). On the same steps nothing is magnified, and the numbers are those of eager steps to rounding.
    """
    F, numerics = Swirl(), {"rtol": 1e-4, "atol": 1e-4}
    counts = ("nfe", "accepted", "rejected")
    got, gradients = compiled_without_warning(F, x, solver=solver, **numerics)
    same_steps(got, solved(F, x, False, solver=solver, **numerics)[0], counts)
    grid = [INTERVAL[0], *accumulate(got.stats.h)]
    assert grid[-1] == pytest.approx(INTERVAL[1], rel=1e-14)
    expected, truth = solved(F, x, False, solver=solver, grid=[*grid[:-1], INTERVAL[1]])
    same_numbers(got, gradients, expected, truth, within=1e-12)


@pytest.mark.slow
def test_a_record_that_is_full_is_followed_by_another(traced, x, monkeypatch):
    monkeypatch.setattr(record, "FIRST_RECORD", 8)
    F = Swirl()
    got = agree(F, x, counts=("accepted", "rejected"), ts=ts, **ADAPTIVE)
    assert got.stats.accepted > 16


def test_the_answer_is_the_closed_form(traced):
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    F = odenet.residual.from_block(nn.Linear(1, 1, bias=False).double())
    with torch.no_grad():
        next(F.parameters()).fill_(0.5)  # F(x) = x/2 - x
    with torch.no_grad():
        last = odenet.solve(F, x, rtol=1e-10, atol=1e-10, compile=True).last
    torch.testing.assert_close(last, x * math.exp(-0.5), rtol=1e-9, atol=1e-9)
    assert len(traced) == 1


@pytest.mark.slow
def test_second_derivatives_are_those_of_eager_steps(traced, x):
    F = Swirl()
    found = []
    for compile in (True, False):
        x0 = x.clone().requires_grad_()
        last = odenet.solve(F, x0, INTERVAL, compile=compile, rtol=1e-4, atol=1e-4).last
        (a,) = torch.autograd.grad(last.square().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(a.square().sum(), [x0, F.A]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("scheme", "error"),
    [
        pytest.param({"max_steps": 5, **ADAPTIVE}, "budget of 5 steps", marks=pytest.mark.slow),
        pytest.param({"max_nfe": 20, **ADAPTIVE}, "budget of 20 evaluations", marks=pytest.mark.slow),
        ({"late": 0.5, **FIXED}, "NaN or infinity"),
    ],
    ids=["steps", "nfe", "nonfinite"],
)
def test_a_solve_that_breaks_down_says_what_the_eager_one_says(traced, scheme, error, x):
    breaks_down_alike(x, error, **scheme)
    assert traced


def breaks_down_alike(x, error, late=9.0, **scheme):
    """A compiled and an eager solve, of an F that is NaN from some time on, end with the same sentence."""

    class Breaking(Swirl):
        def forward(self, t, x):
            return torch.where(t > late, math.nan, super().forward(t, x))

    F, said = Breaking(), []
    for compile in (True, False):
        with pytest.raises(odenet.errors.SolveError, match=error) as failure:
            odenet.solve(F, x, INTERVAL, compile=compile, **scheme)
        said.append(str(failure.value))
    assert said[0] == said[1]


class Dropping(Swirl):
    def forward(self, t, x):
        return nn.functional.dropout(super().forward(t, x), 0.5, self.training)


class Counting(Swirl):
    calls = 0

    def forward(self, t, x):
        self.calls += 1
        if self.calls < 0 or float(t) < -1:
            raise ValueError
        return super().forward(t, x)


REFUSED = {
    "random": (Dropping, {}, "random numbers"),
    "host": (Counting, {}, "cannot be captured"),
    "method": (Swirl, {"solver": "ab2", "steps": 4}, "explicit Runge-Kutta"),
    "gradient": (Swirl, {"gradient": "checkpoint", "gradient_options": {"checkpoints": 2}}, "checkpoint"),
    "dense": (Swirl, {"dense": True}, "dense"),
    "outputs": (Swirl, {"solver": "rk4", "steps": 3, "ts": [0.5, 1.0]}, "ends of steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compiled_is_walked_eagerly_and_said_once(traced, case, x):
    kind, scheme, why = REFUSED[case]
    F = kind()
    torch.manual_seed(1)
    with pytest.warns(CompileWarning, match=why):
        got = odenet.solve(F, x, compile=True, **scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odenet.solve(F, x, compile=True, **scheme)
    torch.manual_seed(1)
    assert torch.equal(got.ys, odenet.solve(F, x, compile=False, **scheme).ys)


def test_a_tensor_that_the_graph_would_miss_keeps_its_gradient(traced, x):
    z = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    with pytest.warns(CompileWarning, match=r"tensor of shape \(3, 3\)"):
        odenet.solve(lambda t, x: torch.tanh(x @ z), x, compile=True).last.sum().backward()
    assert z.grad is not None and z.grad.abs().max() > 0


def test_auto_compiles_small_states_after_many_solves(traced, x, monkeypatch):
    monkeypatch.setattr(compiled, "ENOUGH", 3)
    block = odenet.ODEBlock(Swirl(), "euler", steps=3)
    with torch.no_grad():
        eager = block(x)
        for _ in range(2):
            block(x)
        assert not traced
        torch.testing.assert_close(block(x), eager, rtol=1e-12, atol=1e-12)
        assert len(traced) == 1
        assert block.stats.nfe == 3
        never = odenet.ODEBlock(Swirl(), "euler", steps=3, compile=False)
        for _ in range(5):
            never(x)
    assert len(traced) == 1


def test_compile_is_checked_at_the_door(x):
    for wrong in ("yes", 2, None):
        with pytest.raises(odenet.errors.InputError, match="compile must be"):
            odenet.ResNet(Swirl(), 3, compile=wrong)


def test_the_tanh_of_compiled_solves_is_tanh_to_rounding():
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-12, 0, 1000)])
    truth = torch.tanh(x.double())
    units = (lowering.tanh(x).double() - truth).abs() / (truth.abs() * torch.finfo(torch.float32).eps + 1e-45)
    assert float(units.max()) < 4


@pytest.mark.parametrize("shape", [(9, 2, 64), (9, 64, 2), (9, 64, 64), (9, 5, 16), (9, 16, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_product_of_compiled_solves_is_the_product(shape, dtype):
    rows, depth, columns = shape
    a = torch.randn(rows, depth, dtype=dtype)
    for b in (torch.randn(depth, columns, dtype=dtype), torch.randn(columns, depth, dtype=dtype).t()):
        got = lowering.product(a, b)
        if columns == 5 or (columns > lowering.THIN < depth and dtype == torch.float64):
            assert got is NotImplemented  # left to the BLAS
        else:
            torch.testing.assert_close(got, a @ b, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", [FIXED, {"rtol": 1e-4, "atol": 1e-4}], ids=["fixed", "adaptive"])
def test_code_made_of_the_graphs_is_the_eager_solve_for_every_batch(scheme, dtype, caplog):
    F = odenet.residual.MLP(3, width=16, norm="none", time="concat").to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for batch in (7, 12, 130):
        agree(F, torch.randn(batch, 3, dtype=dtype), within=tolerance, counts=("accepted", "nfe"), **scheme)
    assert caplog.text.count("odenet compiled a solve") == 1
    assert caplog.text.count("odenet compiled its gradient") == 1


@pytest.mark.gpu
def test_compiled_on_a_gpu():
    F = odenet.residual.MLP(3, width=16, norm="none").cuda()
    for scheme in (FIXED, {"rtol": 1e-4, "atol": 1e-4}):
        agree(F, torch.randn(7, 3, device="cuda"), within=1e-4, counts=(), **scheme)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_state_that_is_a_tree_is_walked_eagerly_and_said_once(per_sample, x, monkeypatch):
    monkeypatch.setattr(compiled, "_declined", set())

    def F(t, x):
        return {"a": -x["a"], "b": x["a"] * x["b"].cos()}

    tree, scheme = {"a": x, "b": x + 1}, {"rtol": 1e-6, "atol": 1e-6, "per_sample": per_sample}
    with pytest.warns(CompileWarning, match="the state is a tree of tensors; put them in one") as warned:
        first, second = (odenet.solve(F, tree, compile=True, **scheme).last for _ in range(2))
    assert len([w for w in warned if w.category is CompileWarning]) == 1
    eager = odenet.solve(F, tree, compile=False, **scheme).last
    assert all(torch.equal(first[name], eager[name]) and torch.equal(second[name], eager[name]) for name in tree)


def test_a_number_that_is_made_of_a_tensor_is_not_rounded(x):
    F = lambda t, x: (x.mean(0) - x) * float(t)  # noqa: E731
    with pytest.warns(CompileWarning, match="makes a number of a tensor"), torch.no_grad():
        found = odenet.solve(F, x, compile=True).last
    torch.testing.assert_close(found, odenet.solve(F, x, compile=False).last, rtol=0, atol=0)


def test_every_reason_for_an_eager_walk_is_told_once(x):
    F = Swirl()
    for how, reason in (({"norm": torch.linalg.vector_norm}, "norm and tolerances"), ({"dense": True}, "dense=True")):
        for told in (True, False):
            with warnings.catch_warnings(record=True) as caught, torch.no_grad():
                warnings.simplefilter("always")
                odenet.solve(F, x, compile=True, **how)
            assert [reason in str(warning.message) for warning in caught] == [True] * told
