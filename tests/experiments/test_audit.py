"""`odenet audit`: of a run, and of a network that is made for it."""

import csv
import json

from tests.experiments.conftest import SMALL

TRAIN = [word for word in SMALL if not word.startswith("swap")]


def test_the_gradients_of_a_run(comparison, odenet):
    done = odenet("audit", f"run={comparison}", "repeats=1", "batch=16", f"folder={odenet.folder}/out")
    assert done.status == 0, done.err
    for name in ("resnet", "odenet"):
        rows = list(csv.DictReader((odenet.folder / "out" / f"{name}.csv").open()))
        assert {"autograd", "checkpoint", "adjoint"} <= {row["gradient"] for row in rows}
        told = json.loads((odenet.folder / "out" / f"{name}.json").read_text())
        assert told["verdict"] in done.out.replace("\n", " ") and "Speed wanted" in told["recommendation"]
        assert (odenet.folder / "out" / f"{name}.png").stat().st_size > 10_000
    errors = {row["gradient"]: float(row["error"]) for row in rows}
    assert max(errors["checkpoint"], errors["autograd"], errors["stagewise"]) < 1e-5


def test_a_network_that_is_described(odenet):
    done = odenet("audit", *TRAIN, "model=resnet", "methods=[checkpoint,momentum]", "batch=8", "repeats=1")
    assert done.status == 0, done.err
    assert "momentum" in done.out and "reversible" not in done.out
    assert list((odenet.folder / "runs" / "audit").glob("*/resnet.csv"))
    assert "no network with a ResNet" in odenet("audit", *TRAIN, "model=identity").err


def test_a_comparison_has_the_error_of_each_gradient(comparison):
    results = json.loads((comparison / "results.json").read_text())
    errors = {n["name"]: n["gradient_error"] for n in results["contenders"]}
    assert errors["identity"] is None
    assert all(error < 1e-5 for name, error in errors.items() if name != "identity")
