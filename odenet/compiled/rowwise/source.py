"""The C++ of a solve: the numbers of the method, F, and the walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from odenet.compiled.rowwise.library import register_width
from odenet.compiled.rowwise.program import Memory, Program
from odenet.compiled.rowwise.values import LANES, LATE, PARTIAL, ROW, TALLY, NotRowwiseError, Value, loops, stored
from odenet.solvers.control import LEAST, LEAST_ERROR, NONFINITE_RETRIES, STRETCH, Controller
from odenet.solvers.tableau import Tableau

HERE = Path(__file__).parent
INPUTS = "const T* const* __restrict p, const T* __restrict s"
TIMED = f"{INPUTS}, const T* __restrict m, const T* __restrict t, const T* __restrict x"


def forward(program: Program, inputs: Sequence[int], tableau: Tableau, control: tuple[Controller, int] | None) -> str:
    """C++ of the walk.

    Args:
        program: F.
        inputs: for each input of F beside time and state how many numbers of it a sample has, 0 if it is shared.
        tableau: of the method.
        control: the controller and the order of the error estimate of an adaptive walk.
    """
    parts, code = forward_code(program, inputs, tableau, control)
    return whole(program, parts, _lanes(program), code, ["functions.h", "kernels.h"], ["walk.h"])


def forward_code(
    program: Program, inputs: Sequence[int], tableau: Tableau, control: tuple[Controller, int] | None
) -> tuple[list[str], list[str]]:
    """Which parts of the files the walk asks for, and what it needs of method and F; arguments as for `forward`."""
    write_result(program, program.outputs[0], stored(ROW, (None, *features_of(program)), "k"))
    parts = ["FORWARD", "ADAPTIVE"] if control else ["FORWARD"]
    return parts, [*method_of(program, tableau), *controller_of(control), *rows_of(inputs), *field_of(program)]


def backward(program: Program, inputs: Sequence[int], wanted: Sequence[int], tableau: Tableau) -> str:
    """C++ of the way back; the outputs of the program are F, the cotangent of the state, and gradients.

    Args:
        program: F and its vector-Jacobian product.
        inputs: as for `forward`.
        wanted: whose gradients they are, by their number among the inputs.
        tableau: of the method.
    """
    code = backward_code(program, inputs, wanted, tableau)
    return whole(program, [], _lanes(program), code, ["functions.h", "kernels.h"], ["walk.h", "walk_back.h"])


def backward_code(program: Program, inputs: Sequence[int], wanted: Sequence[int], tableau: Tableau) -> list[str]:
    """What the way back needs of the method and of F; arguments as for `backward`."""
    k, a, *gradients = program.outputs
    sizes = (None, *features_of(program))
    write_result(program, k, stored(ROW, sizes, "k"))
    write_result(program, a, stored(ROW, sizes, "o", backward=True))
    sums = gradients_of(program, gradients, inputs, wanted)
    return [*method_of(program, tableau), *rows_of(inputs), *sums, *field_of(program, backward=True)]


def whole(
    program: Program, parts: Sequence[str], lanes: int, code: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> str:
    """A source: what is asked of its files, the samples of a block, and the code between those before and after it."""
    lines = [
        *(f"#define {part}" for part in parts),
        f"typedef {'float' if program.dtype == torch.float32 else 'double'} T;",
        f"#define WIDTH {register_width()}",
        f"#define R {lanes}L",
        *map(text, before),
        *code,
        *map(text, after),
    ]
    return "\n".join(lines)


def _lanes(program: Program) -> int:
    """Samples of a block: as many as fill a register."""
    return register_width() // program.dtype.itemsize


def features_of(program: Program) -> tuple[int, ...]:
    """Sizes of a sample's state."""
    value = next(value for value in program.inputs if isinstance(value, Value) and value.base == "x")
    return value.features


def write_result(program: Program, value: Value | None, place: Value) -> None:
    """What F gives, to where it is wanted."""
    if value is None or not (value.kind == ROW or value.common) or len(value.sizes) > len(place.sizes):
        raise NotRowwiseError("its result is no state")
    program.copy(value, place)


def rows_of(inputs: Sequence[int]) -> list[str]:
    """How much of each input a sample has."""
    listed = ", ".join(map(str, inputs)) or "0"
    return [f"constexpr long INPUTS = {len(inputs)}, ROWS_SIZE = {sum(inputs)}, ROWS[] = {{{listed}}};"]


def gradients_of(
    program: Program, gradients: Sequence[Value | None], inputs: Sequence[int], wanted: Sequence[int]
) -> list[str]:
    """Gather gradients: of what is shared over samples and steps, of a sample's rows over its steps."""
    sums, rows = Memory("(g + ROWS_AT)"), []
    for place, (number, value) in enumerate(zip(wanted, gradients, strict=True)):
        if inputs[number]:
            rows.append((place, sums.size, inputs[number]))
            _gather_rows(program, value, sums)
        else:
            _gather(program, value, place)
    listed = [", ".join(str(row[i]) for row in rows) or "0" for i in range(3)]
    return [
        f"constexpr long LANE_SUMS = {program.lane_sums.size}, ROW_SUMS = {sums.size}, ROW_GRADIENTS = {len(rows)};",
        f"constexpr long ROW_PLACE[] = {{{listed[0]}}}, ROW_START[] = {{{listed[1]}}}, ROW_COUNT[] = {{{listed[2]}}};",
        "constexpr long ROWS_AT = SUMS_OF_NUMBERS + LANE_SUMS * R, SUMS_SIZE = ROWS_AT + ROW_SUMS * R;",
    ]


def _gather(program: Program, value: Value | None, place: int) -> None:
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
        ending = (
            f"{{ T sum = 0; for (long r = 0; r < R; r++) sum += {total.element(names)}; {into.element(names)} = sum; }}"
        )
        program.code["finish"] += [*nest, ending]
    elif value.kind == TALLY:
        total = stored(LATE, value.sizes, program.gathered.take(value.count, False))
        names, body = [f"i{axis}" for axis in range(len(value.sizes))], list[str]()
        nest = loops([(name, size or 1) for name, size in zip(names, value.sizes, strict=True)])
        added = program.expression(value, names, body, {})
        program.code["backward"] += [*nest, f"{{ {' '.join(body)} {total.element(names)} += {added}; }}"]
        program.copy(total, stored(LATE, value.sizes, f"d[{place}]"))
    elif value.kind == LATE or value.number:
        program.copy(value, stored(LATE, value.sizes, f"d[{place}]"))
    else:
        raise NotRowwiseError("a gradient is no sum over the samples")


def _gather_rows(program: Program, value: Value | None, sums: Memory) -> None:
    if value is None:
        raise NotRowwiseError("a gradient is missing")
    value = program.rowed(value)
    if value.kind != ROW or value.batch is None:
        raise NotRowwiseError("the gradient of a sample's row is none")
    total = stored(ROW, value.sizes, sums.take(value.count, True))
    names = [f"i{axis}" if size is not None else "0" for axis, size in enumerate(value.sizes)]
    nest = loops([(f"i{axis}", size) for axis, size in enumerate(value.sizes) if size is not None])
    program.code["backward"] += [*nest, f"{LANES}{total.element(names)} += {value.element(names)};"]


def field_of(program: Program, backward: bool = False) -> list[str]:
    """F as functions of a block of lanes; with what its vector-Jacobian product is, if asked for."""
    code = [
        "NOINLINE static void prepare(const T* const* __restrict p, T* __restrict s) {",
        *program.code["prepare"],
        "}",
        f"NOINLINE static void moment({INPUTS}, const T* __restrict t, T* __restrict m) {{",
        *program.code["moment"],
        "}",
        f"NOINLINE static void forward({TIMED}, T* __restrict w, T* __restrict k) {{",
        *program.code["forward"],
        "}",
    ]
    if not backward:
        return code
    return [
        *code,
        f"NOINLINE static void backward({TIMED}, const T* __restrict w, const T* __restrict a, T* __restrict b, "
        "T* __restrict o, T* __restrict g) {",
        *program.code["backward"],
        "}",
        f"NOINLINE static void finish({INPUTS}, const T* g, T* l, T* const* d) {{",
        *program.code["finish"],
        "}",
    ]


def method_of(program: Program, tableau: Tableau) -> list[str]:
    """The numbers of a method, and how much memory F works in."""
    s, used, two = tableau.stages, tableau.used, tableau.b_coarse is not None
    rows, slopes = dense_rows(tableau), [*tableau.a, *([tableau.b] if s == used else [])]
    whole, c = len(slopes), [*tableau.c, 1][: len(slopes)]
    return [
        f"constexpr long D = {math.prod(features_of(program))}, S = {s}, USED = {used}, ORDER = {tableau.order};",
        f"constexpr long L = {whole}, SLOPES = {len(rows)};  // with F(t + h, x+); in the dense output",
        f"constexpr long KEPT_SIZE = {program.kept.size}, SCRATCH_SIZE = {program.scratch.size}, "
        f"SHARED_SIZE = {program.shared.size}, LATE_SIZE = {program.late.size};",
        f"constexpr long SUMS_OF_NUMBERS = {program.gathered.size}, MOMENT_SIZE = {program.moments.size}, "
        f"BACK_SIZE = SCRATCH_SIZE * R + {program.tallies.size};",
        f"constexpr bool FSAL = {str(tableau.fsal).lower()}, TWO_ESTIMATES = {str(two).lower()};",
        f"constexpr double A[L][L] = {{{', '.join(_row(row, whole) for row in slopes)}}};",
        f"constexpr double B[L] = {_row(tableau.b, whole)}, C[L] = {_row(c, whole)};",
        f"constexpr double E[S] = {_row(tableau.b_error or (), s)}, E2[S] = {_row(tableau.b_coarse or (), s)};",
        *_dense(rows, whole),
    ]


def controller_of(control: tuple[Controller, int] | None) -> list[str]:
    """The numbers by which steps are picked."""
    if control is None:
        return []
    controller, order = control
    betas = ", ".join(f"BETA{i + 1} = {beta / order!r}" for i, beta in enumerate(controller.exponents))
    return [
        f"constexpr double SAFETY = {controller.safety!r}, SHRINK = {controller.shrink!r}, "
        f"GROW = {controller.grow!r}, LEAST_FACTOR = {controller.least!r}, {betas}, "
        f"ORDER_OF_ERROR = {order}, RETRIES = {NONFINITE_RETRIES}, "
        f"STRETCH = {STRETCH!r}, LEAST = {LEAST!r}, LEAST_ERROR = {LEAST_ERROR!r};"
    ]


def dense_rows(tableau: Tableau) -> list[Sequence[float]]:
    """`Tableau.dense`, or the same rows for cubic Hermite interpolation; none if it needs further stages.

    x + θ²(3 - 2θ)(x⁺ - x) + hθ(1 - θ)² F(t, x) - hθ²(1 - θ) F(t + h, x⁺), with x⁺ - x = h Σ_i b_i k_i.
    """
    if tableau.dense_c:
        return []
    if tableau.dense is not None:
        return list(tableau.dense)
    first, *later = ((0.0, 3 * b, -2 * b) for b in tableau.b[: tableau.used])
    return [(1.0, first[1] - 2, first[2] + 1), *later, (0.0, -1.0, 1.0)]


def _dense(rows: Sequence[Sequence[float]], length: int) -> list[str]:
    """The weights of stages and F(t + h, x⁺) at θ."""
    lines = ["static inline void dense(double theta, double* weights) {"]
    for i in range(length):
        total = "0.0"
        for coefficient in reversed(rows[i] if i < len(rows) else ()):
            total = f"theta * ({coefficient!r} + {total})"
        lines.append(f"weights[{i}] = {total};")
    return [*lines, "}"]


def _row(numbers: Sequence[float], length: int) -> str:
    return "{" + ", ".join(repr(float(n)) for n in (*numbers, *[0.0] * (length - len(numbers)))) + "}"


def text(name: str) -> str:
    """A file of C++."""
    return (HERE / name).read_text()
