"""Depth that changes during training: the same run with and without interruption, and the jump in loss at a switch."""

import csv

import pytest
import torch
from torch import nn

import odenet
from odenet.data import moons
from odenet.depth import bspline, piecewise_constant
from odenet.errors import InputError
from odenet.training import (
    Continuation,
    Settings,
    Switch,
    chain,
    constant,
    depth_doubling,
    fit,
    to_adaptive,
    tolerance_annealing,
)
from odenet.training.continuation import mean_loss


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


@pytest.fixture(scope="module")
def points():
    return moons(n=60, n_test=20)


def classifier(weights=None, **walk):
    torch.manual_seed(0)
    F = odenet.residual.MLP(2, width=4, norm="batch")
    walk = walk or {"solver": "euler", "steps": 2}
    return nn.Sequential(nn.Linear(2, 2), odenet.ODEBlock(F, weights=weights or piecewise_constant(2), **walk))


EVERYTHING = {
    "doubling": lambda: depth_doubling([1, 2]),
    "adaptive": lambda: to_adaptive(2, rtol=1e-2, atol=1e-2),
    "both": lambda: chain({"a": depth_doubling([1]), "b": to_adaptive(2), "c": tolerance_annealing([3], 0.5)}),
}


@pytest.mark.parametrize("continuation", EVERYTHING.values(), ids=EVERYTHING)
def test_an_interrupted_run_gives_the_same_numbers(points, tmp_path, continuation):
    settings = Settings(epochs=4, batch_size=20)
    whole = classifier()
    history = fit(whole, points, adam, constant, settings, tmp_path / "whole", continuation=continuation())
    for stop in (1, 2, 3):

        def interrupt(progress, stop=stop):
            if progress.record is not None and progress.epoch == stop:
                raise KeyboardInterrupt

        folder = tmp_path / f"stop{stop}"
        with pytest.raises(KeyboardInterrupt):
            fit(classifier(), points, adam, constant, settings, folder, interrupt, continuation())
        again = classifier()
        resumed = fit(again, points, adam, constant, settings, folder, continuation=continuation())
        for a, b in zip(history, resumed, strict=True):
            assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
        states = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in states)
    with open(tmp_path / "whole" / "history.csv") as file:
        jumps = [float(row["loss_jump"]) for row in csv.DictReader(file)]
    assert jumps == [record["loss_jump"] for record in history] and jumps[0] == 0.0


def test_the_jump_is_the_change_of_the_training_loss_at_the_switch(points):
    settings = Settings(epochs=2, batch_size=60)
    model, twin = classifier(), classifier()
    history = fit(model, points, adam, constant, settings, continuation=to_adaptive(1, rtol=1e-6, atol=1e-6))
    fit(twin, points, adam, constant, Settings(epochs=1, batch_size=60))
    before = mean_loss(twin, points.train_x, points.train_y)
    twin[1] = twin[1].continuous(rtol=1e-6, atol=1e-6)
    after = mean_loss(twin, points.train_x, points.train_y)
    assert abs(after - before) > 1e-5
    assert history[1]["loss_jump"] == pytest.approx(after - before, rel=1e-4)
    assert history[1]["memory_bytes"] != history[0]["memory_bytes"]  # measured anew
    assert isinstance(model[1], odenet.ODEBlock) and model[1].scheme.adaptive and model[1].scheme.rtol == 1e-6


def test_a_switch_that_keeps_the_function_has_no_jump_and_training_goes_on(points):
    settings = Settings(epochs=6, batch_size=20)
    model = classifier(bspline(1, 2), solver="rk4", steps=4)
    history = fit(model, points, adam, constant, settings, continuation=depth_doubling([2]))
    assert abs(history[2]["loss_jump"]) < 1e-6 and model[1].weights.pieces == 4
    assert history[5]["train_loss"] < history[2]["train_loss"]


def test_weights_that_blocks_share_stay_shared_and_every_parameter_trains(points):
    F = odenet.residual.MLP(2, width=4)
    first = odenet.ODEBlock(F, "euler", steps=2, weights="untied")
    model = nn.Sequential(first, first.discretize(4), nn.Linear(2, 2))
    switches = Continuation([Switch(1, lambda block: block.refine(2))], "twice")
    before = {id(p) for p in model.parameters()}
    fit(model, points, adam, constant, Settings(epochs=2, batch_size=60), continuation=switches)
    assert model[0].weights is model[1].weights and model[0].weights.pieces == 4
    assert len({id(p) for p in model.parameters()} - before) == len(list(model[0].parameters()))


@pytest.mark.parametrize(
    ("make", "model", "said"),
    [
        (lambda: depth_doubling([0]), classifier, "after 1 epoch or more, got 0"),
        (lambda: depth_doubling([2]), classifier, "after 2 epochs, and the run has 2"),
        (lambda: tolerance_annealing([1]), classifier, "has no tolerances to anneal"),
        (lambda: tolerance_annealing([1], 0.0), classifier, "must be positive, got 0.0"),
        (lambda: depth_doubling([1]), lambda: nn.Linear(2, 2), "changes blocks, and the model Linear has none"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(points, make, model, said):
    with pytest.raises(InputError, match=said):
        fit(model(), points, adam, constant, Settings(epochs=2, batch_size=60), continuation=make())
