"""Does the network compute the same when another solver walks its weights?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import blocks_of
from odenet.diagnostics.path import check_labels, evaluated
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent
from odenet.errors import InputError, OdenetError
from odenet.models.swap import label_of, rewalk, swap_blocks

FLIPS = 0.02
WALKS = (
    *({"solver": "euler", "steps": n} for n in (1, 2, 4, 8, 16, 32, 64)),
    {"solver": "rk4", "steps": 8},
    {"solver": "rk4", "steps": 32},
    {"solver": "dopri5", "rtol": 1e-3, "atol": 1e-3},
    {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5},
)


@dataclass(frozen=True)
class SolverSwap(Result):
    """Attributes:
    own: accuracy under the training solver, or None without labels.
    cells: for each solver its label, solver, steps, rtol, accuracy, flips (share of the samples whose class is not the
        one that they have under the training solver), nfe and a note; None where it failed.
    """

    own: float | None
    cells: list[dict[str, Any]]


@diagnostic(
    "solver_swap",
    title="Solver swap",
    formula="flips = share of samples with argmax f_Φ(x) ≠ argmax f_trained(x), for each solver Φ",
    reference="Ott et al. 2021, ResNet After All; Queiruga et al. 2020, Continuous-in-Depth Neural Networks",
    of="model",
)
def solver_swap(
    model: nn.Module, x: Tensor, y: Tensor | None = None, walks: Sequence[Mapping[str, Any]] = WALKS
) -> SolverSwap:
    """Accuracy and class flips of a trained classifier under other solvers, its weights untouched.

    Args:
        model: a classifier with blocks in it, (batch, ...) -> (batch, classes).
        x: (batch, ...) samples.
        y: (batch,) labels, or None.
        walks: the solvers, each with solver, and steps or rtol and atol.

    Returns:
        It passes if under the finest solver of each kind (Euler, other fixed steps, adaptive) at most 2 % of the
        classes flip.

    Raises:
        InputError: the model has no blocks, or y are no labels.
    """
    if not blocks_of(model):
        raise InputError(f"{type(model).__name__} has no blocks whose solver could be changed")
    check_labels(y)
    with evaluated(model):
        trained = model(x).argmax(1)
        cells = [_cell(model, x, y, trained, walk) for walk in walks]
    own = None if y is None else _share(trained == y)
    result = SolverSwap(own, cells)
    finest = _finest(cells)
    if not finest:
        result.judged(None, "no other solver could walk it")
        return result
    worst = max(finest, key=lambda cell: cell["flips"])
    text = f"under {worst['label']} {percent(worst['flips'])} of the classes flip"
    if y is not None:
        text += f", accuracy goes from {percent(own or 0.0)} to {percent(worst['accuracy'])}"
    if worst["flips"] == 0:
        text = f"no class flips under {', '.join(cell['label'] for cell in finest)}"
    kinds = dict.fromkeys(c["solver"] for c in cells)
    lines = [_line(kind, [c for c in cells if c["solver"] == kind and c["flips"] is not None]) for kind in kinds]
    curves = Curves("evaluations of F", "share of classes that flip", [line for line in lines if line.x], logx=True)
    result.judged(worst["flips"] <= FLIPS, text, curves)
    return result


def _cell(model: nn.Module, x: Tensor, y: Tensor | None, trained: Tensor, walk: Mapping[str, Any]) -> dict[str, Any]:
    cell: dict[str, Any] = {k: walk.get(k) for k in ("solver", "steps", "rtol")}
    cell |= {"label": label_of(walk), "accuracy": None, "flips": None, "nfe": None, "note": ""}
    notes: list[str] = []

    def replace(block: Any) -> nn.Module:
        twin, note = rewalk(block, walk)
        notes.append(note)
        return twin

    try:
        twin = swap_blocks(model, replace)
        predicted = twin(x).argmax(1)
    except OdenetError as error:
        return cell | {"note": str(error)}
    nfe = sum(block.stats.nfe for block in blocks_of(twin))
    accuracy = None if y is None else _share(predicted == y)
    note = next(filter(None, notes), "")
    return cell | {"accuracy": accuracy, "flips": _share(predicted != trained), "nfe": nfe, "note": note}


def _share(which: Tensor) -> float:
    return float(which.to(torch.float64).mean())


def _finest(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The finest of Euler, of other fixed steps, and of adaptive solvers, as far as they could be evaluated."""
    known = [cell for cell in cells if cell["flips"] is not None]
    euler = [c for c in known if c["solver"] == "euler"]
    fixed = [c for c in known if c["solver"] != "euler" and c["steps"] is not None]
    adaptive = [c for c in known if c["steps"] is None]
    return [max(group, key=lambda c: c["nfe"]) for group in (euler, fixed, adaptive) if group]


def _line(kind: str, cells: list[dict[str, Any]]) -> Line:
    cells = sorted(cells, key=lambda c: c["nfe"])
    return Line(kind, [float(c["nfe"]) for c in cells], [c["flips"] for c in cells])
