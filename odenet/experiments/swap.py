"""The solver-swap matrix: a trained network, its weights untouched, under other solvers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from odenet.blocks import Block, blocks_of
from odenet.data import DataSet
from odenet.depth import reestimate_statistics
from odenet.errors import OdenetError
from odenet.models.swap import label_of, rewalk, swap_blocks
from odenet.solvers import Scheme
from odenet.training import Evaluation, evaluate, objective_of

Cell = dict[str, Any]


def trained_with(scheme: Scheme, walk: Mapping[str, Any]) -> bool:
    """Whether a walk is the one that a scheme describes: same method, same steps or tolerances, same weights."""
    if walk.get("pieces") is not None or walk["solver"] != scheme.solver or walk.get("steps") != scheme.steps:
        return False
    if scheme.steps is not None:
        return True
    return (walk.get("rtol"), walk.get("atol")) == scheme.tolerances


def swap_matrix(
    model: nn.Module,
    data: DataSet,
    trained: Evaluation,
    walks: Sequence[Mapping[str, Any]],
    batch_size: int,
    done: Callable[[int, int], None] = lambda number, total: None,
) -> list[Cell]:
    """Accuracy, flips and NFE of `model` on the test set under each walk.

    Args:
        model: the trained model.
        data: where the test set comes from.
        trained: its evaluation under the solver it was trained with.
        walks: solvers to try, each with solver, and steps or rtol and atol; with pieces, the weights are refined or
            coarsened to as many first.
        batch_size: samples in a forward pass.
        done: called after each walk with its number, from 1, and how many there are.

    Returns:
        One cell for each walk; `accuracy`, `flips` and `nfe` are None where the walk failed, and `note` says why.
        `flips` is the share of test samples whose class is not the one they had under the training solver (in a
        regression, whose prediction moved by more than the tolerance).
    """
    blocks, same = blocks_of(model), objective_of(data).same
    cells = []
    for number, walk in enumerate(walks, start=1):
        cell: Cell = {key: walk.get(key) for key in ("solver", "steps", "pieces", "rtol", "atol")}
        cell |= {"label": label_of(walk), "accuracy": None, "flips": None, "nfe": None}
        cell |= {"trained": all(trained_with(b.scheme, walk) for b in blocks), "note": ""}
        try:
            result, cell["note"] = evaluate_walk(model, data, walk, batch_size)
            flips = (~same(result.predictions, trained.predictions)).double().mean().item()
            cell |= {"accuracy": result.accuracy, "flips": flips, "nfe": result.nfe}
        except OdenetError as error:
            cell["note"] = str(error)
        cells.append(cell)
        done(number, len(walks))
    return cells


def evaluate_walk(
    model: nn.Module, data: DataSet, walk: Mapping[str, Any], batch_size: int, reestimate: bool = False
) -> tuple[Evaluation, str]:
    """Evaluate `model` on the test set with its blocks walked another way; also a note on what was left out.

    Args:
        model: the trained model; nothing in it is changed.
        data: where the test set comes from.
        walk: solver, steps or rtol and atol, backend, and pieces.
        batch_size: samples in a forward pass.
        reestimate: whether running statistics of norms are estimated anew, on the training set under this walk.

    Raises:
        InputError: a walk that a block cannot take.
        SolveError: a solve broke down.
    """
    notes: list[str] = []

    def replace(block: Block) -> nn.Module:
        twin, note = rewalk(block, walk)
        notes.append(note)
        return twin

    twin = swap_blocks(model, replace)
    if reestimate:
        twin = copy.deepcopy(twin)
        reestimate_statistics(twin, (data.prepare(x) for x in data.train_x.split(batch_size)))
    how = {"batch_size": batch_size, "prepare": data.prepare, "objective": objective_of(data)}
    result = evaluate(twin, data.test_x, data.test_y, **how)
    return result, next(filter(None, notes), "")
