"""The C++ of a solve in which every sample has its own steps: the numbers of the method, F, and the walk in lanes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from odenet.compiled.rowwise.library import register_width
from odenet.compiled.rowwise.program import Memory, Program, loops
from odenet.compiled.rowwise.source import (
    controller_of,
    features_of,
    field_of,
    gather,
    method_of,
    text,
    write_result,
)
from odenet.compiled.rowwise.values import LANES, ROW, NotRowwiseError, Value, stored
from odenet.solvers.control import LEAST_ERROR, Controller
from odenet.solvers.tableau import Tableau


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
    code = [*method_of(program, tableau), *controller_of(control), *(level if control else ()), *_rows(inputs)]
    parts = ["FORWARD", "ADAPTIVE"] if control else ["FORWARD"]
    return _whole(program, parts, lanes_of(program.dtype), [*code, *field_of(program)], ["lanes.h", "lanes_walk.h"])


def backward(program: Program, inputs: Sequence[int], wanted: Sequence[int], tableau: Tableau) -> str:
    """C++ of the way back; the outputs of the program are F, the cotangent of the state, and gradients.

    Args:
        program: F and its vector-Jacobian product.
        inputs: as for `forward`.
        wanted: whose gradients they are, by their number among the inputs.
        tableau: of the method.
    """
    k, a, *gradients = program.outputs
    sizes = (None, *features_of(program))
    write_result(program, k, stored(ROW, sizes, "k"))
    write_result(program, a, stored(ROW, sizes, "o", backward=True))
    sums, rows = Memory("(g + ROWS_AT)"), []
    for place, (number, value) in enumerate(zip(wanted, gradients, strict=True)):
        if inputs[number]:
            rows.append((place, sums.size, inputs[number]))
            _summed(program, value, sums)
        else:
            gather(program, value, place)
    listed = [", ".join(str(row[i]) for row in rows) or "0" for i in range(3)]
    code = [
        *method_of(program, tableau),
        *_rows(inputs),
        f"constexpr long LANE_SUMS = {program.lane_sums.size}, ROW_SUMS = {sums.size}, ROW_GRADIENTS = {len(rows)};",
        f"constexpr long ROW_PLACE[] = {{{listed[0]}}}, ROW_START[] = {{{listed[1]}}}, ROW_COUNT[] = {{{listed[2]}}};",
        "constexpr long ROWS_AT = SUMS_OF_NUMBERS + LANE_SUMS * R, SUMS_AND_ROWS = ROWS_AT + ROW_SUMS * R;",
        *field_of(program, backward=True),
    ]
    return _whole(program, ["BACKWARD"], lanes_of(program.dtype) // 2, code, ["lanes.h", "lanes_back.h"])


def _summed(program: Program, value: Value | None, sums: Memory) -> None:
    """A gradient of what each sample has a row of, summed over its steps."""
    if value is None:
        raise NotRowwiseError("a gradient is missing")
    value = program.rowed(value)
    if value.kind != ROW or value.batch is None:
        raise NotRowwiseError("the gradient of a sample's row is none")
    total = stored(ROW, value.sizes, sums.take(value.count, True))
    names = [f"i{axis}" if size is not None else "0" for axis, size in enumerate(value.sizes)]
    nest = loops([(f"i{axis}", size) for axis, size in enumerate(value.sizes) if size is not None])
    program.code["backward"] += [*nest, f"{LANES}{total.element(names)} += {value.element(names)};"]


def _rows(inputs: Sequence[int]) -> list[str]:
    listed = ", ".join(map(str, inputs)) or "0"
    return [f"constexpr long INPUTS = {len(inputs)}, ROWS_SIZE = {sum(inputs)}, ROWS[] = {{{listed}}};"]


def _whole(program: Program, parts: Sequence[str], lanes: int, code: Sequence[str], files: Sequence[str]) -> str:
    lines = [
        *(f"#define {part}" for part in parts),
        f"typedef {'float' if program.dtype == torch.float32 else 'double'} T;",
        f"#define WIDTH {register_width()}",
        f"#define R {lanes}L",
        *map(text, ("functions.h", "samples.h", "kernels.h")),
        *code,
        *map(text, files),
    ]
    return "\n".join(lines)
