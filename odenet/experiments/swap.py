"""The solver-swap matrix: a trained network, its weights untouched, under other solvers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from odenet.blocks import Block, ODEBlock, blocks_of
from odenet.data import DataSet
from odenet.depth import DepthWeights, PiecewiseConstant, reestimate_statistics
from odenet.errors import InputError, OdenetError
from odenet.models import swap_blocks
from odenet.solvers import Scheme
from odenet.training import Evaluation, evaluate

Cell = dict[str, Any]


def label_of(walk: Mapping[str, Any]) -> str:
    """A solver as a column's heading: "Euler 8", "dopri5 1e-3"."""
    name = "Euler" if walk["solver"] == "euler" else walk["solver"]
    if walk.get("steps") is not None:
        return f"{name} {walk['steps']}"
    rtol = walk.get("rtol")
    return name if rtol is None else f"{name} {rtol:.0e}".replace("e-0", "e-")


def rewalk(block: Block, walk: Mapping[str, Any]) -> tuple[Block, str]:
    """A block that shares its weights with `block` and walks them another way.

    Untied weights walked with fewer steps than layers keep every k-th layer: Euler with the weights read at the start
    of each step.

    Args:
        block: the block as trained.
        walk: solver, steps or rtol and atol, and backend.

    Returns:
        The new block, and a note on what was left out, if anything.

    Raises:
        InputError: a walk that this block cannot take.
    """
    weights, note = block.weights, ""
    steps = walk.get("steps")
    if steps is not None and weights.pieces > 1 and steps < weights.pieces:
        weights, note = _every(weights, steps)
    return ODEBlock(weights, t0=block.t0, t1=block.t1, gradient="autograd", **walk), note


def _every(weights: DepthWeights, steps: int) -> tuple[DepthWeights, str]:
    if not isinstance(weights, PiecewiseConstant) or weights.pieces % steps:
        raise InputError(f"{weights.pieces} layers cannot be walked in {steps} steps: {steps} does not divide them")
    stride = weights.pieces // steps
    return weights.every(stride), f"every {stride}{'nd' if stride == 2 else 'th'} layer"


def trained_with(scheme: Scheme, walk: Mapping[str, Any]) -> bool:
    """Whether a walk is the one that a scheme describes: same method, same steps or tolerances."""
    if walk["solver"] != scheme.solver or walk.get("steps") != scheme.steps:
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
        walks: solvers to try, each with solver, and steps or rtol and atol.
        batch_size: samples in a forward pass.
        done: called after each walk with its number, from 1, and how many there are.

    Returns:
        One cell for each walk; `accuracy`, `flips` and `nfe` are None where the walk failed, and `note` says why.
        `flips` is the share of test samples whose class is not the one they had under the training solver.
    """
    blocks = blocks_of(model)
    cells = []
    for number, walk in enumerate(walks, start=1):
        cell: Cell = {key: walk.get(key) for key in ("solver", "steps", "rtol", "atol")}
        cell |= {"label": label_of(walk), "accuracy": None, "flips": None, "nfe": None}
        cell |= {"trained": all(trained_with(b.scheme, walk) for b in blocks), "note": ""}
        try:
            result, cell["note"] = evaluate_walk(model, data, walk, batch_size)
            flips = (result.predictions != trained.predictions).double().mean().item()
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
        walk: solver, steps or rtol and atol, and backend.
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
    result = evaluate(twin, data.test_x, data.test_y, batch_size=batch_size, prepare=data.prepare)
    return result, next(filter(None, notes), "")
