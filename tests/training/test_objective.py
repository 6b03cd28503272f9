"""A regression is trained, evaluated and counted by the squared error, classes by the cross-entropy."""

from functools import partial

import pytest
import torch
from torch import nn

import odenet
from odenet.data import flip, moons
from odenet.errors import InputError
from odenet.models import VectorFlow
from odenet.training import Classification, Regression, Settings, constant, evaluate, fit, objective_of


def test_the_data_says_what_is_asked():
    assert isinstance(objective_of(moons(n=4, n_test=4)), Classification)
    asked = objective_of(flip(n=4, n_test=4, tolerance=0.25))
    assert isinstance(asked, Regression) and asked.tolerance == 0.25


def test_numbers_are_right_within_the_tolerance():
    outputs, y = torch.tensor([[0.0, 1.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.1], [0.0, 0.0]])
    asked = Regression(0.2)
    assert asked.loss(outputs, y).item() == pytest.approx((0.01 + 9 + 16) / 4)
    assert asked.same(asked.predict(outputs), y).tolist() == [True, False]
    with pytest.raises(InputError, match=r"shape of the targets, \(2, 1\), got \(2, 2\)"):
        asked.loss(outputs, y[:, :1])


def test_a_network_learns_to_flip_the_line_and_a_flow_keeps_its_order():
    data = flip(n=200, n_test=100)
    adam, settings = partial(torch.optim.Adam, lr=0.02), Settings(epochs=40, batch_size=50)
    residual = partial(odenet.residual.MLP, width=16)
    found = {}
    layer, flow = partial(odenet.ResNet, steps=1), partial(odenet.ODEBlock, solver="rk4", steps=8)
    for name, stage in {"layer": layer, "flow": flow}.items():
        torch.manual_seed(0)
        model = VectorFlow((1,), 1, residual, stage)
        record = fit(model, data, adam, constant, settings)[-1]
        result = evaluate(model, data.test_x, data.test_y, objective=objective_of(data))
        error = nn.functional.mse_loss(model(data.test_x), data.test_y).item()
        assert result.loss == pytest.approx(error, rel=1e-5) and record["test_loss"] == pytest.approx(error, rel=1e-5)
        within = (result.predictions - data.test_y).abs() <= 0.1
        assert result.predictions.shape == (100, 1) and result.accuracy == pytest.approx(float(within.double().mean()))
        found[name] = error
    assert found["layer"] < 0.01  # one Euler step may pass the others; the flow may not, whose best is the constant
    assert found["flow"] > 0.9 * float(data.test_y.var())
