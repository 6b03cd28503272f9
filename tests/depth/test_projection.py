"""refine, coarsen, project: exact where spaces nest, best in L2 where they do not, and the residual as SciPy has it."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import BSpline as ScipySpline
from scipy.optimize import minimize_scalar
from torch import nn

import odenet
from odenet.depth import PiecewiseConstant, bspline, chebyshev, constant, fourier, low_rank, piecewise_constant
from odenet.depth.bases import BSpline, evaluate_basis
from odenet.depth.projection import transfer
from odenet.residual import MLP

KINDS = {
    "tied": constant(),
    "untied": piecewise_constant(3),
    "linear": bspline(1, 3),
    "cubic": bspline(3, 2),
    "chebyshev": chebyshev(4),
    "fourier": fourier(5),
    "low_rank": low_rank(2, bspline(2, 3)),
}


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(1, dtype=torch.float64))

    def reset_parameters(self):
        nn.init.normal_(self.a)

    def forward(self, t, x):
        return self.a * x


def theta(weights, s, name="a"):
    s = torch.as_tensor(s, dtype=torch.float64).reshape(-1)
    return evaluate_basis(weights.basis, s) @ weights.coefficients()[name].double().flatten(1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("k", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 3))])
def test_refined_weights_are_the_same_function_of_depth(kind, k):
    weights = kind(MLP(3, width=4, norm="batch").double())
    finer = weights.refine(k)
    s = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    for name, C in weights.coefficients().items():
        torch.testing.assert_close(theta(finer, s, name), theta(weights, s, name), rtol=1e-12, atol=1e-13)
        assert len(finer.coefficients()[name]) >= len(C)
    assert finer.residual is not None and finer.residual.relative < 1e-13
    assert not {id(p) for p in finer.parameters()} & {id(p) for p in weights.parameters()}
    x = torch.randn(5, 3, dtype=torch.float64)
    block = odenet.ODEBlock(weights, rtol=1e-9, atol=1e-9).eval()
    torch.testing.assert_close(block.refine(k)(x), block(x), rtol=1e-7, atol=1e-7)
    back = finer.project(weights.kind)
    torch.testing.assert_close(theta(back, s, name), theta(weights, s, name), rtol=1e-11, atol=1e-12)


def test_a_network_whose_steps_fit_the_new_knots_stays_the_same_network():
    x = torch.randn(5, 3, dtype=torch.float64)
    resnet = odenet.ResNet(MLP(3).double(), 8, weights=bspline(1, 4))
    finer = resnet.refine(2)
    assert isinstance(finer, odenet.ResNet) and finer.scheme.steps == 8 and finer.weights.pieces == 8
    torch.testing.assert_close(finer(x), resnet(x), rtol=1e-12, atol=1e-12)
    untied = odenet.ResNet(MLP(3).double(), 4, weights="untied")
    doubled = untied.refine(2)
    assert doubled.scheme.steps == 8 and len(doubled.weights.layers) == 8
    torch.testing.assert_close(doubled(x), untied.discretize(8)(x), rtol=1e-12, atol=1e-12)
    assert resnet.refine(2, steps=16).scheme.steps == 16
    assert doubled.coarsen(4).scheme.steps == 8 and doubled.coarsen(4, steps=4).scheme.steps == 4
    torch.testing.assert_close(doubled.coarsen(4, steps=4)(x), untied(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(odenet.errors.InputError, match="has no number of steps"):
        odenet.ODEBlock(MLP(3)).refine(2, steps=4)
    grid = odenet.ODEBlock(MLP(3).double(), "rk4", grid=[0.0, 0.3, 1.0], weights="tied").project(piecewise_constant(2))
    assert list(grid.scheme.grid) == [0.0, 0.3, 0.5, 1.0] and grid(x).shape == x.shape


@pytest.mark.parametrize("change", [lambda b: b.refine(2), lambda b: b.coarsen(1), lambda b: b.project(chebyshev(3))])
def test_a_block_with_other_weights_keeps_all_that_is_not_weights(change):
    how = {"rtol": 1e-5, "atol": 1e-6, "gradient": "autograd", "compile": False, "max_nfe": 500, "warm_start": True}
    block = odenet.ODEBlock(MLP(3, norm="none"), weights=bspline(1, 2), t1=2.0, regularisers={"kinetic": 0.1}, **how)
    block.eval()(torch.randn(5, 3))
    other = change(block)
    assert type(other) is odenet.ODEBlock and not other.training
    assert other.scheme == block.scheme and (other.t0, other.t1) == (0.0, 2.0)
    assert other.regularisers == {"kinetic": 0.1} and other.warm_start
    other.train()(torch.randn(5, 3))
    (penalty,) = odenet.blocks.take_penalties(other)
    assert float(penalty.detach()) > 0


def test_knot_insertion_is_scipys():
    old, new = BSpline(3, 2), BSpline(3, 4)
    c = torch.randn(5, dtype=torch.float64)
    spline = ScipySpline(np.array([0, 0, 0, 0, 0.5, 1, 1, 1, 1]), c.numpy(), 3)
    for knot in (0.25, 0.75):
        spline = spline.insert_knot(knot)
    np.testing.assert_allclose((transfer(old, new) @ c).numpy(), spline.c[:7], rtol=1e-12, atol=1e-13)


def test_the_mean_of_two_layers_is_what_coarsening_keeps():
    layers = [MLP(2, width=4) for _ in range(6)]
    half = PiecewiseConstant(layers).coarsen(3)
    for i, layer in enumerate(half.layers):
        pairs = zip(layers[2 * i].parameters(), layers[2 * i + 1].parameters(), layer.parameters(), strict=True)
        for a, b, c in pairs:
            torch.testing.assert_close(c, (a + b) / 2)


QUICK = {("untied", "cubic"), ("untied", "low_rank"), ("cubic", "untied"), ("cubic", "linear")}
QUICK |= {("chebyshev", "fourier"), ("chebyshev", "chebyshev")}
PAIRS = [
    pytest.param(source, target, marks=[] if (source, target) in QUICK else pytest.mark.slow)
    for source in ("untied", "cubic", "chebyshev")
    for target in ("untied", "linear", "cubic", "chebyshev", "fourier", "low_rank")
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_projection_is_the_best_in_l2_and_says_what_it_lost(source, target):
    weights = KINDS[source](Scalar())
    near = weights.project(KINDS[target])
    edges = sorted({0.0, 1.0, *weights.knots, *near.knots})

    def integral(function):
        return sum(
            quad(function, a, b, epsabs=1e-12)[0]
            for a, b in zip(edges, edges[1:], strict=False)  # noqa: RUF007
        )

    def lost(change, k):
        def square(s):
            phi = float(evaluate_basis(near.basis, torch.tensor([s], dtype=torch.float64))[0, k])
            return float(theta(weights, s) - theta(near, s) - change * phi) ** 2

        return integral(square)

    assert near.residual.absolute == pytest.approx(lost(0.0, 0) ** 0.5, rel=1e-6, abs=1e-9)
    whole = integral(lambda s: float(theta(weights, s)) ** 2) ** 0.5
    assert near.residual.relative == pytest.approx(near.residual.absolute / whole, rel=1e-6, abs=1e-9)
    assert near.residual.of["a"] == pytest.approx(near.residual.relative, abs=1e-12)
    if target != "low_rank":  # a change of any coefficient makes it worse
        k = near.basis.size // 2
        best = minimize_scalar(lost, bracket=(-0.1, 0.1), args=(k,), options={"maxiter": 8})
        assert abs(best.x) < 1e-5


def test_low_rank_weights_are_the_truncated_singular_value_decomposition():
    weights = piecewise_constant(6)(MLP(3, width=4).double())
    near = weights.project(low_rank(2, bspline(0, 6)))
    for name, C in weights.coefficients().items():
        rows = C.flatten(1).numpy()
        mean = rows.mean(0)
        U, S, V = np.linalg.svd(rows - mean, full_matrices=False)
        np.testing.assert_allclose(
            near.coefficients()[name].flatten(1).numpy(), mean + (U[:, :2] * S[:2]) @ V[:2], rtol=1e-9, atol=1e-10
        )
        share = ((S[2:] ** 2).sum() / max((rows**2).sum(), 1e-300)) ** 0.5
        assert near.residual.of[name] == pytest.approx(share, rel=1e-6, abs=1e-9)
    again = near.refine(2)
    assert again.rank == 2 and again.residual.relative < 1e-13


def test_a_trained_network_keeps_its_outputs_when_it_is_refined():
    x = torch.randn(64, 2)
    y = torch.sin(3 * x)
    block = odenet.ODEBlock(MLP(2, width=16), "rk4", steps=4, weights=bspline(1, 2))
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (block(x) - y).square().mean().backward()
        optimizer.step()
    finer = block.refine(2)
    torch.testing.assert_close(finer(x), block(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: constant()(torch.sin).refine(2), "only the weights of an nn.Module"),
        (lambda: constant()(MLP(2)).refine(0), "factor of at least 1, got 0"),
        (lambda: constant()(MLP(2)).coarsen(0), "must be a positive integer, got 0"),
        (lambda: constant()(MLP(2)).project("bspline"), "takes a kind of weights such as.*got 'bspline'"),
        (lambda: PiecewiseConstant([MLP(2), MLP(2, width=3)]).coarsen(1), "layers 1 and 0 differ in their weights"),
        (lambda: PiecewiseConstant([Masked(0.0), Masked(1.0)]).coarsen(1), "buffer 'mask' differs between layers"),
    ],
)
def test_what_cannot_be_used_is_said(make, said):
    with pytest.raises(odenet.errors.InputError, match=said):
        make()


class Masked(Scalar):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", torch.tensor(mask))
