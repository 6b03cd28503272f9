"""Triton kernels of what lies between the evaluations of F; `odenet.compiled.captured.fused` says what they compute.

Numbers are read from float64 tensors, since Triton takes a float argument, and may take a literal, for one of float32.
All tensors of a state's shape lie in memory alike, so that their elements are counted as they lie.
"""

# pyright: basic, reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combine(out, x, size, weights, terms, n, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """x + h Σ w_i k_i; without x, h Σ w_i k_i; without h, it is 1.

    Args:
        out: the result, which may be x.
        x: a state or None.
        size: h in the state's precision, or None.
        weights: w_i, float64.
        terms: k_i.
        n: elements.
        COUNT: how many terms.
        BLOCK: elements that a program has.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < n
    k = tl.load(terms[0] + at, mask=there)
    total = k * tl.load(weights).to(k.dtype)
    for i in tl.static_range(1, COUNT):
        total += tl.load(terms[i] + at, mask=there) * tl.load(weights + i).to(k.dtype)
    if size is not None:
        total = total * tl.load(size)
    if x is not None:
        total = tl.load(x + at, mask=there) + total
    tl.store(out + at, total, mask=there)


@triton.jit
def points(times, size, span, c, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """t + c h, and t_next where c = 1, for COUNT abscissae; and h; in the state's precision."""
    i = tl.arange(0, WIDTH)
    t, t_next, h = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    at = tl.load(c + i, mask=i < COUNT, other=0.0)
    one = tl.full((), 1.0, tl.float64)
    values = tl.where(at == one, t_next, t + at * h)
    tl.store(times + i, values.to(times.dtype.element_ty), mask=i < COUNT)
    tl.store(size, h.to(size.dtype.element_ty))


@triton.jit
def locate(n, slot, span, grid, sizes):
    """(t, t_next, h) of step n of a grid; n moves on."""
    at = tl.load(n)
    tl.store(slot, at)
    tl.store(span, tl.load(grid + at))
    tl.store(span + 1, tl.load(grid + at + 1))
    tl.store(span + 2, tl.load(sizes + at))
    tl.store(n, at + 1)


@triton.jit
def plan(ledger, given, constants, span, landing, active, ROWS: tl.constexpr):
    """The next trial, as `arithmetic.planned` has it."""
    n, t, h = tl.load(ledger), tl.load(ledger + 1), tl.load(ledger + 2)
    tries, bad = tl.load(ledger + 5), tl.load(ledger + 7)
    t1, sign = tl.load(given), tl.load(given + 1)
    h_min, h_max, resolution, budget = tl.load(given + 4), tl.load(given + 5), tl.load(given + 6), tl.load(given + 7)
    stretch, retries = tl.load(constants), tl.load(constants + 1)
    h = tl.where(h < h_min, h_min, h)  # keeps NaN
    h = tl.where(h > h_max, h_max, h)
    left = tl.abs(t1 - t)
    lands = (h >= left) | ((h * stretch >= left) & (left <= h_max + resolution))
    t_next = tl.where(lands, t1, t + sign * h)
    goes_on = (bad <= retries) & (tries < budget) & (tl.abs(t_next - t) > resolution)
    going = (t != t1) & (n < ROWS) & goes_on
    t_next = tl.where(going, t_next, t)
    tl.store(span, t)
    tl.store(span + 1, t_next)
    tl.store(span + 2, t_next - t)
    tl.store(landing, h)
    tl.store(landing + 1, lands.to(tl.float64))
    tl.store(active, going.to(tl.float64))


@triton.jit
def sums(
    partial, x, x_next, size, given, fine, fine_terms, coarse, coarse_terms, n,
    FINE: tl.constexpr, COARSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of (h Σ w_i k_i / weight)², of one or two error estimates, one of each for every program."""
    here = tl.program_id(0)
    at = here.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < n
    old, new = tl.load(x + at, mask=there), tl.load(x_next + at, mask=there)
    largest = tl.where(tl.abs(new) > tl.abs(old), tl.abs(new), tl.abs(old))
    largest = tl.where(new != new, new, largest)  # NaN is to be seen
    rtol, atol = tl.load(given + 2).to(old.dtype), tl.load(given + 3).to(old.dtype)
    weight = atol + rtol * largest
    h = tl.load(size)
    error = tl.load(fine_terms[0] + at, mask=there) * tl.load(fine).to(old.dtype)
    for i in tl.static_range(1, FINE):
        error += tl.load(fine_terms[i] + at, mask=there) * tl.load(fine + i).to(old.dtype)
    error = tl.where(there, h * error / weight, 0.0)
    tl.store(partial + 2 * here, tl.sum(error * error).to(tl.float64))
    if COARSE > 0:
        error = tl.load(coarse_terms[0] + at, mask=there) * tl.load(coarse).to(old.dtype)
        for i in tl.static_range(1, COARSE):
            error += tl.load(coarse_terms[i] + at, mask=there) * tl.load(coarse + i).to(old.dtype)
        error = tl.where(there, h * error / weight, 0.0)
        tl.store(partial + 2 * here + 1, tl.sum(error * error).to(tl.float64))


@triton.jit
def judge(
    ledger, given, constants, span, landing, active, partial, count, elements, verdict,
    COARSE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Accept or reject, pick the next h, write the record of times, as `arithmetic.judged` has it.

    Args:
        constants: stretch, retries, safety, least, grow, shrink, -β_1/q, -β_2/q, -β_3/q, -1/q, smallest E, smallest
            past E, 1/100.
        partial: of `sums`, of `count` programs.
        elements: of a state, float64.
        verdict: whether the step is accepted, and the row of the record for it.
    """
    i = tl.arange(0, BLOCK)
    fine = tl.zeros((BLOCK,), tl.float64)
    coarse = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        fine += tl.load(partial + 2 * (first + i), mask=first + i < count, other=0.0)
        if COARSE > 0:
            coarse += tl.load(partial + 2 * (first + i) + 1, mask=first + i < count, other=0.0)
    size = tl.load(elements)
    squared = tl.sum(fine) / size
    error = tl.sqrt(squared)
    if COARSE > 0:
        both = tl.sqrt(squared + tl.sum(coarse) / size * tl.load(constants + 12))
        error = tl.where(error == 0, error, error * (error / both))
    n, t, e1, e2 = tl.load(ledger), tl.load(ledger + 1), tl.load(ledger + 3), tl.load(ledger + 4)
    h_held, tries, forced, bad = tl.load(ledger + 2), tl.load(ledger + 5), tl.load(ledger + 6), tl.load(ledger + 7)
    h_min, h, lands = tl.load(given + 4), tl.load(landing), tl.load(landing + 1) != 0
    t_next, signed, going = tl.load(span + 1), tl.load(span + 2), tl.load(active) != 0
    safety, least, grow = tl.load(constants + 2), tl.load(constants + 3), tl.load(constants + 4)
    shrink, b1, b2 = tl.load(constants + 5), tl.load(constants + 6), tl.load(constants + 7)
    b3, b0 = tl.load(constants + 8), tl.load(constants + 9)
    least_error, least_past = tl.load(constants + 10), tl.load(constants + 11)
    length = tl.abs(signed)
    finite = (error == error) & (error - error == 0)
    ok = going & finite & ((error <= 1) | (h <= h_min))
    bounded = tl.where(error < least_error, least_error, error)
    factor = safety * tl.exp(b1 * tl.log(bounded) + b2 * tl.log(e1) + b3 * tl.log(e2))
    factor = tl.where(factor < least, least, factor)
    factor = tl.where(factor > grow, grow, factor)
    accept = length * factor
    accept = tl.where(lands & (h > accept), h, accept)
    again = safety * tl.exp(b0 * tl.log(bounded))
    again = tl.where(again < shrink, shrink, again)
    again = tl.where(again > 1, 1.0, again)
    retry = length * tl.where(finite, again, shrink)
    past = tl.where(error < least_past, least_past, error)
    row = tl.where(ok, n, ROWS).to(tl.int64)
    tl.store(verdict, ok.to(tl.int64))
    tl.store(verdict + 1, row)
    tl.store(ledger + 9 + row, t)
    tl.store(ledger + 9 + ROWS + 1 + row, signed)
    tl.store(ledger, n + ok.to(tl.float64))
    tl.store(ledger + 1, tl.where(ok, t_next, t))
    tl.store(ledger + 2, tl.where(going, tl.where(ok, accept, retry), h_held))
    tl.store(ledger + 3, tl.where(ok, past, e1))
    tl.store(ledger + 4, tl.where(ok, e1, e2))
    tl.store(ledger + 5, tries + going.to(tl.float64))
    tl.store(ledger + 6, forced + (ok & (error > 1)).to(tl.float64))
    tl.store(ledger + 7, tl.where(going, tl.where(finite, 0.0, bad + 1), bad))
    tl.store(ledger + 8, going.to(tl.float64))


@triton.jit
def move(x, x_next, k, k_next, xs, verdict, n, FSAL: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """x to its row of the record; x_next to x and k_next to k, if the step was accepted."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < n
    ok, row = tl.load(verdict), tl.load(verdict + 1)
    if KEEP:
        tl.store(xs + row * n + at, tl.load(x + at, mask=there), mask=there)
    accepted = there & (ok != 0)
    tl.store(x + at, tl.load(x_next + at, mask=accepted), mask=accepted)
    if FSAL:
        tl.store(k + at, tl.load(k_next + at, mask=accepted), mask=accepted)


@triton.jit
def advance(x, size, weights, terms, xs, slot, n, COUNT: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """x to its row of the record; x + h Σ b_i k_i to x."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < n
    old = tl.load(x + at, mask=there)
    if KEEP:
        tl.store(xs + tl.load(slot) * n + at, old, mask=there)
    total = tl.load(terms[0] + at, mask=there) * tl.load(weights).to(old.dtype)
    for i in tl.static_range(1, COUNT):
        total += tl.load(terms[i] + at, mask=there) * tl.load(weights + i).to(old.dtype)
    tl.store(x + at, old + tl.load(size) * total, mask=there)
