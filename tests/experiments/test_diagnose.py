"""`odenet diagnose` on a small run: a table, a report, figures, numbers; and its mistakes in words."""

import csv
from itertools import pairwise

import numpy as np
import pytest

from odenet import plotting
from odenet.artifacts import read_json
from odenet.diagnostics import Curves, Line, diagnostics

TRAIN = ["data=moons", "data.n=64", "data.n_test=40", "network=vector", "residual=mlp", "residual.width=8"]
TRAIN += ["trainer.epochs=1", "model=resnet", "solver.steps=4", "folder=run"]
CHOSEN = ["solver_swap", "step_halving", "stability", "weight_smoothness"]


def test_a_run_is_diagnosed(odenet):
    assert odenet("train", *TRAIN).status == 0
    done = odenet("diagnose", "run=run", f"diagnostics=[{','.join(CHOSEN)}]", "samples=4")
    assert done.status == 0, done.err
    folder = odenet.folder / "run" / "diagnosis"
    found = read_json(folder / "diagnosis.json")
    assert [f["diagnostic"] for f in found["findings"]] == CHOSEN
    assert found["verdict"] in (True, False) and found["network"] == "resnet"
    html, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    with open(folder / "diagnosis.csv") as file:
        table = list(csv.reader(file))
    assert table[0] == ["diagnostic", "block", "like an ODE", "what was found"] and len(table) == 1 + len(CHOSEN)
    for name, finding, row in zip(CHOSEN, found["findings"], table[1:], strict=True):
        entry = diagnostics[name]
        assert entry.title in html and entry.title in text and entry.title in done.out and row[0] == entry.title
        assert finding["sentence"] in text.replace("\\", "") and row[3] == finding["sentence"]
        assert entry.reference.split(",")[0] in html
        for kind in ("png", "svg"):
            assert (folder / "figures" / f"{name}.{kind}").stat().st_size > 3000
    assert html.count("<figure>") == len(CHOSEN)
    for src in html.split('src="')[1:]:
        assert src.startswith("data:image/")


def test_mistakes_are_sentences(odenet):
    assert "run must be given" in odenet("diagnose").err
    assert "no run folder" in odenet("diagnose", "run=nowhere").err
    odenet("train", *TRAIN)
    assert "did you mean 'stability'" in odenet("diagnose", "run=run", "diagnostics=[stabilty]").err


def test_a_network_without_depth_has_nothing_to_diagnose(odenet):
    odenet("train", *[w for w in TRAIN if w not in ("solver.steps=4", "model=resnet")], "model=identity")
    assert "nothing to diagnose" in odenet("diagnose", "run=run").out


def test_curves_are_drawn_as_they_are_given():
    lines = [Line("a", [1, 2, 4], [0.1, 0.01, 0.001]), Line("b", [1, 4], [0.2, 0.2], "dashed")]
    lines += [Line("c", [], [0.05], "level"), Line("d", [2], [0.01], "ring")]
    figure = plotting.curves({f"block {i}": Curves("steps", "defect", lines, True, True) for i in range(4)})
    assert len(figure.axes) == 4
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_title(loc="left") == "block 0"
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 0.1], [2, 0.01], [4, 0.001]])
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["a", "b", "c", "d"]
    assert axes.lines[-1].get_fillstyle() == "none" and axes.lines[-1].get_linestyle() == "None"


def test_numbers_on_a_logarithmic_axis_of_less_than_two_decades_do_not_overlap():
    found = Curves("loss", "evaluations of F", [Line("a", [0.12, 0.4, 1.9], [57, 57, 57], "points")], True)
    figure = plotting.curves({"": found})
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    labels = [t for t in axis.get_ticklabels(which="both") if t.get_text()]
    assert {"0.2", "0.3", "0.5", "1"} <= {t.get_text() for t in labels}
    edges = sorted((b.x0, b.x1) for b in (t.get_window_extent() for t in labels))
    assert all(left[1] < right[0] for left, right in pairwise(edges))


def test_the_region_of_euler_is_the_disc_and_every_eigenvalue_is_a_point():
    z = np.array([[-1 + 0.5j, -1 - 0.5j], [0.3j, -4.0 + 0j]])
    panel = (z, np.array([0.0, 0.5]), "euler", lambda z: np.abs(1 + z))
    figure = plotting.stability_region({"block 0": panel})
    axes = figure.axes[0]
    points = [c for c in axes.collections if len(c.get_offsets()) == 4]
    np.testing.assert_allclose(points[0].get_offsets(), [[-1, 0.5], [-1, -0.5], [0, 0.3], [-4, 0]])
    assert axes.get_xlim()[0] < -4
    edge = np.concatenate([p.vertices for c in axes.collections for p in c.get_paths() if len(p.vertices) > 50])
    radius = np.abs(edge[:, 0] + 1j * edge[:, 1] + 1)
    assert (np.abs(radius - 1) < 0.02).mean() > 0.9
    assert "euler" in axes.get_xlabel()


@pytest.mark.parametrize("word", ["diagnose", "odenet diagnose run=PATH"])
def test_the_command_is_in_the_usage(odenet, word):
    assert word in odenet("--help").out
