"""The report says what is in the results, in every form that it is written in, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from odenet.errors import InputError, RunError
from odenet.experiments.report import (
    TABLE_COLUMNS,
    result_table,
    seed_summary,
    terminal_table,
    write_report,
    write_seed_summary,
)
from odenet.experiments.report_findings import findings, smallest_euler

EULER = (1, 2, 4, 8, 16)
ENVIRONMENT = {"odenet": "0.1.0", "git_revision": None, "packages": {"torch": "2.11.0"}, "devices": ["A <GPU>"]}


def network(name: str, label: str, accuracy: float, euler: tuple[float, ...] = (), **more: Any) -> dict[str, Any]:
    """A contender whose accuracies under Euler with 1, 2, 4, 8, 16 steps are given."""
    trained = more.pop("trained", 8)
    swap = [
        {"solver": "euler", "steps": n, "rtol": None, "atol": None, "label": f"Euler {n}", "accuracy": a}
        | {"flips": abs(accuracy - a), "nfe": n, "trained": n == trained, "note": ""}
        for n, a in zip(EULER, euler, strict=False)
    ]
    record = {"train_loss": 0.5, "train_accuracy": 0.9, "test_loss": 0.4, "test_accuracy": accuracy, "lr": 0.1}
    record |= {"nfe_forward": 8.0, "nfe_backward": 0.0, "seconds": 1.0}
    return {
        "name": name,
        "label": label,
        "role": "contender",
        "solver": {"solver": "euler", "steps": 8, "rtol": None, "atol": None, "backend": "native"},
        "gradient": "autograd",
        "weights": "tied",
        "parameters": 123456,
        "test_accuracy": accuracy,
        "test_loss": 0.1 + 0.2,
        "train_loss": 1 / 3,
        "train_accuracy": 0.99,
        "nfe_forward": 8.0,
        "nfe_backward": 12.5,
        "gradient_error": 2.5e-7,
        "seconds_per_epoch": 1.5,
        "inference_ms": 0.125,
        "memory_bytes": 3 * 2**20,
        "history": [{"epoch": 1, **record}, {"epoch": 2, **record}],
        "swap": swap,
    } | more


@pytest.fixture
def results() -> dict[str, Any]:
    return made_up()


def made_up() -> dict[str, Any]:
    return {
        "experiment": "compare",
        "title": "Depth <on> digits",
        "data": {"name": "digits", "shape": [1, 8, 8], "n_train": 1437, "n_test": 200, "classes": list("01")},
        "seed": 0,
        "device": "cpu",
        "threads": 2,
        "seconds": 12.0,
        "version": "0.1.0",
        "git_revision": None,
        "contenders": [
            network("resnet", "ResNet <b>untied</b> | a_b", 0.98, (0.30, 0.60, 0.90, 0.98, 0.50), parameters=151_242),
            network("odenet", "ODE-Net", 0.97, (0.40, 0.965, 0.95, 0.968, 0.971), memory_bytes=10 * 2**20, trained=0),
            network(
                "identity",
                "Identity",
                0.915,
                role="control",
                solver=None,
                gradient=None,
                weights=None,
                memory_bytes=None,
            ),
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Path]:
    dots = np.random.default_rng(0).normal(size=(9, 6, 2))
    hidden = {"resnet": {"curves": None, "dots": dots, "labels": np.arange(6) % 2, "explained": [0.5, 0.25]}}
    return write_report(folder, made_up(), hidden, "seed: 0\nname: <x>\n", ENVIRONMENT)


class Page(HTMLParser):
    """Every tag, every reference and all the text of an HTML file."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_everything_is_written(written: dict[str, Path], folder: Path) -> None:
    names = {"results.json", "results.csv", "swap.csv", "config.yaml", "environment.json", "report.md", "report.html"}
    for figure in ("accuracy_nfe", "swap_matrix", "training_curves", "hidden_states"):
        names |= {f"figures/{figure}.png", f"figures/{figure}.svg"}
    assert set(written) == names
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == names
    assert all(path == folder / name and path.stat().st_size for name, path in written.items())


def test_html_stands_alone(written: dict[str, Path]) -> None:
    text = written["report.html"].read_text()
    page = Page(text)
    assert page.tags.count("img") == 4
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "b", "x", "gpu", "on"} & set(page.tags)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in re.sub(r"data:image/[^\"]+", "", text)


def test_every_number_of_the_table_is_in_every_form(written: dict[str, Path], results: dict[str, Any]) -> None:
    page = Page(written["report.html"].read_text()).words
    markdown = written["report.md"].read_text()
    console = Console(file=io.StringIO(), width=240)
    console.print(terminal_table(results))
    terminal = console.file.getvalue()  # type: ignore[attr-defined]
    for row in result_table(results):
        for heading, text in row.items():
            assert text in page
            assert text in terminal
            assert heading in page
            assert heading in markdown
            assert text in markdown or heading == "network"


def test_the_table_says_what_the_results_say(results: dict[str, Any]) -> None:
    rows = result_table(results)
    assert [list(row) for row in rows] == [[column.heading for column in TABLE_COLUMNS]] * 3
    cells = ["ODE-Net", "123,456", "97.0 %", "0.3333", "8", "12.5", "2.5e-07", "1.50", "0.125", "10.0"]
    assert list(rows[1].values()) == cells
    assert rows[2]["peak training memory, MiB"] == "–"


def test_markdown_links_and_rows_hold(written: dict[str, Path], folder: Path) -> None:
    text = written["report.md"].read_text()
    links = re.findall(r"!\[[^]]*]\(([^)]+)\)", text)
    assert len(links) == 4
    assert all((folder / link).is_file() for link in links)
    rows = [line for line in text.splitlines() if line.startswith("|") and "what" not in line]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:6]}
    assert widths == {len(TABLE_COLUMNS) + 1}


def test_csv_round_trips(written: dict[str, Path], results: dict[str, Any]) -> None:
    with written["results.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [n["label"] for n in results["contenders"]]
    for row, found in zip(rows, results["contenders"], strict=True):
        for key in ("test_accuracy", "test_loss", "train_loss", "nfe_backward", "seconds_per_epoch"):
            assert float(row[key]) == found[key]
    assert rows[0]["solver"] == "euler"
    assert rows[0]["steps"] == "8"
    assert rows[2]["solver"] == rows[2]["memory_bytes"] == ""
    with written["swap.csv"].open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(c["network"], c["label"], float(c["accuracy"])) for c in cells] == [
        (n["name"], c["label"], c["accuracy"]) for n in results["contenders"] for c in n["swap"]
    ]
    assert json.loads(written["results.json"].read_text()) == results
    assert written["config.yaml"].read_text() == "seed: 0\nname: <x>\n"


def test_findings_follow_from_the_numbers(results: dict[str, Any]) -> None:
    text = "\n".join(findings(results))
    assert "a_b has the best test accuracy: 98 % (" not in text
    assert "has the best test accuracy: 98.0 % (196 of 200 test samples)" in text
    assert "lie within 1 point of each other" in text
    assert f"the standard error of one such accuracy, from the size of the test set alone, is {1.0:.0f} point" in text
    assert "The control “Identity” reaches 91.5 %: 6.5 points below the best contender and 5.5 points below" in text
    assert "between 3.0 MiB (ResNet" in text
    assert "1 of 2 contenders stay within 1 point of the accuracy under their own solver: ODE-Net." in text
    assert "accuracy is 50.0 % at 16 steps of Euler’s method and within 1 point only at 8." in text
    assert "Flipped classes grow from 0.0 % to 48.0 % between 8 steps and 16." in text
    assert "accuracy stays within 1 point from 8 steps of Euler’s method up to 16." in text


def test_findings_change_with_the_numbers(results: dict[str, Any]) -> None:
    resnet, odenet, identity = results["contenders"]
    odenet["test_accuracy"] = 0.98
    identity["test_accuracy"] = 0.99
    text = "\n".join(findings(results))
    assert "ResNet <b>untied</b> | a_b and ODE-Net share the best test accuracy" in text
    assert "reaches 99.0 %: 1 point above the best contender" in text
    resnet["swap"] = odenet["swap"] = []
    assert not any("Euler" in sentence for sentence in findings(results))


@pytest.mark.parametrize(
    ("accuracies", "steps"),
    [
        ((0.98, 0.98, 0.98, 0.98, 0.98), 1),
        ((0.98, 0.60, 0.975, 0.98, 0.985), 4),  # 1 step is right by accident: it does not last
        ((0.98, 0.98, 0.98, 0.98, 0.96), None),
        ((0.5, 0.97, 0.99, 0.97, 0.99), 2),  # exactly 1 point is within it
    ],
)
def test_smallest_euler(accuracies: tuple[float, ...], steps: int | None) -> None:
    assert smallest_euler(network("n", "N", 0.98, accuracies)) == steps


def test_missing_values_are_reported_as_missing(tmp_path: Path, results: dict[str, Any]) -> None:
    resnet, odenet, identity = results["contenders"]
    resnet |= {"test_accuracy": None, "train_loss": math.nan, "memory_bytes": None}
    odenet["swap"][4] |= {"accuracy": None, "flips": None, "nfe": None, "note": "step underflow"}
    identity["seconds_per_epoch"] = math.inf
    written = write_report(tmp_path, results, {}, "", {})
    rows = result_table(results)
    assert rows[0]["test accuracy"] == rows[0]["train loss"] == rows[2]["s / epoch"] == "–"
    assert "ODE-Net could not be evaluated under 1 of 5 solvers." in findings(results)
    for name in ("report.md", "report.html", "results.csv", "swap.csv"):
        text = re.sub(r"data:image/[^\"]+", "", written[name].read_text())
        assert not re.search(r"\b(nan|inf|None)\b", text)
    assert json.loads(written["results.json"].read_text())["contenders"][0]["train_loss"] is None
    assert not any("hidden_states" in name for name in written)


def test_nothing_but_controls(tmp_path: Path, results: dict[str, Any]) -> None:
    results["contenders"] = results["contenders"][2:]
    written = write_report(tmp_path, results, {}, "", {})
    assert findings(results) == []
    assert [name for name in written if name.endswith(".png")] == ["figures/training_curves.png"]


def test_a_failing_write_leaves_the_old_report(
    written: dict[str, Path], folder: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: path.read_bytes() for name, path in written.items()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    results["contenders"][0]["test_accuracy"] = 0.1
    with pytest.raises(RunError, match="No space left"):
        write_report(folder, results, {}, "", {})
    assert {name: path.read_bytes() for name, path in written.items()} == before
    assert not list(folder.rglob(".*"))


def test_seed_summary(results: dict[str, Any]) -> None:
    runs = [json.loads(json.dumps({**results, "seed": seed})) for seed in range(3)]
    for run, accuracy in zip(runs, (0.96, 0.97, 0.98), strict=True):
        run["contenders"][0]["test_accuracy"] = accuracy
    runs[2]["contenders"][1]["train_loss"] = None
    summary = seed_summary(runs)
    found = summary["contenders"][0]["test_accuracy"]
    assert found["mean"] == pytest.approx(0.97)
    assert found["std"] == pytest.approx(np.std([0.96, 0.97, 0.98], ddof=1))
    assert (found["min"], found["max"], found["runs"]) == (0.96, 0.98, 3)
    assert summary["contenders"][1]["train_loss"]["runs"] == 2
    assert summary["seeds"] == [0, 1, 2]


def test_one_seed_has_no_spread(results: dict[str, Any], tmp_path: Path) -> None:
    found = seed_summary([results])["contenders"][0]["test_accuracy"]
    assert found["std"] is None
    assert found["mean"] == found["min"] == found["max"] == 0.98
    assert "±" not in write_seed_summary(tmp_path, [results])["summary.md"].read_text().split("| --- |")[1]


def test_seed_summary_files(results: dict[str, Any], tmp_path: Path) -> None:
    other = json.loads(json.dumps(results))
    other["seed"], other["contenders"][0]["test_accuracy"] = 1, 0.96
    written = write_seed_summary(tmp_path / "sweep", [results, other])
    assert set(written) == {"summary.json", "summary.csv", "summary.md"}
    assert json.loads(written["summary.json"].read_text()) == seed_summary([results, other])
    with written["summary.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["test_accuracy_std"]) == pytest.approx(0.02 / math.sqrt(2))
    assert rows[0]["test_accuracy_runs"] == "2"
    assert "97.00 ± 1.41 (96.00 to 98.00)" in written["summary.md"].read_text()
    with pytest.raises(InputError, match="at least one run"):
        seed_summary([])
