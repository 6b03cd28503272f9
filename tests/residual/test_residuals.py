"""Every registered residual function, and the parts they are made of."""

import pytest
import torch
from torch import nn

import odenet
from odenet.residual import MLP, Bottleneck, Conv, from_block, residuals
from odenet.residual.layers import ACTIVATIONS, NORMS, TIMES, Film, norm_layer
from tests.oracles import make_residual, residual_state

KINDS = [
    pytest.param(make, id=name)
    for name, make in {
        "mlp": lambda **k: (MLP(3, width=8, **k), (5, 3)),
        "conv": lambda **k: (Conv(4, **k), (2, 4, 5, 5)),
        "bottleneck": lambda **k: (Bottleneck(8, **k), (2, 8, 5, 5)),
    }.items()
]


@pytest.mark.parametrize("name", residuals)
def test_a_residual_keeps_shape_and_dtype_and_depends_on_the_state(name):
    F = make_residual(name)
    x = residual_state(F).requires_grad_()
    y = F(torch.tensor(0.3, dtype=torch.float64), x)
    assert y.shape == x.shape and y.dtype == x.dtype
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.abs().max() > 1e-6
    assert all(torch.isfinite(p).all() for p in F.parameters())


@pytest.mark.parametrize("name", residuals)
def test_a_time_per_sample_is_that_sample_at_that_time(name):
    F = make_residual(name).eval()
    x = residual_state(F)
    times = torch.tensor([0.2, 0.9], dtype=torch.float64)
    together = F(times, x)
    alone = torch.cat([F(t, x[i : i + 1]) for i, t in enumerate(times)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("make", KINDS)
def test_every_norm_and_time_gives_a_function_of_the_state_and_time_only_where_asked(make, norm, time):
    F, shape = make(norm=norm, time=time)
    F.double()
    for module in F.modules():
        if isinstance(module, Film):
            nn.init.normal_(module.out.weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    early, late = (F(torch.tensor(t, dtype=torch.float64), x) for t in (0.1, 0.8))
    assert torch.equal(early, late) == (time == "none")
    (gradient,) = torch.autograd.grad(early.square().sum(), x)
    assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("make", KINDS)
def test_a_zero_last_layer_makes_the_block_the_identity_until_it_is_trained(make):
    F, shape = make(zero_init=True)
    x = torch.randn(shape)
    assert torch.equal(F(torch.zeros(()), x), torch.zeros(shape))
    assert torch.equal(odenet.ResNet(F, steps=3)(x), x)
    F.reset_parameters()
    assert torch.equal(F(torch.zeros(()), x), torch.zeros(shape))
    assert not torch.equal(make()[0](torch.zeros(()), x), torch.zeros(shape))


@pytest.mark.parametrize("make", KINDS)
def test_reset_draws_every_random_weight_anew(make):
    F, _ = make(time="film", norm="group")
    before = {name: p.clone() for name, p in F.named_parameters()}
    F.reset_parameters()
    for name, p in F.named_parameters():
        constant = before[name].unique().numel() == 1
        assert constant or not torch.equal(p, before[name]), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_by_name(activation):
    F = MLP(2, width=8, activation=activation)
    assert any(type(m) is ACTIVATIONS[activation] for m in F.modules())


def test_the_basic_block_is_two_3x3_convolutions_and_the_bottleneck_1_3_1():
    kernels = {
        kind: [m.kernel_size[0] for m in kind(8).modules() if isinstance(m, nn.Conv2d)] for kind in (Conv, Bottleneck)
    }
    assert kernels == {Conv: [3, 3], Bottleneck: [1, 3, 1]}
    assert [type(m).__name__ for m in Conv(8).before[0].children()] == ["GroupNorm", "ReLU"]


def test_opening_a_block_and_one_euler_step_of_size_1_is_the_block_itself():
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    F = from_block(block)
    assert F.block is block
    torch.testing.assert_close(odenet.ResNet(F, steps=1)(x), block(x), rtol=1e-14, atol=1e-14)
    assert torch.equal(F(torch.zeros(()), x), block(x) - x)


@pytest.mark.parametrize("width", [2, 3, 4, 6, 8, 10, 12, 16, 64])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_norm_of_vectors_leaves_more_than_signs(width, norm):
    """Groups of one channel are always 0, groups of two always 1 and -1: F would not depend on x."""
    y = norm_layer(norm, width, spatial=False)(torch.randn(64, width))
    distinct = y.detach().mul(1000).round().unique().numel()
    assert distinct > 20 or width == 2


def test_a_norm_of_one_channel_is_refused():
    with pytest.raises(odenet.errors.InputError, match="norm='none'"):
        MLP(2, width=1)
    MLP(2, width=1, norm="none")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLP(0), "dim must be a positive integer, got 0"),
        (lambda: MLP(3, width=-1), "width must be a positive integer, got -1"),
        (lambda: MLP(3, layers=1.5), "layers must be a positive integer, got 1.5"),
        (lambda: MLP(True), "dim must be a positive integer, got True"),
        (lambda: Conv(0), "channels must be a positive integer, got 0"),
        (lambda: Conv(4, width=0), "width must be a positive integer, got 0"),
        (lambda: Bottleneck("8"), "channels must be a positive integer, got '8'"),
        (lambda: MLP(3, activation="tahn"), "unknown activation 'tahn'; did you mean 'tanh'?"),
        (lambda: Conv(4, norm="bach"), "unknown norm 'bach'; did you mean 'batch'?"),
        (lambda: Conv(4, time="concatenate"), "unknown time conditioning 'concatenate'; did you mean 'concat'?"),
        (lambda: from_block(torch.tanh), "from_block takes an nn.Module"),
        (lambda: residuals["convolution"], "unknown residual 'convolution'.*valid: .*conv"),
    ],
)
def test_what_cannot_be_used_is_said(make, said):
    with pytest.raises(odenet.errors.InputError, match=said):
        make()
