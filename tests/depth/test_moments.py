"""The optimizer goes along when weights over depth change their basis."""

from functools import partial

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import bspline, carry_optimizer, chebyshev, fourier, low_rank, piecewise_constant
from odenet.models import swap_blocks
from odenet.residual import MLP

SGD = partial(torch.optim.SGD, momentum=0.9)
ADAM = partial(torch.optim.AdamW, betas=(0.9, 0.99))


def loss(block, x):
    return (block(x) - torch.sin(2 * x)).square().mean()


def train(block, optimizer, x, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(block, x).backward()
        optimizer.step()
    return block


def values(weights):
    return torch.cat([C.flatten(1) for C in weights.coefficients().values()], 1)


@pytest.fixture
def x():
    return torch.randn(16, 2, dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 3])
def test_momentum_of_the_refined_layers_moves_their_mean_as_that_of_the_layer(k, x):
    """The gradient of a layer is the sum of those of the k layers that it became: with k times the rate, their mean
    moves as the layer would have."""
    old = odenet.ResNet(MLP(2, width=4).double(), 12, weights=piecewise_constant(2))
    before = SGD(old.parameters(), lr=0.1)
    train(old, before, x)
    new = old.refine(k, steps=12)
    after = carry_optimizer(before, old, new)
    assert type(after) is torch.optim.SGD and after.param_groups[0]["momentum"] == 0.9
    for group in after.param_groups:
        group["lr"] *= k
    assert torch.equal(loss(new, x), loss(old, x))
    train(old, before, x, 1)
    train(new, after, x, 1)
    torch.testing.assert_close(values(new.weights.coarsen(2)), values(old.weights), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weights", [bspline(1, 2), bspline(3, 2), chebyshev(3), fourier(3)])
def test_momentum_is_the_one_that_the_new_gradients_would_have_made(weights, x):
    """The first momentum is the gradient; where the old basis sees all of the gradient over depth, what goes along is
    the gradient of the new coefficients."""

    class Drift(nn.Module):  # x(1) = x(0) + ∫ a(s) ds: the gradient over depth is constant
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(2, dtype=torch.float64))

        def forward(self, t, x):
            return self.a.expand_as(x)

    old = odenet.ODEBlock(Drift(), "rk4", steps=24, weights=weights)
    before = torch.optim.SGD(old.parameters(), lr=0.0, momentum=0.9)
    train(old, before, x, 1)
    new = old.refine(2)
    after = carry_optimizer(before, old, new)
    loss(new, x).backward()
    (parameter,) = new.parameters()
    torch.testing.assert_close(after.state[parameter]["momentum_buffer"], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_adam_goes_on_at_the_same_speed(k, x):
    old = odenet.ResNet(MLP(2, width=4).double(), 8, weights=piecewise_constant(2))
    before = ADAM(old.parameters(), lr=1e-2, weight_decay=0.0, eps=0.0)
    train(old, before, x, 4)
    new = old.refine(k, steps=8)
    after = carry_optimizer(before, old, new)
    was = values(old.weights)
    for block, optimizer in ((old, before), (new, after)):
        for p in block.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    moved = values(old.weights) - was
    assert float(moved.abs().max()) > 0
    torch.testing.assert_close(
        values(new.weights) - was.repeat_interleave(k, 0), moved.repeat_interleave(k, 0), rtol=1e-9, atol=1e-12
    )
    steps = {float(state["step"]) for state in after.state.values()}
    assert steps == {5.0} and all(bool((s["exp_avg_sq"] >= 0).all()) for s in after.state.values())


CHANGES = {
    "refined": lambda w: w.refine(2),
    "coarsened": lambda w: w.coarsen(2),
    "projected": lambda w: w.project(bspline(3, 2)),
}
OF_KIND = {
    "untied": piecewise_constant(4),
    "bspline": bspline(2, 4),
    "chebyshev": chebyshev(4),
    "low_rank": low_rank(1, bspline(1, 4)),
}
GOES_ON = [
    pytest.param(
        optimizer,
        kind,
        make,
        id=f"{optimizer.func.__name__}-{name}-{change}",
        marks=[] if (i + j + k) % 3 == 0 else pytest.mark.slow,  # quick: every value of each, a third of the pairs
    )
    for i, optimizer in enumerate([SGD, ADAM])
    for j, (name, kind) in enumerate(OF_KIND.items())
    for k, (change, make) in enumerate(CHANGES.items())
]


@pytest.mark.parametrize(("optimizer", "kind", "make"), GOES_ON)
def test_training_goes_on_in_a_model_of_which_the_block_is_a_part(optimizer, kind, make, x):
    model = nn.Sequential(nn.Linear(2, 2), odenet.ODEBlock(MLP(2, width=4), "midpoint", steps=4, weights=kind)).double()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[1].parameters(), "lr": 0.02}]
    before = optimizer(groups, lr=0.01)
    train(model, before, x)
    twin = swap_blocks(model, lambda block: odenet.ODEBlock(make(block.weights), "midpoint", steps=8))
    after = carry_optimizer(before, model, twin)
    held = [p for group in after.param_groups for p in group["params"]]
    assert set(held) == set(twin.parameters()) and len(held) == len(set(held))
    assert [group["lr"] for group in after.param_groups] == [0.01, 0.02]
    assert after.state[model[0].weight] is before.state[model[0].weight]
    at_switch = loss(twin, x).item()
    train(twin, after, x, 6)
    assert loss(twin, x).item() < at_switch
    for state in after.state.values():
        assert all(bool((state[key] >= 0).all()) for key in state if key.endswith("_sq"))


def test_modules_that_do_not_match_are_refused():
    block = odenet.ODEBlock(MLP(2))
    with pytest.raises(odenet.errors.InputError, match="1 weights over depth and the new one 0"):
        carry_optimizer(torch.optim.SGD(block.parameters(), lr=0.1), block, nn.Linear(2, 2))
