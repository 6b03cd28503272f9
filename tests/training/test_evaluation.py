"""`evaluate` against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

import odenet
from odenet.errors import InputError
from odenet.training import evaluate


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(70, 5, generator=generator), torch.randint(3, (70,), generator=generator)


def test_accuracy_and_loss(samples):
    x, y = samples
    model = nn.Linear(5, 3)
    result = evaluate(model, x, y, batch_size=16, prepare=lambda batch: 2 * batch)
    logits = 2 * x.numpy().astype(float) @ model.weight.detach().numpy().T + model.bias.detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert result.loss == pytest.approx(-log_p[np.arange(70), y.numpy()].mean(), rel=1e-5)
    assert np.array_equal(result.predictions.numpy(), logits.argmax(1))
    assert result.accuracy == pytest.approx((logits.argmax(1) == y.numpy()).mean())
    assert result.seconds > 0
    assert result.nfe == 0


def test_function_evaluations_are_summed_over_the_blocks(samples):
    F, G = odenet.residual.MLP(5), odenet.residual.MLP(5)
    model = nn.Sequential(odenet.ResNet(F, steps=4), odenet.ODEBlock(G, solver="rk4", steps=3), nn.Linear(5, 3))
    assert evaluate(model, *samples, batch_size=32).nfe == 4 + 3 * 4


def test_the_model_is_left_as_it_was(samples):
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 3)).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = evaluate(model, *samples), evaluate(model, *samples)
    assert first.loss == again.loss
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "n", "batch_size", "message"),
    [
        (nn.Linear(5, 3), 0, 8, "one label for each of at least one sample"),
        (nn.Linear(5, 3), 4, 0, "batch_size must be a positive integer, got 0"),
        (nn.Unflatten(1, (1, 5)), 4, 8, r"logits of shape \(batch, classes\), got \(4, 1, 5\) for a batch of 4"),
    ],
)
def test_bad_arguments(samples, model, n, batch_size, message):
    x, y = samples
    with pytest.raises(InputError, match=message):
        evaluate(model, x[:n], y[:n], batch_size=batch_size)
