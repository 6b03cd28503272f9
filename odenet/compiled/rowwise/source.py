"""The C++ of a solve: the numbers of the method, F, and the walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from odenet.compiled.rowwise.library import register_width
from odenet.compiled.rowwise.program import LANES, Program, loops
from odenet.compiled.rowwise.values import LATE, PARTIAL, ROW, NotRowwiseError, Value, stored
from odenet.solvers.control import LEAST, LEAST_ERROR, NONFINITE_RETRIES, STRETCH, Controller
from odenet.solvers.tableau import Tableau

HERE = Path(__file__).parent
INPUTS = "const T* const* __restrict p, const T* __restrict s"


def lanes_for(batch: int, dtype: torch.dtype) -> int:
    """Samples of a block: of small batches as many registers as they need, four at most."""
    register = register_width() // dtype.itemsize
    return register * min(4, max(1, -(-batch // register)))


def forward(program: Program, tableau: Tableau, lanes: int, control: tuple[Controller, int] | None) -> str:
    """C++ of the walk.

    Args:
        program: F.
        tableau: of the method.
        lanes: samples of a block.
        control: the controller and the order of the error estimate of an adaptive walk.
    """
    _written(program, program.outputs[0], stored(ROW, (None, *_features(program)), "k"))
    parts = ["#define FORWARD", *(["#define ADAPTIVE"] if control else [])]
    return "\n".join([*parts, _head(program, tableau, lanes, control), *_field(program), _walk()])


def backward(program: Program, tableau: Tableau, lanes: int) -> str:
    """C++ of the way back; the outputs of the program are F, the cotangent of the state, and gradients."""
    k, a, *gradients = program.outputs
    sizes = (None, *_features(program))
    _written(program, k, stored(ROW, sizes, "k"))
    _written(program, a, stored(ROW, sizes, "o", backward=True))
    for place, value in enumerate(gradients):
        _gathered(program, value, place)
    head = _head(program, tableau, lanes, None)
    code = [
        *_field(program),
        f"NOINLINE static void backward({INPUTS}, const T* __restrict t, const T* __restrict x, const T* __restrict w, "
        "const T* __restrict a, T* __restrict b, T* __restrict o, T* __restrict g) {",
        *program.code["backward"],
        "}",
        f"NOINLINE static void finish({INPUTS}, const T* g, T* l, T* const* d) {{",
        *program.code["finish"],
        "}",
    ]
    return "\n".join(["#define BACKWARD", head, *code, _walk()])


def _features(program: Program) -> tuple[int, ...]:
    value = next(value for value in program.inputs if value is not None and value.base == "x")
    return value.features


def _written(program: Program, value: Value | None, place: Value) -> None:
    if value is None or value.kind not in (ROW, "shared") or len(value.sizes) > len(place.sizes):
        raise NotRowwiseError("its result is no state")
    program.copy(value, place)


def _gathered(program: Program, value: Value | None, place: int) -> None:
    """A gradient, summed over samples and steps."""
    if value is None:
        return
    if value.kind == PARTIAL:
        value = program.stored(value)
        total = stored(PARTIAL, value.sizes, program.lane_sums.take(value.count, True))
        names = [f"i{axis}" for axis in range(len(value.sizes))]
        nest = loops([(name, size or 1) for name, size in zip(names, value.sizes, strict=True)])
        program.code["backward"] += [*nest, f"{LANES}{total.element(names)} += {value.element(names)};"]
        into = stored(LATE, value.sizes, f"d[{place}]")
        ending = f"{{ T sum = 0; {LANES}sum += {total.element(names)}; {into.element(names)} = sum; }}"
        program.code["finish"] += [*nest, ending]
    elif value.kind == LATE or value.number:
        program.copy(value, stored(LATE, value.sizes, f"d[{place}]"))
    else:
        raise NotRowwiseError("a gradient is no sum over the samples")


def _field(program: Program) -> list[str]:
    return [
        "NOINLINE static void prepare(const T* const* __restrict p, T* __restrict s) {",
        *program.code["prepare"],
        "}",
        f"NOINLINE static void forward({INPUTS}, const T* __restrict t, const T* __restrict x, T* __restrict w, "
        "T* __restrict k) {",
        *program.code["forward"],
        "}",
    ]


def _head(program: Program, tableau: Tableau, lanes: int, control: tuple[Controller, int] | None) -> str:
    s = tableau.stages
    two = tableau.b_coarse is not None
    lines = [
        f"typedef {'float' if program.dtype == torch.float32 else 'double'} T;",
        f"#define R {lanes}L",
        f"#define WIDTH {register_width()}",
        "#include <omp.h>",
        (HERE / "kernels.h").read_text(),
        f"constexpr long D = {math.prod(_features(program))}, S = {s}, USED = {tableau.used}, ORDER = {tableau.order};",
        f"constexpr long KEPT_SIZE = {program.kept.size}, SCRATCH_SIZE = {program.scratch.size}, "
        f"SHARED_SIZE = {program.shared.size}, LATE_SIZE = {program.late.size}, SUMS_OF_NUMBERS = {program.sums.size}, "
        f"SUMS_SIZE = SUMS_OF_NUMBERS + {program.lane_sums.size} * R;",
        f"constexpr bool FSAL = {str(tableau.fsal).lower()}, TWO_ESTIMATES = {str(two).lower()};",
        f"constexpr double A[S][S] = {{{', '.join(_row(row, s) for row in tableau.a)}}};",
        f"constexpr double B[S] = {_row(tableau.b, s)}, C[S] = {_row(tableau.c, s)};",
        f"constexpr double E[S] = {_row(tableau.b_error or (), s)}, E2[S] = {_row(tableau.b_coarse or (), s)};",
        *_dense(tableau),
    ]
    if control is not None:
        controller, order = control
        betas = ", ".join(f"BETA{i + 1} = {beta / order!r}" for i, beta in enumerate(controller.exponents))
        lines += [
            f"constexpr double SAFETY = {controller.safety!r}, SHRINK = {controller.shrink!r}, "
            f"GROW = {controller.grow!r}, {betas}, ORDER_OF_ERROR = {order}, RETRIES = {NONFINITE_RETRIES}, "
            f"STRETCH = {STRETCH!r}, LEAST = {LEAST!r}, LEAST_ERROR = {LEAST_ERROR!r};"
        ]
    return "\n".join(lines)


def _dense(tableau: Tableau) -> list[str]:
    rows = tableau.dense or ()
    fits = rows and not tableau.dense_c and len(rows) <= tableau.stages
    lines = ["static inline void dense(double theta, double* weights) {"]
    for i in range(tableau.stages):
        row = rows[i] if fits and i < len(rows) else ()
        total = "0.0"
        for coefficient in reversed(row):
            total = f"theta * ({coefficient!r} + {total})"
        lines.append(f"weights[{i}] = {total};")
    return [*lines, "}"]


def _row(numbers: Sequence[float], length: int) -> str:
    return "{" + ", ".join(repr(float(n)) for n in (*numbers, *[0.0] * (length - len(numbers)))) + "}"


def _walk() -> str:
    return (HERE / "walk.h").read_text()
