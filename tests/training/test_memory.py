"""The saved-tensor meter against byte counts that follow from the formulas of the derivatives."""

import warnings

import pytest
import torch
from torch import nn

import odenet
from odenet.training import SavedTensorMeter, saved_bytes

BATCH, WIDTH = 32, 16
STATE = BATCH * WIDTH * 4


def test_a_tanh_layer_saves_its_input_and_its_output():
    # linear saves x (for the gradient of W) and W (a parameter); tanh saves its result; the second linear saves
    # that result again, in the same storage
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    x = torch.randn(BATCH, WIDTH)
    with SavedTensorMeter(exclude=model.parameters()) as meter:
        y = model(x).sum()
        assert meter.live == 2 * STATE
        y.backward()
    assert meter.peak == 2 * STATE
    assert meter.live == 0


def test_parameters_count_if_they_are_not_excluded():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
    with SavedTensorMeter() as meter:
        model(torch.randn(BATCH, WIDTH)).sum().backward()
    assert meter.peak == 2 * STATE + 4 * WIDTH * WIDTH  # x, the hidden state, and the second W


def test_views_of_one_storage_count_once():
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    with SavedTensorMeter() as meter:
        y = x.exp()  # saves y
        (y[:, :4] * y[:, 4:8] + y[:, :4].sin()).sum().backward()  # saves three views of y
    assert meter.peak == STATE
    assert meter.live == 0


class RebuiltGraph(torch.autograd.Function):
    """`depth` times tanh that keeps only its input and builds the graph in the backward pass."""

    @staticmethod
    def forward(ctx, x, depth):
        ctx.save_for_backward(x)
        ctx.depth = depth
        for _ in range(depth):
            x = x.tanh()
        return x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            start = y = x.detach().requires_grad_()
            for _ in range(ctx.depth):
                y = y.tanh()
        return torch.autograd.grad(y, start, gradient)[0], None


def test_a_graph_that_is_built_in_the_backward_pass_counts():
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    with SavedTensorMeter() as meter:
        y = RebuiltGraph.apply(x, 7).sum()
        assert meter.live == STATE
        y.backward()
    assert meter.peak == 8 * STATE
    assert meter.live == 0


def test_the_meter_changes_no_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(256, 3))
    x = torch.randn(5, 1, 8, 8)
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with SavedTensorMeter(exclude=model.parameters()):
        metered = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, metered, strict=True))


def test_saved_bytes_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))
    x = torch.randn(BATCH, WIDTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert saved_bytes(model, lambda: model(x).square().sum()) >= 3 * STATE
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_cannot_be_measured_gives_nan_and_a_warning():
    model = nn.Linear(WIDTH, WIDTH)

    def loss():
        return torch.func.grad(lambda x: model(x).square().sum())(torch.ones(WIDTH)).sum()

    with pytest.warns(UserWarning, match=r"memory of a training step could not be measured: torch\.func"):
        assert saved_bytes(model, loss) != saved_bytes(model, loss)


def test_checkpointing_saves_less_than_backprop_through_the_steps():
    F = odenet.residual.MLP(WIDTH)
    x = torch.randn(256, WIDTH)
    blocks = {name: odenet.ResNet(F, steps=32, gradient=name) for name in ("autograd", "checkpoint")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peak = {name: saved_bytes(block, lambda b=block: b(x).sum()) for name, block in blocks.items()}
    assert peak["checkpoint"] < 0.6 * peak["autograd"]
