"""Weights that vary within pieces of depth, row by row: the states, gradients and counts of eager solves."""

import warnings

import pytest
import torch
from torch import nn
from torch._C._functorch import get_interpreter_stack

import odenet
from odenet import compiled
from odenet.compiled import CompileWarning, per_sample
from odenet.depth import bspline, chebyshev, fourier, low_rank, piecewise_constant, piecewise_linear
from odenet.residual import MLP, Conv
from tests.compiled.test_compiled import same_numbers

KINDS = {
    "linear": piecewise_linear(3),
    "spline": bspline(3, 2),
    "chebyshev": chebyshev(5),
    "fourier": fourier(3),
    "low_rank": low_rank(2, bspline(2, 3)),
    "low_rank_layers": low_rank(1, piecewise_constant(3)),
}
ADAPTIVE = {"rtol": 1e-6, "atol": 1e-6, "gradient": "checkpoint"}
COUNTS = ("nfe", "nfe_backward", "vjps", "steps_backward", "accepted", "rejected", "forced")


@pytest.fixture
def rowwise_alone(monkeypatch):
    """No other way to compile."""

    def none(problem):
        raise AssertionError("not row by row")

    monkeypatch.setattr(compiled, "_whole", none)
    monkeypatch.setattr(per_sample, "_rounds", none)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(19, 4, dtype=torch.float64)  # three blocks of lanes


def network(**more):
    torch.manual_seed(1)
    return MLP(4, width=6, norm="none", time="concat", **more).double()


def differentiated(block, x, ts=None, args=()):
    inputs = [x.clone().requires_grad_(), *(arg.clone().requires_grad_() for arg in args)]
    solution = block.solution(inputs[0], ts, tuple(inputs[1:]))
    wave = torch.linspace(1, 9, solution.ys.numel(), dtype=x.dtype).cos().view_as(solution.ys)
    return solution, torch.autograd.grad((wave * solution.ys).sum(), [*inputs, *block.parameters()])


def agree(make, x, within=1e-10, **more):
    """Compiled and eager: the same states, gradients and counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, gradients = differentiated(make(True), x, **more)
    expected, truth = differentiated(make(False), x, **more)
    same_numbers(got, gradients, expected, truth, within)
    for name in COUNTS:
        assert getattr(got.stats, name) == getattr(expected.stats, name), name
    if got.stats.samples is not None:
        for name in ("nfe", "nfe_backward", "accepted", "rejected"):
            assert torch.equal(getattr(got.stats.samples, name), getattr(expected.stats.samples, name)), name
    return got


def cases(quick):
    """(kind, per sample); those that are not quick take their time to be compiled."""
    return [
        pytest.param(
            kind, alone, id=f"{kind}-{'per_sample' if alone else 'joint'}",
            marks=() if (kind, alone) in quick else pytest.mark.slow,
        )
        for kind in KINDS
        for alone in (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "alone"), cases([("spline", False), ("low_rank", True), ("chebyshev", False)]))
def test_adaptive_steps_are_the_eager_ones(kind, alone, x, rowwise_alone, caplog):
    weights = KINDS[kind](network())
    how = ADAPTIVE | {"per_sample": alone, "t0": 0.2, "t1": 1.9}
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **how), x)
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **how), x[:1], ts=[0.2, 0.6, 1.05, 1.9])
    assert caplog.text.count("odenet compiled a solve") == 1  # pieces of depth share what they can


@pytest.mark.parametrize(("kind", "alone"), cases([("linear", False), ("fourier", True)]))
def test_given_steps_are_the_eager_ones(kind, alone, x, rowwise_alone):
    weights = KINDS[kind](network())
    how = {"solver": "rk4", "steps": 6, "per_sample": alone, "gradient": "checkpoint"}
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **how), x, ts=[0.0, 0.5, 1.0])
    if not alone:
        resnet = lambda compile: odenet.ResNet(weights, 6, gradient="checkpoint", compile=compile)  # noqa: E731
        agree(resnet, x)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["joint", "per_sample"])
def test_stops_jumps_and_the_way_from_the_other_end(alone, x, rowwise_alone):
    weights = KINDS["spline"](network())
    how = ADAPTIVE | {"per_sample": alone, "stops": (0.3, 0.8), "jumps": (0.6,)}
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **how), x, within=1e-9)
    agree(lambda compile: odenet.ODEBlock(weights, t0=1.0, t1=0.0, compile=compile, **how), x, within=1e-9)


def test_without_a_gradient_and_in_every_batch(x, rowwise_alone):
    weights = KINDS["linear"](network())
    with torch.no_grad():
        for batch in (19, 1, 8):
            both = [odenet.solve(weights, x[:batch], compile=compile, **ADAPTIVE) for compile in (True, False)]
            torch.testing.assert_close(both[0].last, both[1].last, rtol=1e-12, atol=1e-12)
            assert both[0].stats.nfe == both[1].stats.nfe


def test_threads_change_nothing_but_the_order_of_sums(rowwise_alone):
    torch.manual_seed(0)
    x, weights, before = torch.randn(300, 4, dtype=torch.float64), KINDS["spline"](network()), torch.get_num_threads()
    block, found = odenet.ODEBlock(weights, compile=True, **ADAPTIVE), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(differentiated(block, x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0].last, found[1][0].last)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_weights_that_F_makes_of_the_time_itself(x, rowwise_alone):
    class Made(nn.Module):
        """x' = tanh(x W(t)) with W(t) = A + sin(t) B + c d^T t."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.A, self.B = (nn.Parameter(torch.randn(4, 4, dtype=torch.float64)) for _ in range(2))
            self.c, self.d = (nn.Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(2))

        def forward(self, t, x, scale):
            return scale * torch.tanh(x @ (self.A + torch.sin(t) * self.B + torch.outer(self.c * t, self.d)))

    weights = odenet.depth.constant()(Made())
    scale = torch.rand(19, 1, dtype=torch.float64)
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **ADAPTIVE), x, args=(scale,))


@pytest.mark.slow
def test_norms_in_evaluation_mode_have_statistics_over_depth(x, rowwise_alone):
    torch.manual_seed(0)
    weights = KINDS["spline"](MLP(4, width=6, norm="batch").double())
    for name, buffer in weights.named_buffers():
        if "running" in name:
            buffer.data.add_(torch.rand_like(buffer))
    weights.eval()
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **ADAPTIVE), x)


def test_second_derivatives(x):
    weights, found = KINDS["spline"](network()), []
    for compile in (True, False):
        x0 = x.clone().requires_grad_()
        y = odenet.ODEBlock(weights, compile=compile, **ADAPTIVE)(x0)
        (g,) = torch.autograd.grad(y.sin().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x0, *weights.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("alone", [False, True], ids=["joint", "per_sample"])
def test_what_is_not_written_row_by_row_says_so_once(alone):
    torch.manual_seed(0)
    weights, x = piecewise_linear(2)(Conv(2)), torch.randn(3, 2, 4, 4)
    how = {"rtol": 1e-3, "atol": 1e-3, "per_sample": alone}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = odenet.ODEBlock(weights, compile="auto", **how)(x)
    with pytest.warns(CompileWarning, match="weights that vary within pieces of depth"):
        assert torch.equal(odenet.ODEBlock(weights, compile=True, **how)(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odenet.ODEBlock(weights, compile=True, **how)(x)


def test_transforms_inside_F_are_carried_out_and_leave_nothing_behind(x, rowwise_alone):
    class Rolling(nn.Module):
        """x' = -grad V(x) sample by sample, V = sum log cosh(x A)."""

        def __init__(self):
            super().__init__()
            self.A = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

        def forward(self, t, x):
            return -torch.vmap(torch.func.grad(lambda v: torch.cosh(v @ self.A).log().sum()))(x)

    weights = odenet.depth.constant()(Rolling())
    agree(lambda compile: odenet.ODEBlock(weights, compile=compile, **ADAPTIVE), x)
    assert not get_interpreter_stack()


def test_a_no_grad_beside_transforms_is_kept(x):
    class Half(nn.Module):
        """x' = -grad V(x) + c, V = sum log cosh(x A), c made of the state without a gradient."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.A = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

        def forward(self, t, x):
            with torch.no_grad():
                c = x.sin() @ self.A
            return c - torch.vmap(torch.func.grad(lambda v: torch.cosh(v @ self.A).log().sum()))(x)

    weights, found = odenet.depth.constant()(Half()), []
    for compile in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is walked eagerly
            found.append(differentiated(odenet.ODEBlock(weights, compile=compile, **ADAPTIVE), x)[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
