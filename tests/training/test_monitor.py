"""A monitor measures what its formulas say, adapts steps where a finer solver disagrees, and resumes."""

import csv
import itertools

import pytest
import torch
from torch import nn

import odenet
from odenet.data import moons, nested_spheres
from odenet.errors import InputError
from odenet.training import OdeMonitor, Settings, chain, constant, depth_doubling, fit, to_adaptive


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def classifier(steps=1, solver="euler", **walk):
    torch.manual_seed(0)
    F = odenet.residual.MLP(2, width=16, time="none")
    walk = {"steps": steps} | walk if "rtol" not in walk else walk
    return nn.Sequential(odenet.ODEBlock(F, solver, gradient="autograd", **walk), nn.Linear(2, 2))


@pytest.fixture(scope="module")
def spheres():
    return nested_spheres(n=256, n_test=20)


def trained(data, model, epochs=8, **monitor):
    return fit(model, data, adam, constant, Settings(epochs=epochs, batch_size=16), monitor=OdeMonitor(**monitor))


def test_a_coarse_euler_network_is_driven_to_more_steps_and_a_fine_one_is_not(spheres):
    coarse, fine = classifier(1), classifier(32)
    history = trained(spheres, coarse, epochs=10)
    steps = [record["monitor"]["block0/steps"] for record in history]
    assert steps[0] == 1 and max(steps) >= 4 and coarse[0].scheme.steps == steps[-1]
    for record, after in itertools.pairwise(history):  # the rule, in the numbers that it leaves
        measured, then = record["monitor"], after["monitor"]
        if abs(measured["score"] - measured["score_finer"]) > 0.02:
            assert then["block0/steps"] == 2 * measured["block0/steps"]
        else:
            assert then["block0/steps"] in (measured["block0/steps"], max(1, int(measured["block0/steps"] / 1.1)))
    fell = [record["monitor"]["block0/steps"] for record in trained(spheres, fine, epochs=4)]
    assert fell == [32, 29, 26, 23]
    assert history[-1]["nfe_forward"] == steps[-1]  # and it is these that training takes


def test_tolerances_follow_too(spheres):
    loose = classifier(solver="dopri5", rtol=0.05, atol=0.02)
    rtol = [r["monitor"]["block0/rtol"] for r in trained(spheres, loose, epochs=3, threshold=0.0)]
    factors = {round(b / a, 6) for a, b in itertools.pairwise(rtol)}
    assert factors <= {0.5, 1.0, 1.1} and rtol[1] != 0.05
    assert loose[0].scheme.atol == pytest.approx(0.4 * loose[0].scheme.rtol)


def test_the_measurements_are_those_of_their_formulas(spheres):
    model = classifier(4)
    measured = trained(spheres, model, epochs=1, samples=50)[0]["monitor"]
    block, x, y = model.eval()[0], spheres.train_x[:50], spheres.train_y[:50]
    with torch.no_grad():
        coarse, fine = block(x), block.discretize(8)(x)
        path = block.trajectory(x)
        F = torch.stack([block.F(torch.tensor(n / 4), path[n]) for n in range(4)])
        finer = model[1](block.discretize(16)(x)).argmax(1)
    defect = (coarse - fine).norm(dim=1).sum() / fine.norm(dim=1).sum()
    assert measured["block0/defect"] == pytest.approx(float(defect), rel=1e-4)
    assert measured["block0/F"] == pytest.approx(float(F.norm(dim=2).mean()), rel=1e-5)
    assert measured["block0/nfe"] == 4
    assert measured["score"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert measured["score_finer"] == pytest.approx(float((finer == y).double().mean()))


def test_measuring_alone_changes_nothing(spheres):
    alone, watched = classifier(1), classifier(1)
    settings = Settings(epochs=3, batch_size=16)
    first = fit(alone, spheres, adam, constant, settings)
    second = fit(watched, spheres, adam, constant, settings, monitor=OdeMonitor(every=2, adapt=False))
    assert ["defect" in str(record["monitor"]) for record in second] == [False, True, True]  # the last one always
    for a, b in zip(first, second, strict=True):
        assert {**a, "seconds": 0} == {k: v for k, v in {**b, "seconds": 0}.items() if k != "monitor"}
    assert watched[0].scheme == alone[0].scheme


def test_layers_that_steps_must_fit_stay_fitted(spheres):
    F = odenet.residual.MLP(2, width=4)
    model = nn.Sequential(odenet.ResNet(F, 3, weights="untied"), nn.Linear(2, 2))
    steps = [r["monitor"]["block0/steps"] for r in trained(spheres, model, epochs=4, threshold=0.0, max_steps=8)]
    assert set(steps) <= {3, 6}


@pytest.mark.parametrize(("backend", "solver"), [("torchdiffeq", "dopri5"), ("scipy", "LSODA")])
def test_adaptive_methods_of_other_backends_are_measured_by_the_native_one(backend, solver, spheres):
    model = classifier(solver=solver, rtol=1e-3, atol=1e-3, backend=backend)
    x = spheres.train_x[:40]
    measured = OdeMonitor(adapt=False).after_epoch(model, x, 1, 1, lambda model: 0.5)
    twin = odenet.ODEBlock(model[0].F, "dopri5", rtol=1e-3, atol=1e-3)
    ts = twin.depths(x)
    with torch.no_grad():
        states = twin.trajectory(x, ts)
        halves = sorted({*ts, *((a + b) / 2 for a, b in itertools.pairwise(ts))})
        fine = odenet.ODEBlock(model[0].F, "dopri5", grid=halves)(x)
        F = torch.stack([twin.F(torch.tensor(t), state) for t, state in zip(ts[:-1], states, strict=False)])
        model[0](x)
    assert measured["block0/native"] == 1 and measured["block0/nfe"] == model[0].stats.nfe
    defect = (states[-1] - fine).norm(dim=1).sum() / fine.norm(dim=1).sum()
    assert measured["block0/defect"] == pytest.approx(float(defect), rel=0.05, abs=1e-7)
    assert measured["block0/F"] == pytest.approx(float(F.norm(dim=2).mean()), rel=1e-5)


def test_an_interrupted_run_goes_on_as_the_uninterrupted_one(tmp_path):
    points = moons(n=120, n_test=20, noise=0.3)
    settings = Settings(epochs=5, batch_size=20)
    changes = lambda: chain({"a": depth_doubling([2]), "b": to_adaptive(4, rtol=1e-2)})  # noqa: E731
    watch = lambda: OdeMonitor(threshold=0.0, samples=100)  # noqa: E731
    untied = lambda: classifier(steps=2, weights="untied")  # noqa: E731
    whole = untied()
    history = fit(whole, points, adam, constant, settings, tmp_path / "whole", None, changes(), watch())
    assert {record["monitor"].get("block0/steps") for record in history} >= {2.0, None}
    for stop in (1, 3, 4):

        def interrupt(progress, stop=stop):
            if progress.record is not None and progress.epoch == stop:
                raise KeyboardInterrupt

        folder = tmp_path / f"stop{stop}"
        with pytest.raises(KeyboardInterrupt):
            fit(untied(), points, adam, constant, settings, folder, interrupt, changes(), watch())
        again = untied()
        resumed = fit(again, points, adam, constant, settings, folder, None, changes(), watch())
        assert [{**r, "seconds": 0} for r in resumed] == [{**r, "seconds": 0} for r in history]
        assert again[0].scheme == whole[0].scheme
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    done = untied()
    assert fit(done, points, adam, constant, settings, tmp_path / "whole", None, changes(), watch()) == history
    assert done[0].scheme == whole[0].scheme  # a finished run too comes back with the steps it ended with
    with open(tmp_path / "whole" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["monitor/score"]) for row in rows] == [record["monitor"]["score"] for record in history]
    assert rows[-1]["monitor/block0/steps"] == "" and float(rows[0]["monitor/block0/steps"]) == 2
    with open(tmp_path / "whole" / "logs" / "csv" / "metrics.csv") as file:
        logged = list(csv.DictReader(file))
    assert float(logged[2]["monitor/block0/defect"]) == history[2]["monitor"]["block0/defect"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OdeMonitor(every=0), "every of the monitor must be an integer of 1 or more, got 0"),
        (lambda: OdeMonitor(finer=1), "finer of the monitor must be an integer of 2 or more, got 1"),
        (lambda: OdeMonitor(threshold=1.5), r"difference of shares in \[0, 1\), got 1.5"),
        (lambda: OdeMonitor().check(nn.Linear(2, 2)), "the model Linear has none"),
    ],
)
def test_what_cannot_be_done_is_said(make, said):
    with pytest.raises(InputError, match=said):
        make()
