"""The C++ of a solve in which every sample has its own steps: the numbers of the method, F, and the walk in lanes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from odenet.compiled.rowwise.library import register_width
from odenet.compiled.rowwise.program import Program
from odenet.compiled.rowwise.source import (
    backward_code,
    controller_of,
    features_of,
    field_of,
    method_of,
    rows_of,
    whole,
    write_result,
)
from odenet.compiled.rowwise.values import ROW, stored
from odenet.solvers.control import LEAST_ERROR, Controller
from odenet.solvers.tableau import Tableau

FILES = ("functions.h", "samples.h", "kernels.h")


def lanes_of(dtype: torch.dtype) -> int:
    """Samples of a block on the way, two registers: operations that wait for each other take turns. The way back, which
    keeps the stages of a step, goes over half as many, which the cache holds.

    It is the same number for every batch, so that a sample's numbers are the same to the last bit in any.
    """
    return 2 * register_width() // dtype.itemsize


def forward(program: Program, inputs: Sequence[int], tableau: Tableau, control: tuple[Controller, int] | None) -> str:
    """C++ of the walk.

    Args:
        program: F.
        inputs: for each input of F beside time and state how many numbers of it a sample has, 0 if it is shared.
        tableau: of the method.
        control: the controller and the order of the error estimate of an adaptive walk.
    """
    write_result(program, program.outputs[0], stored(ROW, (None, *features_of(program)), "k"))
    level = [f"constexpr double LEVEL = {math.log(LEAST_ERROR)!r};"]
    code = [*method_of(program, tableau), *controller_of(control), *(level if control else ()), *rows_of(inputs)]
    parts = ["FORWARD", "ADAPTIVE"] if control else ["FORWARD"]
    code += field_of(program)
    return whole(program, parts, lanes_of(program.dtype), code, FILES, ["lanes.h", "lanes_walk.h"])


def backward(program: Program, inputs: Sequence[int], wanted: Sequence[int], tableau: Tableau) -> str:
    """C++ of the way back; the outputs of the program are F, the cotangent of the state, and gradients.

    Args:
        program: F and its vector-Jacobian product.
        inputs: as for `forward`.
        wanted: whose gradients they are, by their number among the inputs.
        tableau: of the method.
    """
    code = backward_code(program, inputs, wanted, tableau)
    return whole(program, ["BACKWARD"], lanes_of(program.dtype) // 2, code, FILES, ["lanes.h", "lanes_back.h"])
