"""Products of matrices, of which the samples are rows, columns, or what is summed over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from odenet.compiled.rowwise.values import (
    LANES,
    LATE,
    MOMENT,
    PARTIAL,
    ROW,
    SHARED,
    TALLY,
    USES_A_SUM,
    NotRowwiseError,
    Value,
    kind_of,
    loops,
)

if TYPE_CHECKING:
    from odenet.compiled.rowwise.program import Program

FEW = 16  # terms of a sum that are written out


def product(program: Program, a: Value, b: Value, start: Value | None = None) -> Value:
    """start + a b, of matrices, or of batches of matrices.

    Args:
        program: which is written to.
        a: (M, K), or (N, M, K).
        b: (K, J), or (N, K, J).
        start: (J,), or None.

    Raises:
        NotRowwiseError: the samples would be mixed.
    """
    a, b = program.rowed(a), program.rowed(b)
    if LATE in (a.kind, b.kind):
        raise NotRowwiseError(USES_A_SUM)
    if program.sums == TALLY and (a.common or b.common):
        a, b = tallied(program, a), tallied(program, b)
    if len(a.sizes) == 3:
        return _each(program, a, b)
    inner = a.sizes[1] is None or b.sizes[0] is None
    pair = {a.kind, b.kind}
    if inner or pair == {PARTIAL, ROW}:
        if start is not None:
            raise NotRowwiseError("it adds to a sum over the samples")
        if inner and (a.sizes[1] is not None or b.sizes[0] is not None or pair != {ROW}):
            raise NotRowwiseError("it takes the samples for something else")
        if None in (a.sizes[0], b.sizes[1]) or (not inner and a.batch is not b.batch):
            raise NotRowwiseError("it compares samples with each other")
        return _summed(program, a, b, inner)
    if b.lanes and not a.lanes:  # (M, K) shared times lanes: the transposed product
        turned = product(program, b.permuted((1, 0)), a.permuted((1, 0)))
        whole = turned.permuted((1, 0))
        return whole if start is None else _plus(program, whole, start)
    if b.lanes or (start is not None and start.lanes):
        total = _each(program, a, b)
        return total if start is None else _plus(program, total, start)
    return _by_lanes(program, a, b, start) if a.lanes else _shared(program, a, b, start)


def _by_lanes(program: Program, a: Value, b: Value, start: Value | None) -> Value:
    """Lanes times numbers."""
    (m, k), (_, j) = a.sizes, b.sizes
    result = program.new(a.kind, (m, j), a.backward)
    sj = start.strides[-1] if start is not None and start.sizes and start.sizes[-1] != 1 else 0
    if start is not None and math.prod(start.features[:-1]) != 1:
        return _plus(program, _by_lanes(program, a, b, None), start)
    for i in range(1 if m is None else m):
        row = a.moved(i * a.strides[0]) if m is not None else a.base
        into = result.moved(i * result.strides[0]) if m is not None else result.base
        beginning = "nullptr" if start is None else start.base
        program.write(result, [
            f"product<{k}, {j}>({row}, {a.strides[1]}, {b.base}, {b.strides[0]}, {b.strides[1]}, {beginning}, {sj}, "
            f"{into}, {result.strides[1]});"
        ])  # fmt: skip
    return result


def _shared(program: Program, a: Value, b: Value, start: Value | None) -> Value:
    """Numbers times numbers."""
    (m, k), (_, j) = a.sizes, b.sizes
    assert k is not None
    kinds = {a.kind, b.kind} | ({start.kind} if start is not None else set())
    if TALLY in kinds and (start is not None or a.kind == b.kind):
        raise NotRowwiseError(USES_A_SUM)
    kind = next((kind for kind in (TALLY, MOMENT) if kind in kinds), SHARED)
    result = program.new(kind, (m, j), kind == TALLY)
    into = result.element(("i", "j"))
    first = "T(0)" if start is None else start.element(("i", "j")[2 - len(start.sizes) :])
    heads = [f"for (long i = 0; i < {m}; i++)", '_Pragma("GCC ivdep")', f"for (long j = 0; j < {j}; j++)"]
    if k <= FEW:  # over j in registers
        terms = [f"{a.element(('i', str(n)))} * {b.element((str(n), 'j'))}" for n in range(k)]
        program.write(result, [*heads, f"{into} = {' + '.join([*([] if start is None else [first]), *terms])};"])
    else:
        total = f"sum += {a.element(('i', 'k'))} * {b.element(('k', 'j'))};"
        inner = f'_Pragma("omp simd reduction(+:sum)") for (long k = 0; k < {k}; k++) {total}'
        program.write(result, [heads[0], heads[2], f"{{ T sum = {first}; {inner} {into} = sum; }}"])
    return result


def _each(program: Program, a: Value, b: Value) -> Value:
    """A product for every lane, or for every one of a batch of matrices."""
    kinds = {a.kind, b.kind}
    if TALLY in kinds or PARTIAL in kinds:
        raise NotRowwiseError(USES_A_SUM)
    kind = next((kind for kind in (ROW, MOMENT) if kind in kinds), SHARED)
    sizes = (*(a.sizes[:-2] if a.batch is not None else b.sizes[:-2]), a.sizes[-2], b.sizes[-1])
    if sizes.count(None) > 1 or a.sizes[-1] is None or b.sizes[-2] is None:
        raise NotRowwiseError("it compares samples with each other")
    if len(sizes) == 3 and a.sizes[0] != b.sizes[0]:
        raise NotRowwiseError("it takes the samples for something else")
    result = program.new(kind, sizes, a.backward or b.backward)
    names = ("n", "i", "j")[3 - len(sizes) :]
    heads = [f"for (long {x} = 0; {x} < {s}; {x}++)" for x, s in zip(names, sizes, strict=True) if s is not None]
    lanes = LANES if result.lanes else ""
    into = result.element(names)
    left, right = a.element((*names[:-2], "i", "k")), b.element((*names[:-2], "k", "j"))
    program.write(result, [*heads, f"{lanes}{into} = T(0);"])
    program.write(result, [*heads, f"for (long k = 0; k < {a.sizes[-1]}; k++) {lanes}{into} += {left} * {right};"])
    return result


def _plus(program: Program, total: Value, start: Value) -> Value:
    from odenet.compiled.rowwise.operations import scaled

    entry = scaled("+", 1)
    backward = total.backward or start.backward
    pending = Value(kind_of([total, start], entry), total.sizes, pending=(entry, (total, start)), backward=backward)
    return program.copied(pending)


def _summed(program: Program, a: Value, b: Value, inner: bool) -> Value:
    """aᵀ-like products that sum over the samples: gathered over the steps, the longer side one after the other."""
    m, j = a.sizes[0] or 1, b.sizes[1] or 1
    if inner and program.sums == PARTIAL:
        result = program.new(PARTIAL, (m, j), True)
        product = f"{result.element(('i', 'j'))} = {a.element(('i', '0'))} * {b.element(('0', 'j'))};"
        program.write(result, [*loops([("i", m), ("j", j)]), LANES + product])
        return result
    swap = m > j
    rows, columns = (j, m) if swap else (m, j)
    late = program.sums != TALLY
    base = (program.gathered if late else program.tallies).take(m * j, False)
    s, l = (b, a) if swap else (a, b)  # noqa: E741
    s_step, l_step = (s.strides[1], l.strides[0]) if swap else (s.strides[0], l.strides[1])
    terms = 1 if inner else a.sizes[1] or 1
    lines = [] if late else [f"std::memset({base}, 0, {m * j} * sizeof(T));"]
    for k in range(terms):
        short = s.base if inner else s.moved(k * (s.strides[0] if swap else s.strides[1]))
        long = l.base if inner else l.moved(k * (l.strides[1] if swap else l.strides[0]))
        lines.append(f"outer<{rows}, {columns}>({short}, {s_step}, {long}, {l_step}, {base});")
    program.code["backward" if a.backward or b.backward else "forward"] += lines
    return Value(LATE if late else TALLY, (m, j), base, (1, columns) if swap else (columns, 1), backward=True)


def tallied(program: Program, value: Value) -> Value:
    """What is meant as a sum over the samples, as that sum."""
    if value.kind != PARTIAL:
        return value
    value = program.stored(value)
    result = program.new(TALLY, value.sizes, True)
    names = [f"i{axis}" for axis in range(len(value.sizes))]
    nest = loops([(name, size or 1) for name, size in zip(names, value.sizes, strict=True)])
    added = (
        f"{{ T sum = 0; for (long r = 0; r < R; r++) sum += {value.element(names)}; {result.element(names)} = sum; }}"
    )
    program.write(result, [*nest, added])
    return result
