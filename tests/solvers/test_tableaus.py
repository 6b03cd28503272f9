"""Every tableau against Butcher's order conditions over generated trees, and against coefficients from elsewhere."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import DOP853, RK23, RK45
from scipy.integrate._ivp import dop853_coefficients

from odenet.solvers import solvers
from odenet.solvers.tableaus import TABLEAUS
from odenet.solvers.trees import (
    LARGEST,
    dense_order_of,
    density,
    error_order_of,
    matrix,
    order,
    order_of,
    order_of_weights,
    trees,
)

DENSE = [name for name, tableau in TABLEAUS.items() if tableau.dense is not None]
ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.b_error is not None]
OF_DENSE = {"euler": 1, "adaptive_heun": 2, "vern7": 6, "dopri8": 7}  # of the others 4


def test_the_trees_are_as_many_as_there_are():
    """1, 1, 2, 4, 9, 20, 48, 115, 286, 719 (OEIS A000081), all different; γ of the tall tree is n!, of the bush n."""
    assert [len(trees(n)) for n in range(1, LARGEST + 1)] == [1, 1, 2, 4, 9, 20, 48, 115, 286, 719]
    for n in range(1, 9):
        unordered = {canonical(tree) for tree in trees(n)}
        assert len(unordered) == len(trees(n)) and {order(tree) for tree in trees(n)} == {n}
        assert {density(tree) for tree in trees(n)} >= {n, math.factorial(n)}
        assert sum(math.factorial(n) / density(tree) / symmetry(tree) for tree in trees(n)) == pytest.approx(
            math.factorial(n - 1)
        )  # the number of heap-ordered trees


def canonical(tree):
    return tuple(sorted(map(canonical, tree)))


def symmetry(tree):
    branches = [canonical(branch) for branch in tree]
    return math.prod(map(symmetry, tree)) * math.prod(math.factorial(branches.count(b)) for b in set(branches))


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_tableau_has_the_order_it_says_and_no_higher_one(name):
    tableau = TABLEAUS[name]
    assert order_of(tableau) == tableau.order == solvers[name].order
    rows = [*zip(tableau.a, tableau.c, strict=True), *zip(tableau.dense_a, tableau.dense_c, strict=True)]
    for row, c in rows:
        assert sum(row) == pytest.approx(c, abs=5e-14)
        assert 0 <= c <= 1
    assert all(len(row) <= i for i, row in enumerate(tableau.a))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_embedded_method_has_the_order_that_the_error_needs(name):
    """b̂ is of order q - 1: the error falls like h^q. Of dopri8 E is O(h^6), E_c O(h^4), and E²/E_c O(h^8)."""
    tableau = TABLEAUS[name]
    embedded = [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]
    fine = error_order_of(tableau.a, tableau.b_error)
    assert order_of_weights(tableau.a, embedded) == fine - 1
    if tableau.b_coarse is None:
        assert solvers[name].error_order == fine == tableau.order
    else:
        coarse = error_order_of(tableau.a, tableau.b_coarse)
        assert (fine, coarse) == (6, 4) and solvers[name].error_order == 2 * fine - coarse == 8


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_output_has_its_order_at_every_theta_and_joins_smoothly(name):
    """All continuous order conditions; b_i(1) = b_i, and the slopes at the ends are those of F, but that at the end of
    adaptive_heun's is its last stage."""
    tableau = TABLEAUS[name]
    assert dense_order_of(tableau) == OF_DENSE.get(name, 4) >= min(tableau.order, tableau.order - 1 or 1)
    used, rows = tableau.used, len(tableau.dense)
    ends, slopes = np.zeros(rows), np.zeros(rows)
    for i, row in enumerate(tableau.dense):
        ends[i], slopes[i] = math.fsum(row), math.fsum((j + 1) * p for j, p in enumerate(row))
        start = row[0] if row else 0
        assert start == (1 if i == 0 else 0)
    np.testing.assert_allclose(ends[:used], tableau.b[:used], atol=1e-12)
    np.testing.assert_allclose(ends[used:], 0, atol=1e-12)
    if name != "euler":
        np.testing.assert_allclose(slopes, np.eye(rows)[1 if name == "adaptive_heun" else used], atol=2e-11)


@pytest.mark.parametrize("name", ["rk4", "tsit5", "cash_karp", "vern7", "dopri8"])
def test_a_wrong_digit_in_any_coefficient_is_seen(name):
    tableau = TABLEAUS[name]
    for i in range(1, tableau.used):
        j = max(j for j, a in enumerate(tableau.a[i]) if a != 0)
        row = list(tableau.a[i])
        row[j] += 1e-7
        wrong = replace(tableau, a=(*tableau.a[:i], tuple(row), *tableau.a[i + 1 :]))
        assert order_of(wrong) < tableau.order
    if tableau.dense is not None:
        wrong = list(map(list, tableau.dense))
        wrong[0][1] += 1e-7
        assert dense_order_of(replace(tableau, dense=tuple(map(tuple, wrong)))) < dense_order_of(tableau)


def test_implicit_tableaus_with_full_matrices_are_checked_too():
    """Gauss-Legendre with 2 and 3 stages has orders 4 and 6, Radau IIA with 2 stages 3, the trapezoidal rule 2."""
    r, q = math.sqrt(3), math.sqrt(15)
    gauss2 = ((1 / 4, 1 / 4 - r / 6), (1 / 4 + r / 6, 1 / 4))
    assert order_of_weights(gauss2, (1 / 2, 1 / 2)) == 4
    gauss3 = (
        (5 / 36, 2 / 9 - q / 15, 5 / 36 - q / 30),
        (5 / 36 + q / 24, 2 / 9, 5 / 36 - q / 24),
        (5 / 36 + q / 30, 2 / 9 + q / 15, 5 / 36),
    )
    assert order_of_weights(gauss3, (5 / 18, 4 / 9, 5 / 18)) == 6
    assert order_of_weights(((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4)) == 3
    assert order_of_weights(((), (1 / 2, 1 / 2)), (1 / 2, 1 / 2)) == 2
    wrong = ((1 / 4, 1 / 4 - r / 6), (1 / 4 - r / 6, 1 / 4))
    assert order_of_weights(wrong, (1 / 2, 1 / 2)) == 1


@pytest.mark.parametrize(("name", "peer"), [("bosh3", RK23), ("dopri5", RK45), ("dopri8", DOP853)])
def test_the_coefficients_are_scipys(name, peer):
    tableau, s = TABLEAUS[name], len(peer.B)
    np.testing.assert_allclose(tableau.c[:s], peer.C, atol=1e-16)
    np.testing.assert_allclose(
        matrix(tableau.a)[:s, :s], np.pad(peer.A, ((0, 0), (0, s - peer.A.shape[1]))), rtol=1e-15, atol=1e-15
    )
    np.testing.assert_allclose(tableau.b[:s], peer.B, rtol=1e-15, atol=1e-16)
    if name == "dopri8":
        np.testing.assert_allclose(tableau.b_error, peer.E5[:s], rtol=1e-15, atol=1e-16)
        np.testing.assert_allclose(tableau.b_coarse, peer.E3[:s], rtol=1e-14, atol=1e-16)
        extra = matrix(tableau.dense_rows)[s + 1 :]
        np.testing.assert_allclose(extra, dop853_coefficients.A[s + 1 :], rtol=1e-15, atol=1e-15)
    else:
        share = 2 / 3 if name == "dopri5" else 1  # Shampine's estimate of Dormand and Prince's 1.5 times as large one
        np.testing.assert_allclose(np.abs(tableau.b_error), share * np.abs(peer.E), atol=1e-16)
    if name == "dopri5":
        np.testing.assert_allclose(tableau.dense, RK45.P, atol=1e-14)


@pytest.mark.parametrize("name", ["bosh3", "adaptive_heun", "fehlberg2", "dopri5"])
def test_the_coefficients_are_torchdiffeqs(name):
    from torchdiffeq._impl.odeint import SOLVERS

    tableau, peer = TABLEAUS[name], SOLVERS[name].tableau
    np.testing.assert_allclose(tableau.c[1:], peer.alpha.numpy(), atol=1e-15)
    np.testing.assert_allclose(tableau.b, peer.c_sol.numpy(), atol=1e-15)
    np.testing.assert_allclose(np.abs(tableau.b_error), peer.c_error.abs().numpy(), atol=1e-15)
    for row, other in zip(tableau.a[1:], peer.beta, strict=True):
        np.testing.assert_allclose(row, other.numpy(), atol=1e-15)


def test_the_classic_methods_have_their_textbook_coefficients():
    assert TABLEAUS["rk4"].b == (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    assert TABLEAUS["midpoint"].c == (0, 0.5)
    assert TABLEAUS["heun2"].b == (0.5, 0.5)
