"""Results as a comparison leaves them, made up: the plots are tested without training anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

EULER = (1, 2, 4, 8, 16, 32, 64)
ROLES = ("contender",) * 5 + ("control",) * 3
NAMES = ("resnet", "resnet_tied", "rk4_net", "odenet", "odenet_adjoint", "identity", "single_block", "resnet_matched")
LABELS = (
    "ResNet, untied",
    "ResNet, tied",
    "RK4-Net, tied",
    "ODE-Net, exact gradient",
    "ODE-Net, adjoint",
    "Identity (no depth)",
    "Single block",
    "ResNet, matched parameters",
)
ACCURACY = (0.978, 0.972, 0.975, 0.981, 0.969, 0.917, 0.964, 0.970)


def _walks() -> list[dict[str, Any]]:
    walks: list[dict[str, Any]] = [{"solver": "euler", "steps": n, "rtol": None, "label": f"Euler {n}"} for n in EULER]
    walks.append({"solver": "midpoint", "steps": 8, "rtol": None, "label": "midpoint 8"})
    walks += [{"solver": "rk4", "steps": n, "rtol": None, "label": f"rk4 {n}"} for n in (2, 8)]
    for power in range(2, 7):
        rtol = 10.0**-power
        walks.append({"solver": "dopri5", "steps": None, "rtol": rtol, "label": f"dopri5 1e-{power}"})
    return walks


TRAINED = {"rk4_net": "rk4 2", "odenet": "dopri5 1e-3", "odenet_adjoint": "dopri5 1e-3"}
STAGES = {"euler": 1, "midpoint": 2, "rk4": 4}


def _swap(name: str, accuracy: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    cells = []
    discrete = name.startswith("resnet")
    for walk in _walks():
        steps = walk["steps"]
        fineness = np.log2((steps or 8 * 2 ** (-np.log10(walk["rtol"]))) * STAGES.get(walk["solver"], 4))
        trained = walk["label"] == TRAINED.get(name, "Euler 8")
        distance = abs(fineness - 3) if discrete else max(0.0, 3.0 - fineness)
        flips = 0.0 if trained else float(np.clip(0.004 * distance * rng.random() + 0.055 * distance**2, 0, 0.93))
        if name == "resnet_tied":
            flips *= 0.4
        found = accuracy - 0.95 * flips + 0.004 * rng.standard_normal() * (not trained)
        found = round(float(np.clip(found, 0.08, 1)) * 360) / 360
        nfe = STAGES.get(walk["solver"], 0) * (steps or 0) or 6 * round(2 - np.log10(walk["rtol"])) + 8
        note = ""
        if name in ("resnet", "resnet_matched") and steps is not None and steps < 8:
            note = {1: "every 8th layer", 2: "every 4th layer", 4: "every 2nd layer"}[steps]
        cell = {**walk, "atol": walk["rtol"], "accuracy": found, "flips": round(flips * 360) / 360, "nfe": nfe}
        cells.append({**cell, "trained": trained, "note": note})
    return cells


def _history(name: str, accuracy: float, epochs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    adaptive = name.startswith("odenet")
    records = []
    for epoch in range(1, epochs + 1):
        share = epoch / epochs
        forward = 14 + 26 * share + rng.random() if adaptive else {"identity": 0, "single_block": 1}.get(name, 8)
        backward = 1.3 * forward + 6 if name == "odenet_adjoint" else forward if name == "odenet" else 0
        loss = (1.5 if name == "identity" else 2.2) * np.exp(-(4 if name == "identity" else 6.5) * share) + 0.004
        records.append(
            {
                "epoch": epoch,
                "train_loss": float(loss * np.exp(0.15 * rng.standard_normal())),
                "train_accuracy": float(1 - 0.5 * np.exp(-6 * share)),
                "test_loss": float(loss + 0.1),
                "test_accuracy": round(
                    float(accuracy - 0.6 * np.exp(-9 * share) + 0.004 * rng.standard_normal() * (epoch < epochs)) * 360
                )
                / 360,
                "nfe_forward": float(forward),
                "nfe_backward": float(backward),
                "lr": 1e-3,
                "seconds": 1.5,
            }
        )
    return records


@pytest.fixture(scope="session")
def make_results() -> Callable[..., dict[str, Any]]:
    return results_of


def results_of(networks: tuple[int, ...] = tuple(range(8)), classes: int = 10, epochs: int = 20) -> dict[str, Any]:
    """A comparison of some of the networks above, by their indices; an index of 8 or more repeats an ODE-Net."""
    contenders = []
    for i in networks:
        rng = np.random.default_rng(i)
        j = i if i < len(NAMES) else 3
        name, accuracy = NAMES[j], ACCURACY[j]
        label = LABELS[j] if i == j else f"{LABELS[j]} [variant {i}]"
        history = _history(name, accuracy, epochs, rng)
        solver: dict[str, Any] | None = {"steps": 8, "rtol": None, "atol": None, "backend": "native", "solver": "euler"}
        if name.startswith("odenet"):
            solver = {"solver": "dopri5", "steps": None, "rtol": 1e-3, "atol": 1e-3, "backend": "native"}
        elif name == "rk4_net":
            solver = {"solver": "rk4", "steps": 2, "rtol": None, "atol": None, "backend": "native"}
        elif name == "identity":
            solver = None
        contenders.append(
            {
                "name": name if i == j else f"{name}_{i}",
                "label": label,
                "role": ROLES[j],
                "solver": solver,
                "gradient": None if solver is None else "adjoint" if "adjoint" in name else "autograd",
                "weights": None if solver is None else "untied" if j in (0, 7) else "tied",
                "parameters": 151_242 if j == 0 else 24_330 + 7 * j,
                "test_accuracy": round(accuracy * 360) / 360,
                "test_loss": 0.09 + 0.01 * j,
                **{key: history[-1][key] for key in ("train_loss", "train_accuracy", "nfe_forward", "nfe_backward")},
                "seconds_per_epoch": 0.731 + 0.517 * j,
                "inference_ms": 0.0413 * (j + 1),
                "memory_bytes": None if j == 5 else 12_345_678 // (j + 1),
                "history": history,
                "swap": [] if name in ("identity", "single_block") else _swap(name, accuracy, rng),
            }
        )
    return {
        "experiment": "compare",
        "title": "Discrete and continuous depth on digits",
        "data": {
            "name": "digits",
            "shape": [1, 8, 8],
            "n_train": 1437,
            "n_test": 360,
            "classes": [str(c) for c in range(classes)],
        },
        "seed": 0,
        "device": "cpu",
        "threads": 2,
        "epochs": epochs,
        "batch_size": 64,
        "seconds": 301.2,
        "version": "0.1.0",
        "git_revision": "b8bd0690000000000000000000000000000000ab",
        "contenders": contenders,
    }


@pytest.fixture(scope="session")
def make_hidden() -> Callable[..., dict[str, Any]]:
    return hidden_of


def hidden_of(results: dict[str, Any], per_class: int = 10) -> dict[str, Any]:
    """Paths that spread their classes over a ring, curved where depth is continuous."""
    classes = len(results["data"]["classes"])
    labels = np.repeat(np.arange(classes), per_class)
    hidden = {}
    for number, contender in enumerate(results["contenders"]):
        if contender["solver"] is None:
            continue
        rng = np.random.default_rng(100 + number)
        start = rng.normal(size=(len(labels), 2)) * 1.2
        angle = 2 * np.pi * labels / classes + number
        radius = np.where(labels % 3 == 1, 5.0, 8.0)
        end = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(size=start.shape) * 0.9

        def path(s: np.ndarray, start: np.ndarray = start, end: np.ndarray = end) -> np.ndarray:
            turn = np.stack([-(end - start)[:, 1], (end - start)[:, 0]], 1)
            s = s[:, None, None]
            return start + s**1.5 * (end - start) + 0.25 * np.sin(np.pi * s) * turn

        discrete = contender["solver"]["solver"] != "dopri5"
        steps = contender["solver"]["steps"] or 6
        dots = path(np.linspace(0, 1, steps + 1))
        if discrete:
            dots[1:-1] += rng.normal(size=dots[1:-1].shape) * 0.3
        hidden[contender["name"]] = {
            "curves": None if discrete else path(np.linspace(0, 1, 61)),
            "dots": dots,
            "labels": labels,
            "explained": [0.41, 0.22],
        }
    return hidden


@pytest.fixture
def results() -> dict[str, Any]:
    return results_of()


@pytest.fixture
def hidden(results: dict[str, Any]) -> dict[str, Any]:
    return hidden_of(results)
