"""`fit` against a hand-written loop, and what a run reports and leaves behind."""

import csv
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import odenet
from odenet.data import DataSet, crop_and_flip, moons
from odenet.errors import InputError, RunError
from odenet.training import EpochRecord, Settings, constant, cosine, evaluate, fit, multistep, one_cycle, report

SGD = partial(torch.optim.SGD, lr=0.3, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture(scope="module")
def points() -> DataSet:
    return moons(n=90, n_test=40)


def images() -> DataSet:
    """Random uint8 images with augmentation: everything in a run that is random, and running statistics."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (50, 3, 6, 6), generator=generator, dtype=torch.uint8)
    y = torch.randint(2, (50,), generator=generator)
    return DataSet("noise", x[:40], y[:40], x[40:], y[40:], ("a", "b"), crop_and_flip, mean=(0.5,) * 3, std=(0.3,) * 3)


def convnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    block = odenet.ODEBlock(odenet.residual.Conv(4), solver="dopri5", rtol=1e-2, atol=1e-2)
    return nn.Sequential(conv, nn.BatchNorm2d(4), block, nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 2))


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(odenet.ResNet(odenet.residual.MLP(2), steps=5), nn.Linear(2, 2))


def without_time(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_a_run_is_the_textbook_loop(points, grad_clip):
    model = nn.Linear(2, 2)
    weight, bias = (p.detach().double().clone().requires_grad_() for p in model.parameters())
    settings = Settings(epochs=8, batch_size=90, grad_clip=grad_clip)
    history = fit(model, points, partial(torch.optim.SGD, lr=0.5), multistep, settings)
    x, y = points.train_x.double(), points.train_y
    for epoch, record in enumerate(history):
        loss = cross_entropy(x @ weight.T + bias, y)
        gradients = torch.autograd.grad(loss, (weight, bias))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        shrink = min(1.0, grad_clip / norm) if grad_clip else 1.0
        lr = 0.5 * 0.1 ** sum(epoch >= start for start in (4, 6))
        with torch.no_grad():
            for parameter, gradient in zip((weight, bias), gradients, strict=True):
                parameter -= lr * shrink * gradient
        assert record["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["lr"] == pytest.approx(lr)
        assert record["epoch"] == epoch + 1
    torch.testing.assert_close(model.weight.double(), weight, rtol=1e-4, atol=1e-6)
    result = evaluate(model, points.test_x, points.test_y)
    assert history[-1]["test_loss"] == pytest.approx(result.loss)
    assert history[-1]["test_accuracy"] == pytest.approx(result.accuracy)


def test_every_epoch_sees_every_sample_once_in_another_order(points):
    seen: list[torch.Tensor] = []

    class Recorder(nn.Linear):
        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                seen.append(x.detach().clone())
            return super().forward(x)

    fit(Recorder(2, 2), points, SGD, constant, Settings(epochs=2, batch_size=32))
    seen.pop(1)  # the step in which the memory is measured
    assert [len(x) for x in seen] == [32, 32, 26] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == sorted(points.train_x.tolist())


def test_it_learns(points):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), odenet.ODEBlock(odenet.residual.MLP(16), steps=4, solver="midpoint"))
    model.append(nn.Linear(16, 2))
    history = fit(model, points, ADAM, one_cycle, Settings(epochs=30, batch_size=30))
    assert history[-1]["test_accuracy"] > 0.95


def test_function_evaluations_and_steps_are_those_of_the_blocks(points):
    F, G = odenet.residual.MLP(2), odenet.residual.MLP(2)
    resnet = odenet.ResNet(F, steps=5)
    ode = odenet.ODEBlock(G, solver="rk4", steps=3, gradient="checkpoint")
    (record,) = fit(nn.Sequential(resnet, ode, nn.Linear(2, 2)), points, SGD, constant, Settings(epochs=1))
    assert record["nfe_forward"] == 5 + 12
    assert record["nfe_backward"] == 12
    assert record["accepted"] == 5 + 3
    assert record["rejected"] == 0


def test_memory_grows_with_the_steps_that_are_kept(points):
    F = odenet.residual.MLP(2)
    memory = []
    for steps in (8, 16):
        model = nn.Sequential(odenet.ResNet(F, steps=steps), nn.Linear(2, 2))
        history = fit(model, points, SGD, constant, Settings(epochs=2, batch_size=30))
        memory.append(history[0]["memory_bytes"])
        assert history[1]["memory_bytes"] == history[0]["memory_bytes"]
    assert 1.7 < memory[1] / memory[0] < 2.1


@pytest.mark.parametrize("make", [convnet, classifier])
def test_the_same_seed_gives_the_same_numbers(points, make):
    data = images() if make is convnet else points
    runs = []
    for seed in (1, 1, 2):
        model = make()
        history = fit(model, data, ADAM, one_cycle, Settings(epochs=2, batch_size=16, seed=seed))
        runs.append((model, without_time(history)))
        torch.manual_seed(seed + 99)  # whatever happens between two runs
    assert runs[0][1] == runs[1][1]
    assert same_weights(runs[0][0], runs[1][0])
    assert runs[0][1] != runs[2][1]


class InterruptedRunError(Exception):
    pass


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [(one_cycle, ADAM), (partial(cosine, warmup=0.3), SGD), (multistep, SGD), (constant, ADAM)],
)
@pytest.mark.parametrize("where", ["after an epoch", "within an epoch"])
def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one(tmp_path, monkeypatch, schedule, optimizer, where):
    # Labels are noise: without the clip weights grow until the true gradient, 1e107 in float64, is NaN in float32.
    settings = Settings(epochs=4, batch_size=16, grad_clip=1.0)
    whole = convnet()
    expected = fit(whole, images(), optimizer, schedule, settings)

    monkeypatch.setattr(report, "SECONDS_BETWEEN_CALLS", 0)

    def interrupt(state):
        if state.epoch == 2 and state.record is not None and where == "after an epoch":
            raise InterruptedRunError
        if state.epoch == 3 and state.step % 3 == 2 and where == "within an epoch":
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        fit(convnet(), images(), optimizer, schedule, settings, tmp_path, interrupt)
    resumed = convnet(seed=7)
    epochs = []
    history = fit(
        resumed,
        images(),
        optimizer,
        schedule,
        settings,
        tmp_path,
        lambda state: epochs.append((state.epoch, state.step)),
    )
    assert without_time(history) == without_time(expected)
    assert same_weights(resumed, whole)
    assert epochs[0] == (3, 7)

    again = convnet(seed=8)
    calls = []
    assert fit(again, images(), optimizer, schedule, settings, tmp_path, calls.append) == history
    assert same_weights(again, whole)
    assert calls == []


def test_with_rare_checkpoints_a_run_continues_from_the_latest(tmp_path):
    settings = Settings(epochs=5, batch_size=16, checkpoint_every=2)
    expected = fit(convnet(), images(), ADAM, one_cycle, settings)

    def interrupt(state):
        if state.record is not None and state.epoch == 3:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        fit(convnet(), images(), ADAM, one_cycle, settings, tmp_path, interrupt)
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 2
    assert without_time(fit(convnet(), images(), ADAM, one_cycle, settings, tmp_path)) == without_time(expected)
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 5


def test_files_of_a_run(points, tmp_path):
    folder = tmp_path / "new" / "run"
    settings = Settings(epochs=3, batch_size=30)

    def interrupt(state):
        if state.record is not None and state.epoch == 2:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        fit(classifier(), points, SGD, constant, settings, folder, interrupt)
    history = fit(classifier(), points, SGD, constant, settings, folder)
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [name for name in EpochRecord.__annotations__ if name != "monitor"]
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history
    with (folder / "logs" / "csv" / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in logged] == [record["train_loss"] for record in history]
    assert [float(row["nfe_forward"]) for row in logged] == [5.0] * 3

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs" / "tensorboard")).Reload()
    for name in ("train_loss", "nfe_forward", "test_accuracy"):
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        assert scalars == [(r["epoch"], pytest.approx(r[name])) for r in history]
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_without_a_folder_nothing_is_written(points, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(classifier(), points, SGD, constant, Settings(epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_progress(points, monkeypatch):
    monkeypatch.setattr(report, "SECONDS_BETWEEN_CALLS", 0)
    states = []
    history = fit(classifier(), points, SGD, constant, Settings(epochs=2, batch_size=30), progress=states.append)
    assert [state.step for state in states] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [state.record for state in states] == [None] * 3 + [history[0]] + [None] * 3 + [history[1]]
    assert all(state.steps == 6 and state.epochs == 2 and state.nfe == 5 for state in states)
    assert states[0].eta_seconds > states[-1].eta_seconds == 0
    monkeypatch.setattr(report, "SECONDS_BETWEEN_CALLS", 60)
    states.clear()
    fit(classifier(), points, SGD, constant, Settings(epochs=2, batch_size=30), progress=states.append)
    assert [state.step for state in states] == [3, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": Settings(epochs=2, batch_size=45)}, "with batch_size 30, and this run asks for 45"),
        ({"settings": Settings(epochs=3, batch_size=30)}, "with epochs 2, and this run asks for 3"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)}, "with optimizer SGD .*this run asks for"),
        ({"schedule": one_cycle}, "this run asks for"),
        ({"data": moons(n=90, n_test=41)}, "with data moons"),
        ({"model": nn.Linear(2, 2)}, "does not fit this model .*Missing key"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(points, tmp_path, change, message):
    run = {
        "model": classifier(),
        "data": points,
        "optimizer": SGD,
        "schedule": constant,
        "settings": Settings(epochs=2, batch_size=30),
        "folder": tmp_path,
    }
    fit(**run)
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    with pytest.raises(RunError, match=f"checkpoint {path} .*{message}") as caught:
        fit(**{**run, **change})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_damaged_checkpoint_is_named(points, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match=f"checkpoint {path} is corrupt"):
        fit(classifier(), points, SGD, constant, Settings(epochs=1), tmp_path)
    torch.save({"model": {}}, path)
    with pytest.raises(RunError, match=f"checkpoint {path} has no history, optimizer"):
        fit(classifier(), points, SGD, constant, Settings(epochs=1), tmp_path)


def test_a_loss_that_explodes_stops_the_run(points):
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))
    optimizer = partial(torch.optim.SGD, lr=1e30)
    message = r"the training loss became (nan|inf) in epoch 1, step 2 \(learning rate 1e\+30\); lower the"
    with pytest.raises(RunError, match=message):
        fit(model, points, optimizer, constant, Settings(epochs=2, batch_size=30))


def test_a_model_without_parameters_is_refused(points):
    with pytest.raises(InputError, match="the model Identity has no parameters"):
        fit(nn.Identity(), points, SGD, constant, Settings(epochs=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a positive integer, got 2.5"),
        ({"threads": 0}, "threads must be a positive integer or None, got 0"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"grad_clip": 0.0}, "grad_clip must be positive and finite, or None, got 0.0"),
        ({"strategy": "fsdp"}, 'strategy must be "auto" or "ddp", got \'fsdp\''),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(InputError, match=message):
        Settings(**arguments)


@pytest.mark.parametrize("arguments", [{"precision": "7"}, {"accelerator": "abacus"}, {"devices": 0}])
def test_an_engine_that_cannot_be_had(points, arguments):
    with pytest.raises(InputError, match=r"cannot train with .*works everywhere"):
        fit(classifier(), points, SGD, constant, Settings(epochs=1, **arguments))


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)])
def test_precisions(points, precision, dtype):
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    history = fit(model, points, ADAM, one_cycle, Settings(epochs=3, batch_size=30, precision=precision))
    assert model[0].weight.dtype == dtype
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert math.isfinite(history[-1]["test_loss"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_cuda(tmp_path, precision):
    settings = Settings(epochs=3, batch_size=16, accelerator="gpu", precision=precision, grad_clip=1.0)

    def interrupt(state):
        if state.record is not None and state.epoch == 2:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        fit(convnet(), images(), ADAM, one_cycle, settings, tmp_path, interrupt)
    history = fit(convnet(), images(), ADAM, one_cycle, settings, tmp_path)
    assert len(history) == 3
    assert all(record["memory_bytes"] > 0 for record in history)
    assert math.isfinite(history[-1]["train_loss"])
