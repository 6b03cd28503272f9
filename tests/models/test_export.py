"""A distilled network outside of Python: torch.export and ONNX give the outputs that it gives."""

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import bspline
from odenet.models import distill, unrolled


def small_network():
    torch.manual_seed(0)
    F = odenet.residual.Conv(4, time="concat", norm="batch")
    block = odenet.ODEBlock(F, rtol=1e-2, atol=1e-2, weights=bspline(2, 2))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), block, nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    x = torch.randn(5, 1, 6, 6)
    return distill(model, x, 1e-2)[0], x


def test_torch_export_gives_the_same_outputs_for_any_batch():
    model, x = small_network()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(unrolled(model), (x,), dynamic_shapes=({0: batch},))
    for inputs in (x, torch.randn(9, 1, 6, 6)):
        torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [False, True], ids=["unused", "used"])
def test_a_network_goes_on_as_before_once_it_was_traced(before):
    weights = bspline(2, 2)(odenet.residual.MLP(3, width=4, time="concat"))
    fresh = copy.deepcopy(weights)
    network, x = odenet.ResNet(weights, 2, solver="midpoint"), torch.randn(5, 3)
    if before:
        network(x)
    torch.export.export(unrolled(network), (x,))
    for dtype in (torch.float32, torch.float64):
        expected = odenet.ResNet(copy.deepcopy(fresh).to(dtype), 2, solver="midpoint")(x.to(dtype))
        y = network.to(dtype)(x.to(dtype))
        torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def opened_resnet():
    """A chain of torchvision's blocks as layers of depth, each walked twice."""
    BasicBlock = pytest.importorskip("torchvision").models.resnet.BasicBlock
    block = odenet.models.from_blocks([BasicBlock(4, 4), BasicBlock(4, 4)]).discretize(4)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(4 * 36, 2)).eval(), torch.randn(3, 4, 6, 6)


@pytest.mark.parametrize("make", [pytest.param(small_network, marks=pytest.mark.slow), opened_resnet])
def test_onnx_gives_the_same_outputs(tmp_path, make):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    model, x = make()
    path = str(tmp_path / "network.onnx")
    batch = torch.export.Dim("batch", min=2)
    torch.onnx.export(unrolled(model), (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    onnx.checker.check_model(path)
    (given,) = onnx.load(path).graph.input
    evaluator = reference.ReferenceEvaluator(path)
    for inputs in (x, torch.randn(7, *x.shape[1:])):
        (y,) = evaluator.run(None, {given.name: inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(inputs).detach(), rtol=1e-4, atol=1e-5)
