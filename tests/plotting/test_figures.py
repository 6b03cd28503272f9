"""The figures hold the data they were given, and are drawn whatever is missing."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from odenet import plotting
from odenet.errors import RunError
from odenet.plotting import style
from odenet.plotting.gradient_audit import gradient_audit
from odenet.plotting.labels import spread

Results = dict[str, Any]
LONG = r"A very long label for $x^2$, $ and \frac with many more words than fit anywhere"


@pytest.fixture
def small(make_results: Callable[..., Results]) -> Results:
    return make_results((0, 3, 5))


def drawn(figure: Figure) -> Figure:
    """The figure after it has been laid out without a complaint."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    return figure


def figures_of(results: Results, hidden: dict[str, Any]) -> list[Figure]:
    return [
        plotting.accuracy_nfe(results),
        plotting.swap_matrix(results),
        plotting.training_curves(results),
        plotting.hidden_states(hidden, results),
    ]


def numbers_in(axes: Any) -> np.ndarray:
    """The numbers written in the cells of a table, row by row."""
    texts = [t for t in axes.texts if t.get_ha() == "center" and t.get_va() == "center"]
    return np.array([float(t.get_text()) for t in texts])


def test_matplotlib_is_imported_late_and_pyplot_never() -> None:
    code = """if True:
        import sys
        from odenet import plotting
        assert "matplotlib" not in sys.modules
        from conftest import hidden_of, results_of
        results = results_of((0, 3))
        plotting.accuracy_nfe(results), plotting.swap_matrix(results), plotting.training_curves(results)
        plotting.hidden_states(hidden_of(results), results)
        assert "matplotlib" in sys.modules
        assert "matplotlib.pyplot" not in sys.modules
    """
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests, tests.parent.parent)))
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0


def test_swap_cells_hold_the_data(results: Results) -> None:
    figure = plotting.swap_matrix(results)
    cells = [cell for network in results["contenders"] for cell in network["swap"]]
    for axes, key in zip(figure.axes[:2], ("accuracy", "flips"), strict=True):
        np.testing.assert_allclose(numbers_in(axes), [100 * cell[key] for cell in cells], atol=0.0501)
        frames = [p for p in axes.patches if p.get_label() == "trained"]
        assert len(frames) == sum(cell["trained"] for cell in cells)
        names = [t.get_text() for t in axes.get_yticklabels()]
        assert names == [n["label"] for n in results["contenders"] if n["swap"]]


def test_cells_without_a_value_are_hatched_and_explained(results: Results) -> None:
    for network in results["contenders"][:3]:
        network["swap"][1] |= {"accuracy": None, "flips": None, "nfe": None, "note": "step underflow at t=0.3"}
    figure = plotting.swap_matrix(results)
    for axes in figure.axes[:2]:
        assert sum(bool(p.get_hatch()) for p in axes.patches) == 3
    notes = " ".join(t.get_text() for sub in figure.subfigs for t in sub.texts)
    assert notes.count("step underflow at t=0.3") == 1
    assert "every 8th layer" in notes


def test_text_in_cells_is_legible(results: Results) -> None:
    """WCAG 2: contrast of at least 4.5 between text and cell."""
    from matplotlib.colors import to_rgb

    def luminance(color: Any) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    for axes in plotting.swap_matrix(results).axes[:2]:
        image = np.asarray(axes.images[0].get_array())
        for text in axes.texts:
            column, row = (round(v) for v in text.get_position())
            if text.get_va() != "center" or not 0 <= row < len(image):
                continue
            low, high = sorted((luminance(to_rgb(text.get_color())), luminance(image[row, column])))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_euler_lines_hold_the_data(results: Results) -> None:
    figure = plotting.accuracy_nfe(results)
    networks = [n for n in results["contenders"] if n["role"] == "contender"]
    controls = [n for n in results["contenders"] if n["role"] == "control"]
    overview, *panels = figure.axes
    assert len(panels) == len(networks)
    for network in networks:
        cells = [c for c in network["swap"] if c["solver"] == "euler"]
        expected = [[c["nfe"] for c in cells], [c["accuracy"] for c in cells]]
        assert any(
            np.shape(line.get_data()) == (2, 7) and np.allclose(line.get_data(), expected) for line in overview.lines
        )
    levels = [line.get_ydata()[0] for line in overview.lines if list(line.get_xdata()) == [0, 1]]
    assert levels == [n["test_accuracy"] for n in controls]
    names = [t.get_text() for t in overview.texts]
    assert sorted(names) == sorted(n["label"] for n in results["contenders"])
    for axes, network in zip(panels, networks, strict=True):
        rings = [line for line in axes.lines if line.get_label() == "trained"]
        trained = next(c for c in network["swap"] if c["trained"])
        assert [(*r.get_xdata(), *r.get_ydata()) for r in rings] == [(trained["nfe"], trained["accuracy"])]


def test_names_beside_lines_do_not_overlap(make_results: Callable[..., Results]) -> None:
    results = make_results((0, 1, 2, 3, 4, 8, 9, 10, 11, 5, 6, 7))
    figure = drawn(plotting.accuracy_nfe(results))
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_drawing_leaves_the_results_alone(small: Results, make_hidden: Callable[..., dict[str, Any]]) -> None:
    before = copy.deepcopy(small)
    figures_of(small, make_hidden(small, per_class=2))
    assert small == before


def test_curves_hold_the_history(results: Results) -> None:
    figure = plotting.training_curves(results)
    for axes, key in zip(figure.axes, ("train_loss", "test_accuracy", "nfe_forward", "nfe_backward"), strict=True):
        lines = [line for line in axes.lines if len(line.get_xdata()) == 20]
        for line, network in zip(lines, results["contenders"], strict=True):
            assert list(line.get_ydata()) == [record[key] for record in network["history"]]
            low, high = axes.get_ylim()
            assert all(low <= y <= high for y in line.get_ydata())
    assert len(figure.legends[0].get_texts()) == len(results["contenders"])


def test_paths_hold_the_states(results: Results, make_hidden: Callable[..., dict[str, Any]]) -> None:
    hidden = make_hidden(results, per_class=3)
    figure = plotting.hidden_states(hidden, results)
    shown = [n["name"] for n in results["contenders"] if n["name"] in hidden]
    assert len(figure.axes) == len(shown) == 7
    for axes, name in zip(figure.axes, shown, strict=True):
        curves = hidden[name]["curves"]
        paths = hidden[name]["dots"] if curves is None else curves
        solid = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(solid) == paths.shape[1]
        np.testing.assert_array_equal(np.transpose(solid[5].get_data()), paths[:, 5])


def test_a_network_has_one_colour_in_all_figures(results: Results, hidden: dict[str, Any]) -> None:
    lines = style.network_lines(results)
    assert len({(line.color, line.dashes) for line in lines.values()}) == len(lines)
    curves, overview = plotting.training_curves(results).axes[1], plotting.accuracy_nfe(results).axes[0]
    for network in results["contenders"]:
        color = lines[network["name"]].color
        assert color in {line.get_color() for line in curves.lines}
        assert color in {line.get_color() for line in overview.lines}


@pytest.mark.parametrize("case", ["two classes, one epoch", "long labels, perfect scores", "missing", "controls only"])
def test_every_shape_of_results_is_drawn(
    case: str, make_results: Callable[..., Results], make_hidden: Callable[..., dict[str, Any]]
) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "two classes, one epoch": {"networks": (0, 3, 5), "classes": 2, "epochs": 1},
        "controls only": {"networks": (5, 7)},
    }
    results = make_results(**{"networks": (0, 3, 7), **shapes.get(case, {})})
    hidden = make_hidden(results, per_class=2)
    for number, network in enumerate(results["contenders"]):
        if case.startswith("long"):
            network |= {"label": f"{LONG} {number}", "test_accuracy": 1.0}
            network["swap"] = [{**cell, "accuracy": 1.0, "flips": 0.0} for cell in network["swap"]]
        elif case == "missing":
            network |= {"test_accuracy": None, "nfe_forward": math.nan}
            network["swap"] = [{**c, "accuracy": None, "flips": math.nan, "nfe": None} for c in network["swap"]]
            network["history"] = [{**r, "train_loss": math.nan, "nfe_backward": None} for r in network["history"]]
    for figure in figures_of(results, hidden):
        drawn(figure)


def test_equal_factors_of_error_are_equal_heights() -> None:
    heights = style.accuracy_height([0.6, 0.8, 0.9, 0.95], 10**9)
    np.testing.assert_allclose(np.diff(heights), math.log10(2), rtol=1e-6)
    assert math.isfinite(style.accuracy_height(1.0, 360))


def test_spread_keeps_what_fits_and_separates_what_does_not() -> None:
    sizes = np.array([0.1, 0.1, 0.1])
    np.testing.assert_allclose(spread(np.array([0.2, 0.8, 0.5]), sizes), [0.2, 0.8, 0.5])
    np.testing.assert_allclose(spread(np.array([0.5, 0.5, 0.5]), sizes), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(spread(np.array([1.0, 1.0, 0.0]), sizes), [0.85, 0.95, 0.05])


def test_save_writes_both_kinds(small: Results, tmp_path: Any) -> None:
    files = plotting.save(plotting.training_curves(small), tmp_path / "figure.v2")
    assert {p.name for p in tmp_path.iterdir()} == {"figure.v2.png", "figure.v2.svg"}
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in files["svg"].read_bytes()


def test_a_figure_that_cannot_be_saved_leaves_the_old_one(small: Results, tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "figure.png").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="No space left"):
        plotting.save(plotting.training_curves(small), tmp_path / "figure")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("figure.png", b"old")]


def test_a_monitor_is_drawn_with_a_line_for_each_block(small: Results) -> None:
    measured = {"block0/defect": 0.1, "block0/F": 2.0, "block0/nfe": 8.0, "score": 0.9, "score_finer": 0.85}
    for number, record in enumerate(small["contenders"][0]["history"]):
        record["monitor"] = measured | {"block0/defect": 0.1 * 2.0**-number} if number % 2 else {}
    for record in small["contenders"][1]["history"]:
        second = {name.replace("0", "1"): 3 * value for name, value in measured.items() if "/" in name}
        record["monitor"] = measured | second | {"block1/defect": math.nan}
    figure = drawn(plotting.monitor(small))
    defect, size, _, score = figure.axes
    assert [len(axes.lines) for axes in (defect, size)] == [3, 3] and defect.get_yscale() == "log"
    np.testing.assert_allclose(defect.lines[0].get_xydata(), [[n + 1, 0.1 * 2.0**-n] for n in range(1, 20, 2)])
    assert size.lines[2].get_ydata()[0] == 6.0
    np.testing.assert_allclose(score.lines[1].get_ydata(), 0.05)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "ResNet, untied" and names[1].endswith("block 0") and names[2].endswith("block 1")
    assert plotting.monitored(small) == small["contenders"][:2]


def test_names_in_the_audit_stand_beside_their_points_where_there_is_room():
    def row(name: str, held: float) -> dict[str, Any]:
        return {"gradient": name, "bytes": held, "error": 1e-7, "seconds_forward": 1.0, "seconds_backward": 1.0}

    rows = [row("reversible", 66e3), row("stagewise", 66e3), row("checkpoint", 390e3), row("autograd", 850e3)]
    figure = drawn(gradient_audit(rows))
    heights = {text.get_text().split()[0]: text.xy[1] for text in figure.axes[0].texts}
    assert heights["reversible"] == pytest.approx(1e-7) and heights["stagewise"] < 9e-8
    assert heights["checkpoint"] == pytest.approx(1e-7) and heights["autograd"] < 9e-8
