"""What is not finite ends a run with a sentence that says where: epoch, step, parameters, gradient method."""

from functools import partial

import pytest
import torch
from torch import nn

import odenet
from odenet.data import moons
from odenet.errors import GradientError, NonFiniteFunctionError, RunError
from odenet.training import Settings, constant, fit

SGD = partial(torch.optim.SGD, lr=0.1)
SHORT = Settings(epochs=2, batch_size=30)


@pytest.fixture(scope="module")
def points():
    return moons(n=90, n_test=60)


class Root(nn.Module):
    """F = b + √|w| at w = 0: finite, and its derivative is not."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))

    def forward(self, t, x):
        return 0 * x + self.b + self.w.abs().sqrt()


def network(gradient):
    return nn.Sequential(odenet.ODEBlock(Root(), "rk4", steps=4, gradient=gradient), nn.Linear(2, 2))


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_a_gradient_that_is_nan_where_the_loss_is_not(points, gradient):
    model = network(gradient)
    before = {name: p.clone() for name, p in model.named_parameters()}
    where = rf"in epoch 1, step 1 \(learning rate 0.1, gradient='{gradient}'\)"
    with pytest.raises(RunError, match=rf"the gradient of 0\.weights\.F\.w became nan {where} where the training loss"):
        fit(model, points, SGD, constant, SHORT)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # no step was taken with it


def test_later_in_training_and_of_which_group(points):
    class Late(nn.Module):
        """A square root whose argument is 0 from the sixth training batch on."""

        def __init__(self):
            super().__init__()
            self.w, self.head, self.seen = nn.Parameter(torch.ones(2)), nn.Linear(2, 2), 0

        def forward(self, x):
            self.seen += self.training and torch.is_grad_enabled()
            return self.head(x) + (self.w * (self.seen < 7)).abs().sqrt()  # the meter of memory takes one

    def two(parameters):
        w, *head = parameters
        return torch.optim.SGD([{"params": head, "lr": 0.1}, {"params": [w], "lr": 0.01}], lr=0.1)

    for clip in (None, 1.0):
        message = r"the gradient of w \(parameter group 1\) became nan in epoch 2, step 3 \(learning rate 0.1\)"
        with pytest.raises(RunError, match=message):
            fit(Late(), points, two, constant, Settings(epochs=3, batch_size=30, grad_clip=clip))


def test_large_gradients_are_finite(points):
    class Steep(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1e30 * (self.bias - self.bias.detach())

    history = fit(Steep(2, 2), points, partial(torch.optim.SGD, lr=1e-32), constant, SHORT)
    assert len(history) == 2  # whose norm in float32 overflows


def test_a_solve_that_breaks_down_in_training_says_when(points):
    model = nn.Sequential(odenet.ODEBlock(odenet.residual.MLP(2)), nn.Linear(2, 2))
    with (
        pytest.warns(UserWarning, match="could not be measured"),
        pytest.raises(NonFiniteFunctionError, match=r"; this was in epoch 1, step 2 \(.* 1e\+38, ") as caught,
    ):
        fit(model, points, partial(torch.optim.SGD, lr=1e38), constant, SHORT)
    assert caught.value.t == 0.0 and caught.value.nfe == 1
    with pytest.raises(GradientError, match=r"use gradient='checkpoint'; this was in epoch 1, step 1 \(.*'adjoint'\)$"):
        fit(network("adjoint"), points, SGD, constant, SHORT)


def test_parameters_that_are_lost_are_named(points):
    class Lost(nn.Linear):
        def forward(self, input):
            return torch.nan_to_num(super().forward(input)) + self.bias

    model = nn.Sequential(nn.Linear(2, 2), Lost(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.inf
        model[1].bias[1] = torch.nan
    message = r"loss became nan in epoch 1, step 1 .* not finite any more \(1\.weight, 1\.bias\); lower the"
    with pytest.raises(RunError, match=message):
        fit(model, points, SGD, constant, SHORT)
