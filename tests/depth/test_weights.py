"""Weights over depth: sharing, copying, knots."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import Constant, DepthWeights, PiecewiseConstant, constant, depth_weights, piecewise_constant
from odenet.residual import MLP, residuals
from tests.oracles import make_residual


@pytest.mark.parametrize("name", depth_weights)
@pytest.mark.parametrize("residual", residuals)
def test_any_weights_hold_F_on_pieces_that_four_steps_fit(name, residual):
    F = make_residual(residual)
    weights = depth_weights[name](F, 4)
    assert isinstance(weights, DepthWeights)
    if name in ("tied", "untied"):
        assert weights.piece(0) is F
    assert all(weights.piece(i) is weights.piece(i) for i in range(weights.pieces))
    assert all(a < b for a, b in pairwise([0, *weights.knots, 1]))
    assert 4 % weights.pieces == 0


@pytest.mark.parametrize(("basis", "word"), [("constant", "tied"), ("piecewise_constant", "untied")])
def test_the_bases_of_a_resnet_go_by_two_names(basis, word):
    one, other = (odenet.ResNet(MLP(3), steps=4, weights=name) for name in (basis, word))
    assert type(one.weights) is type(other.weights) and one.weights.pieces == other.weights.pieces


@pytest.mark.parametrize("residual", residuals)
def test_untied_layers_are_of_one_kind_with_weights_of_their_own(residual):
    F = make_residual(residual)
    layers = piecewise_constant(3)(F).layers
    assert [type(layer) for layer in layers] == [type(F)] * 3
    pointers = [p.data_ptr() for p in piecewise_constant(3)(F).parameters()]
    assert len(set(pointers)) == len(pointers)
    for a, b in ((0, 1), (1, 2)):
        drawn = [
            (p, q)
            for p, q in zip(layers[a].parameters(), layers[b].parameters(), strict=True)
            if p.unique().numel() > 1
        ]
        assert drawn and not any(torch.equal(p, q) for p, q in drawn)


def test_layers_given_by_hand_are_shared():
    layers = [MLP(2, width=8) for _ in range(3)]
    weights = PiecewiseConstant(layers)
    assert [weights.piece(i) for i in range(3)] == layers
    assert weights.knots == (1 / 3, 2 / 3)
    every = PiecewiseConstant([MLP(2, width=8) for _ in range(6)])
    half = every.every(2)
    assert list(half.layers) == list(every.layers)[::2] and half.knots == (1 / 3, 2 / 3)


def test_every_kth_layer_walked_by_euler_reads_the_weights_where_a_step_starts():
    weights = PiecewiseConstant([MLP(2, width=8).double() for _ in range(6)])
    x = torch.randn(3, 2, dtype=torch.float64)
    short = odenet.ResNet(weights.every(3), steps=2)
    y = x
    for layer in (weights.layers[0], weights.layers[3]):
        y = torch.add(y, layer(torch.zeros(()), y), alpha=0.5)
    assert torch.equal(short(x), y)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: piecewise_constant(0), "number of layers must be a positive integer, got 0"),
        (lambda: piecewise_constant(2.0), "number of layers must be a positive integer, got 2.0"),
        (lambda: piecewise_constant(2)(torch.sin), "nn.Module"),
        (lambda: PiecewiseConstant([]), "at least one layer"),
        (lambda: PiecewiseConstant([lambda t, x: x]), "nn.Module, got function"),
        (lambda: PiecewiseConstant([nn.Linear(2, 2)]), "from_block"),
        (lambda: PiecewiseConstant([MLP(2), MLP(2)]).every(3), "divide the number of layers, 2, got 3"),
        (lambda: PiecewiseConstant([MLP(2), MLP(2)]).every(0), "got 0"),
        (lambda: PiecewiseConstant([MLP(2), MLP(2)]).every("2"), "got '2'"),
        (lambda: Constant(3), "called as F.t, x., got int"),
        (lambda: constant()(MLP), "got the class MLP; make an instance"),
        (lambda: odenet.ResNet(MLP(2), 2, weights="untied_"), "unknown depth weights 'untied_'; did you mean 'untied'"),
        (lambda: odenet.ResNet(MLP(2), 2, weights=7), "weights must be one of tied, untied.*got 7"),
        (lambda: odenet.ResNet(MLP(2), 2, weights=lambda F: F), "weights must be one of"),
        (lambda: odenet.ODEBlock(MLP(2), weights="untied"), "steps, and an adaptive solver has none"),
        (lambda: odenet.ResNet(lambda t, x: x, 2, weights="untied"), "use weights='tied' for a function"),
        (lambda: odenet.ResNet(PiecewiseConstant([MLP(2)]), 2, weights="untied"), "holds its own weights"),
        (lambda: odenet.ResNet(PiecewiseConstant([MLP(2)] * 2), 3), "steps=3 would step across.*multiple of 2 steps"),
    ],
)
def test_what_cannot_be_used_is_said(make, said):
    with pytest.raises(odenet.errors.InputError, match=said):
        make()
