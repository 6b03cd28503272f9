"""Weights over depth where every sample has its own time, against the shared loop."""

import pytest
import torch

import odenet

BASES = {
    name: make
    for name, make in {
        "piecewise_constant": lambda basis: basis(3),
        "piecewise_linear": lambda basis: basis(3),
        "bspline": lambda basis: basis(2, 5),
        "chebyshev": lambda basis: basis(3),
        "fourier": lambda basis: basis(3),
    }.items()
    if hasattr(odenet.depth, name)
}


@pytest.mark.parametrize("name", BASES)
def test_a_sample_alone_in_its_batch_is_walked_as_by_the_shared_loop(name):
    F = odenet.residual.MLP(3, width=6, layers=1, norm="none").double()
    weights = BASES[name](getattr(odenet.depth, name))(F)
    x = torch.randn(3, 3, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [4.0]], dtype=torch.float64)
    how = {"t0": 0.5, "t1": 2.0, "rtol": 1e-6, "atol": 1e-6, "gradient": "autograd"}
    block = odenet.ODEBlock(weights, per_sample=True, **how)
    whole = block(x)
    for i in range(3):
        alone = odenet.ODEBlock(weights, **how)
        torch.testing.assert_close(whole[i], alone(x[i : i + 1])[0], rtol=1e-9, atol=1e-9)
        assert alone.stats.nfe == int(block.stats.samples.nfe[i])


def test_weights_that_vary_need_one_interval():
    weights = odenet.depth.piecewise_linear(2)(odenet.residual.MLP(3, width=4, layers=1))
    with pytest.raises(odenet.errors.InputError, match="one interval for all samples"):
        odenet.solve(weights, torch.ones(2, 3), (0.0, torch.tensor([1.0, 2.0])), per_sample=True)
