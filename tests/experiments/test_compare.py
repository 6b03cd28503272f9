"""The main job: what it writes, that it resumes, that its numbers are those of its config."""

import csv
import json
import shutil

import pytest
import torch

from odenet.artifacts import load_checkpoint
from odenet.data import moons
from odenet.experiments import contender as contender_module
from tests.experiments.conftest import FEW, SMALL

NAMES = ["resnet", "odenet", "identity", "resnet_matched"]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def without_times(results):
    """The part of the results that the config and the seed determine."""
    kept = []
    for one in results["contenders"]:
        one = {k: v for k, v in one.items() if k not in ("seconds_per_epoch", "inference_ms")}
        one["history"] = [{k: v for k, v in r.items() if k != "seconds"} for r in one["history"]]
        kept.append(one)
    return kept


def test_everything_is_written(comparison):
    results = results_of(comparison)
    assert [c["name"] for c in results["contenders"]] == NAMES
    names = ("report.html", "report.md", "results.csv", "config.yaml", "environment.json", "swap.csv")
    assert all((comparison / name).stat().st_size > 0 for name in names)
    for name in NAMES:
        assert "model" in load_checkpoint(comparison / "contenders" / name / "checkpoint.pt")
    rows = list(csv.DictReader((comparison / "results.csv").open()))
    assert [float(r["test_accuracy"]) for r in rows] == [c["test_accuracy"] for c in results["contenders"]]
    environment = json.loads((comparison / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])


def test_accuracy_and_parameters_are_those_of_the_checkpoint(comparison, odenet):
    done = odenet("evaluate", f"run={comparison}")
    assert done.status == 0
    rows = {r["network"]: r for r in json.loads((comparison / "evaluate-as-trained.json").read_text())}
    for one in results_of(comparison)["contenders"]:
        assert rows[one["name"]]["accuracy"] == one["test_accuracy"]
        state = load_checkpoint(comparison / "contenders" / one["name"] / "checkpoint.pt")["model"]
        assert sum(v.numel() for v in state.values()) == one["parameters"]


def test_contenders_differ_in_the_walk_and_in_nothing_else(comparison):
    by_name = {c["name"]: c for c in results_of(comparison)["contenders"]}
    assert by_name["resnet"]["solver"]["solver"] == "euler"
    assert by_name["resnet"]["solver"]["steps"] == 8
    assert by_name["resnet"]["weights"] == "untied"
    assert (by_name["odenet"]["solver"]["solver"], by_name["odenet"]["gradient"]) == ("dopri5", "checkpoint")
    assert by_name["identity"]["solver"] is None
    F = by_name["odenet"]["parameters"] - by_name["identity"]["parameters"]
    assert by_name["resnet"]["parameters"] == by_name["identity"]["parameters"] + 8 * F
    matched = by_name["resnet_matched"]["parameters"] / by_name["odenet"]["parameters"]
    assert 0.7 < matched < 1.3  # F of width 8 in two dimensions: one width more or less is a quarter


def test_nfe_is_counted(comparison):
    by_name = {c["name"]: c for c in results_of(comparison)["contenders"]}
    assert (by_name["resnet"]["nfe_forward"], by_name["resnet"]["nfe_backward"]) == (8, 0)
    assert by_name["identity"]["nfe_forward"] == 0
    ode = by_name["odenet"]
    assert ode["nfe_forward"] >= 8
    assert 6 <= ode["nfe_backward"] <= ode["nfe_forward"]


def test_swap_matrix_marks_the_training_solver_where_nothing_flips(comparison):
    by_name = {c["name"]: c for c in results_of(comparison)["contenders"]}
    for name, label in (("resnet", "Euler 8"), ("odenet", "dopri5 1e-2")):
        cells = {cell["label"]: cell for cell in by_name[name]["swap"]}
        assert list(cells) == ["Euler 4", "Euler 8", "dopri5 1e-2"]
        assert [c["label"] for c in cells.values() if c["trained"]] == [label]
        assert cells[label]["accuracy"] == by_name[name]["test_accuracy"]
        assert cells[label]["flips"] == 0
    untied = by_name["resnet"]["swap"][0]
    assert (untied["nfe"], untied["note"]) == (4, "every 2nd layer")
    assert by_name["identity"]["swap"] == []


def test_hidden_states_end_where_the_head_starts(comparison):
    hidden = contender_module.load_hidden(comparison / "contenders" / "odenet" / "hidden.npz")
    assert hidden["curves"].shape[1:] == hidden["dots"].shape[1:] == (20, 2)
    assert abs(hidden["curves"][-1] - hidden["dots"][-1]).max() < 1e-5
    assert abs(hidden["curves"][0] - hidden["dots"][0]).max() < 1e-12
    assert sorted(set(hidden["labels"].tolist())) == [0, 1]
    resnet = contender_module.load_hidden(comparison / "contenders" / "resnet" / "hidden.npz")
    assert resnet["curves"] is None
    assert resnet["dots"].shape == (9, 20, 2)
    assert sum(hidden["explained"]) == pytest.approx(1)  # the state is the plane itself


def test_a_finished_run_is_shown_and_not_repeated(comparison, odenet, monkeypatch):
    before = (comparison / "results.json").read_bytes()
    monkeypatch.setattr(contender_module, "fit", None)  # whoever trains now fails
    done = odenet("compare", *SMALL, *FEW, f"folder={comparison}")
    assert done.status == 0
    assert done.out.count("already done") == len(NAMES)
    assert results_of(comparison)["contenders"] == json.loads(before)["contenders"]


def test_the_same_config_and_seed_give_the_same_numbers_even_if_interrupted(comparison, odenet, monkeypatch):
    fit, started = contender_module.fit, []

    def killed(model, *rest):  # of fit's arguments the last three are progress, continuation and monitor
        started.append(model)
        if len(started) == 2:  # the second contender dies after its first epoch
            *most, tell, continuation, monitor = rest

            def stop(progress):
                if progress.record is not None:
                    raise KeyboardInterrupt
                tell(progress)

            return fit(model, *most, stop, continuation, monitor)
        return fit(model, *rest)

    monkeypatch.setattr(contender_module, "fit", killed)
    words = ("compare", *SMALL, *FEW, "folder=again")
    assert odenet(*words).status == 130
    assert (odenet.folder / "again/contenders/resnet/result.json").exists()
    assert not (odenet.folder / "again/contenders/odenet/result.json").exists()
    assert (odenet.folder / "again/contenders/odenet/checkpoint.pt").exists()
    monkeypatch.setattr(contender_module, "fit", fit)
    done = odenet(*words)
    assert done.status == 0
    assert done.out.count("already done") == 1
    assert without_times(results_of(odenet.folder / "again")) == without_times(results_of(comparison))


def test_another_seed_gives_other_numbers_and_another_folder(odenet):
    only = [*FEW, "~contenders.odenet", "~contenders.resnet_matched", "~contenders.resnet"]
    assert odenet("compare", *SMALL, *only, "-m", "seed=0,1,1").status == 0
    folders = sorted((odenet.folder / "runs/compare").iterdir())
    assert [f.name.split("-")[1] for f in folders] == ["seed0", "seed1"]
    a, b = (without_times(results_of(f)) for f in folders)
    assert a != b


def test_multirun_writes_a_summary_over_seeds(odenet):
    only = [*FEW, "~contenders.odenet", "~contenders.resnet_matched"]
    assert odenet("compare", *SMALL, *only, "-m", "seed=0,1").status == 0
    (sweep,) = (odenet.folder / "runs/multirun").iterdir()
    summary = json.loads((sweep / "summary.json").read_text())
    runs = [results_of(f) for f in sorted((odenet.folder / "runs/compare").iterdir())]
    text = json.dumps(summary)
    accuracies = [next(c for c in r["contenders"] if c["name"] == "resnet")["test_accuracy"] for r in runs]
    mean = sum(accuracies) / 2
    spread = abs(accuracies[0] - accuracies[1]) / 2**0.5
    found = next(c for c in summary["contenders"] if c["name"] == "resnet")["test_accuracy"]
    assert found["mean"] == pytest.approx(mean), text
    assert found["std"] == pytest.approx(spread), text


def test_a_contender_of_ones_own_is_a_list_of_train_overrides(odenet):
    done = odenet(
        "compare", *SMALL, *FEW, '+contenders.mine=["model=odenet","solver=heun2","solver.steps=3","residual.width=4"]'
    )
    assert done.status == 0, done.err
    (folder,) = (odenet.folder / "runs/compare").iterdir()
    mine = results_of(folder)["contenders"][-1]
    assert mine["label"].endswith("[mine]")
    assert (mine["solver"]["solver"], mine["solver"]["steps"], mine["nfe_forward"]) == ("heun2", 3, 6)
    assert mine["parameters"] < next(c for c in results_of(folder)["contenders"] if c["name"] == "odenet")["parameters"]


def test_a_folder_of_another_config_is_refused(comparison, odenet):
    done = odenet("compare", *SMALL, *FEW, f"folder={comparison}", "trainer.epochs=3")
    assert done.status == 2
    assert "trainer.epochs" in done.err
    assert "another config" in done.err


def test_a_corrupt_result_is_named_and_nothing_else_is_lost(comparison, odenet):
    broken = odenet.folder / "broken"
    shutil.copytree(comparison, broken)
    (broken / "contenders/odenet/result.json").write_text('{"half": ')
    done = odenet("compare", *SMALL, *FEW, f"folder={broken}")
    assert done.status == 2
    assert "odenet/result.json is not valid JSON" in done.err
    assert (broken / "contenders/resnet/result.json").exists()
    (broken / "contenders/odenet/result.json").unlink()
    assert odenet("compare", *SMALL, *FEW, f"folder={broken}").status == 0
    assert without_times(results_of(broken)) == without_times(results_of(comparison))


def test_training_is_the_same_whoever_asks_for_it(comparison, odenet):
    words = [w for w in SMALL if not w.startswith("swap")]
    assert odenet("train", *words, "model=odenet", "folder=alone").status == 0
    alone = load_checkpoint(odenet.folder / "alone/checkpoint.pt")["model"]
    compared = load_checkpoint(comparison / "contenders/odenet/checkpoint.pt")["model"]
    assert all(torch.equal(alone[k], compared[k]) for k in alone)


def test_data_is_what_the_config_says(comparison):
    data = moons(n=64, n_test=40)
    assert results_of(comparison)["data"] == {
        "name": "moons",
        "shape": [2],
        "n_train": len(data.train_x),
        "n_test": len(data.test_x),
        "classes": list(data.classes),
    }


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_image_files_in_their_real_formats(odenet, monkeypatch, name):
    pytest.importorskip("torchvision")
    from tests.data.test_vision import write_cifar, write_mnist

    if name == "mnist":
        write_mnist(odenet.folder / "files/MNIST/raw")
    else:
        write_cifar(odenet.folder / "files", monkeypatch)
    done = odenet(
        "compare",
        f"data={name}",
        f"data.root={odenet.folder / 'files'}",
        "data.download=false",
        "network.widths=[4,6]",
        "trainer.epochs=1",
        "trainer.threads=1",
        "swap=[{solver:euler,steps:8}]",
        *FEW,
        "~contenders.odenet",
        "~contenders.resnet_matched",
    )
    assert done.status == 0, done.err
    (folder,) = (odenet.folder / "runs/compare").iterdir()
    assert [c["nfe_forward"] for c in results_of(folder)["contenders"] if c["name"] == "resnet"] == [16]
