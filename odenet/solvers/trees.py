"""Rooted trees, and what Butcher's order conditions over them say of a tableau; nothing here is typed in.

    Σ_i b_i Φ_i(τ) = 1/γ(τ),   Φ_i(•) = 1,   Φ_i([τ_1 ... τ_m]) = Π_k Σ_j a_ij Φ_j(τ_k)

A method has order p if this holds for every rooted tree τ of up to p nodes. The matrix a may be full: implicit methods
are checked as explicit ones are.

Reference:
    Butcher 1963; Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from odenet.solvers.tableau import Tableau

LARGEST = 10
ROUNDING = 256 * np.finfo(float).eps

Tree = tuple  # the branches at the root, each a tree


@cache
def trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees with a number of nodes."""
    return tuple(_forests(nodes - 1, [tree for size in range(nodes - 1, 0, -1) for tree in trees(size)]))


def _forests(nodes: int, allowed: Sequence[Tree]) -> Iterator[Tree]:
    """Multisets of trees with `nodes` nodes in all, in the order of `allowed`."""
    if nodes == 0:
        yield ()
    for index, tree in enumerate(allowed):
        if order(tree) <= nodes:
            for rest in _forests(nodes - order(tree), allowed[index:]):
                yield (tree, *rest)


@cache
def order(tree: Tree) -> int:
    """|τ|, the number of nodes."""
    return 1 + sum(order(branch) for branch in tree)


@cache
def density(tree: Tree) -> int:
    """γ(τ) = |τ| Π γ over the branches."""
    return order(tree) * math.prod(density(branch) for branch in tree)


def matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """The square matrix a with the rows of a tableau, zero where a row ends early."""
    a = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        a[i, : len(row)] = row
    return a


def elementary_weights(a: np.ndarray) -> Callable[[Tree], np.ndarray]:
    """τ -> (Φ_1(τ), ..., Φ_s(τ)) for a matrix a, shape (s,)."""
    known: dict[Tree, np.ndarray] = {}

    def weights(tree: Tree) -> np.ndarray:
        if tree not in known:
            known[tree] = math.prod((a @ weights(branch) for branch in tree), start=np.ones(len(a)))
        return known[tree]

    return weights


def order_of(tableau: Tableau) -> int:
    """The order p of x⁺, by all trees of up to p + 1 nodes.

    Args:
        tableau: explicit or implicit.
    """
    return order_of_weights(tableau.a, tableau.b)


def order_of_weights(a: Sequence[Sequence[float]], b: Sequence[float]) -> int:
    """The order of x + h Σ_i b_i k_i.

    Args:
        a: rows of the matrix, each of up to s entries.
        b: s weights.
    """
    return _first_miss(a, np.array(b, dtype=float)[:, None], lambda tree: np.array([1 / density(tree)])) - 1


def error_order_of(a: Sequence[Sequence[float]], b_error: Sequence[float]) -> int:
    """q of an error estimate h Σ_i b_error_i k_i = O(h^q): the size of the smallest trees that it sees.

    Args:
        a: rows of the matrix.
        b_error: weights b - b̂.
    """
    return _first_miss(a, np.array(b_error, dtype=float)[:, None], lambda tree: np.zeros(1))


def dense_order_of(tableau: Tableau) -> int:
    """The order of the tableau's dense output at every θ: Σ_i b_i(θ) Φ_i(τ) = θ^|τ|/γ(τ), power by power.

    Args:
        tableau: with a dense output of its own.
    """
    assert tableau.dense is not None
    rows = tableau.dense_rows[: len(tableau.dense)]
    weights = np.zeros((len(rows), max(LARGEST, *map(len, tableau.dense))))
    for i, row in enumerate(tableau.dense):
        weights[i, : len(row)] = row

    def wanted(tree: Tree) -> np.ndarray:
        value = np.zeros(weights.shape[1])
        value[order(tree) - 1] = 1 / density(tree)
        return value

    return _first_miss(rows, weights, wanted) - 1


def _first_miss(a: Sequence[Sequence[float]], weights: np.ndarray, wanted: Callable[[Tree], np.ndarray]) -> int:
    """Size of the smallest trees for which Σ_i weights_i Φ_i(τ), per column, misses what is wanted beyond rounding."""
    square = matrix(a)
    phi, size = elementary_weights(square), elementary_weights(np.abs(square))
    for nodes in range(1, LARGEST + 1):
        for tree in trees(nodes):
            miss = np.abs(weights.T @ phi(tree) - wanted(tree))
            if not (miss <= ROUNDING * (np.abs(weights).T @ size(tree) + 1)).all():
                return nodes
    return LARGEST + 1
