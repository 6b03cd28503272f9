"""Moments go along between weights of different rank: gradients by the chain rule, and back as far as it can be."""

import pytest
import torch

import odenet
from odenet.depth import bspline, carry_optimizer, chebyshev, low_rank
from odenet.residual import MLP


def gradients(block, x):
    loss = (block(x) - torch.sin(2 * x)).square().mean()
    return dict(zip(block.parameters(), torch.autograd.grad(loss, list(block.parameters())), strict=True))


def stepped(block, x, make):
    """An optimizer with state, and weights that it has not moved."""
    optimizer = make(block.parameters(), lr=0.0)
    for p, g in gradients(block, x).items():
        p.grad = g
    optimizer.step()
    return optimizer


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr)


@pytest.fixture
def x():
    return torch.randn(16, 2, dtype=torch.float64)


def block_of(weights):
    return odenet.ODEBlock(MLP(2, width=4, norm="none").double(), "rk4", steps=12, weights=weights)


@pytest.mark.parametrize("kind", [bspline(2, 4), chebyshev(4), bspline(0, 4)])
@pytest.mark.parametrize("of", [sgd, adam])
def test_what_goes_to_low_rank_is_the_gradient_of_its_factors(kind, of, x):
    """Rank 2 weights written out in full, and made rank 2 again: the function is the same, so are the gradients."""
    full = block_of(low_rank(2, kind)).project(kind)
    before = stepped(full, x, of)
    low = full.project(low_rank(2, kind))
    assert low.weights.residual.relative < 1e-12
    after = carry_optimizer(before, full, low)
    moment, square = ("momentum_buffer", None) if of is sgd else ("exp_avg", "exp_avg_sq")
    for p, g in gradients(low, x).items():
        state = after.state[p]
        factor = 1.0 if of is sgd else 0.1
        torch.testing.assert_close(state[moment], factor * g, rtol=1e-8, atol=1e-11)
        if square is not None:  # one step: v = 0.001 g², of which no less is known than the mean says
            assert bool((state[square] >= 0.001 * g**2 * (1 - 1e-6) - 1e-18).all()) and float(state["step"]) == 1


@pytest.mark.parametrize("ranks", [(2, 3), (1, 3)])
def test_through_full_weights_and_back_nothing_is_lost(ranks, x):
    """What the factors see of a gradient is what comes back, whatever the rank in between."""
    kind, (rank, other) = bspline(2, 4), ranks
    low = block_of(low_rank(rank, kind))
    before = stepped(low, x, sgd)
    full = low.project(kind)
    between = carry_optimizer(before, low, full)
    more = full.project(low_rank(other, kind))
    across = carry_optimizer(between, full, more)
    assert more.weights.residual.relative < 1e-12
    twin = carry_optimizer(across, more, low)
    for p, g in gradients(low, x).items():
        torch.testing.assert_close(twin.state[p]["momentum_buffer"], g, rtol=1e-6, atol=1e-9)


def test_full_weights_get_the_smallest_gradient_that_the_factors_could_have_seen(x):
    """Of all gradients with the same factors' gradients it is the nearest to zero in L2 over depth, so not above the
    true one; and where the profiles are all of the basis it is the true one."""
    from odenet.depth.projection import gram

    kind = bspline(1, 3)
    for rank, equal in ((1, False), (3, True)):
        low = block_of(low_rank(rank, kind))
        full = low.project(kind)
        carried = carry_optimizer(stepped(low, x, sgd), low, full)
        inverse = torch.linalg.inv(gram(kind.basis))
        for p, g in gradients(full, x).items():
            got, true = carried.state[p]["momentum_buffer"].flatten(1), g.flatten(1)
            if equal:
                torch.testing.assert_close(got, true, rtol=1e-7, atol=1e-10)
            size, most = (torch.einsum("kn,kl,ln->", v, inverse, v) for v in (got, true))
            assert float(size) <= float(most) * (1 + 1e-9)
            torch.testing.assert_close(torch.einsum("kn,kl,ln->", got, inverse, true - got) + 1, torch.ones_like(size))


def test_adam_goes_on_at_about_the_same_speed(x):
    full = block_of(bspline(1, 3))
    before = adam(full.parameters(), 1e-3)
    for _ in range(20):
        for p, g in gradients(full, x).items():
            p.grad = g
        before.step()
    low = full.project(low_rank(2, bspline(1, 3)))
    after = carry_optimizer(before, full, low)
    for state in after.state.values():
        mean = state["exp_avg"] / (1 - 0.9**20)
        root = (state["exp_avg_sq"] / (1 - 0.999**20)).sqrt()
        assert float((mean.abs() / root).max()) < 1.2  # no step is much longer than the learning rate
        assert float((mean.abs() / root).max()) > 0.5  # and no tensor stands still
