"""Autocast and memory formats in captured walks."""

import warnings

import pytest
import torch

import odenet
from tests.compiled.captured.smooth import Image


@pytest.mark.parametrize("scheme", [{"solver": "rk4", "steps": 3}, {"rtol": 1e-3, "atol": 1e-3}], ids=str)
@pytest.mark.parametrize("compile", [True, False], ids=["captured", "eager"])
def test_the_memory_format_of_images_is_kept(scheme, compile, captures):
    F = Image().to(memory_format=torch.channels_last)
    x = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    got = odenet.solve(F, x, ts=[0.5, 1.0] if "steps" not in scheme else None, compile=compile, **scheme)
    for state in got.states:
        assert state.is_contiguous(memory_format=torch.channels_last)
    got.last.square().sum().backward()
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)
    assert bool(captures) == compile
    with torch.no_grad():
        y = odenet.solve(F, x, compile=False, **scheme).last
    torch.testing.assert_close(got.last, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [{"solver": "rk4", "steps": 4}, {"rtol": 1e-2, "atol": 1e-2}], ids=str)
def test_under_autocast_f_runs_in_low_precision_and_the_rest_does_not(scheme, captures):
    """Forward and, after the context has ended, in the gradient too."""
    F, x = odenet.residual.MLP(6, width=32, norm="none"), torch.randn(16, 6)
    found = {}
    for name, enabled, compile in (("captured", True, True), ("eager", True, False), ("exact", False, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), warnings.catch_warnings():
            warnings.simplefilter("error")
            x0 = x.clone().requires_grad_()
            last = odenet.solve(F, x0, compile=compile, gradient="checkpoint", **scheme).last
        assert last.dtype == torch.float32
        found[name] = last, *torch.autograd.grad(last.square().sum(), [x0, *F.parameters()])
    assert captures and captures[0].compilations == 2
    found = {name: [part.detach() for part in parts] for name, parts in found.items()}
    for got, expected, exact in zip(found["captured"], found["eager"], found["exact"], strict=True):
        size = float(exact.abs().max())
        assert got.dtype == torch.float32 and float((got - expected).abs().max()) < 1e-2 * size
        assert float((got - exact).abs().max()) > 1e-4 * size


def test_a_solve_without_gradient_under_autocast_leaves_no_weights_without_gradient(x):
    F = odenet.residual.MLP(3, width=8)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            y = odenet.solve(F, x.float(), solver="euler", steps=3, compile=True).last
        F(torch.zeros(()), y).float().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in F.parameters())
