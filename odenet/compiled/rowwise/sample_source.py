"""The C++ of a solve in which every sample has its own steps: the numbers of the method, F, and the walk in lanes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from odenet.compiled.rowwise.library import register_width
from odenet.compiled.rowwise.program import Program
from odenet.compiled.rowwise.source import backward_code, forward_code, whole
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
    """C++ of the walk; arguments as for `odenet.compiled.rowwise.source.forward`."""
    parts, code = forward_code(program, inputs, tableau, control)
    if control:
        code.append(f"constexpr double LEVEL = {math.log(LEAST_ERROR)!r};")
    steps = "lanes_adaptive.h" if control else "lanes_fixed.h"
    return whole(
        program, parts, lanes_of(program.dtype), code, FILES, ["lanes.h", "lanes_forward.h", steps, "lanes_walk.h"]
    )


def backward(program: Program, inputs: Sequence[int], wanted: Sequence[int], tableau: Tableau) -> str:
    """C++ of the way back; arguments as for `odenet.compiled.rowwise.source.backward`."""
    code = backward_code(program, inputs, wanted, tableau)
    return whole(program, ["BACKWARD"], lanes_of(program.dtype) // 2, code, FILES, ["lanes.h", "lanes_back.h"])
