"""Bases of depth against SciPy and NumPy."""

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from scipy.interpolate import BSpline as ScipySpline

from odenet.depth.bases import BSpline, Chebyshev, Fourier, evaluate_basis
from odenet.depth.projection import gauss_legendre, ones

S = torch.linspace(0.003, 0.997, 57, dtype=torch.float64)


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("degree", range(8))
def test_b_splines_are_scipys(degree, pieces):
    knots = np.concatenate([[0] * degree, np.linspace(0, 1, pieces + 1), [1] * degree])
    expected = ScipySpline(knots, np.eye(pieces + degree), degree)(S.numpy())
    basis = BSpline(degree, pieces)
    np.testing.assert_allclose(evaluate_basis(basis, S).numpy(), expected, rtol=0, atol=1e-12)
    assert basis.knots == tuple(i / pieces for i in range(1, pieces)) and basis.size == pieces + degree


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 16])
def test_chebyshev_polynomials_are_numpys(size):
    expected = chebyshev.chebvander(2 * S.numpy() - 1, size - 1)
    np.testing.assert_allclose(evaluate_basis(Chebyshev(size), S).numpy(), expected, rtol=0, atol=1e-12)


def test_fourier_functions_are_sines_and_cosines():
    w = 2 * np.pi * S.numpy()
    expected = np.stack([np.ones_like(w), np.sin(w), np.cos(w), np.sin(2 * w), np.cos(2 * w), np.sin(3 * w)], 1)
    np.testing.assert_allclose(evaluate_basis(Fourier(6), S).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("basis", [BSpline(1, 3), BSpline(3, 2), BSpline(4, 1), Chebyshev(6), Fourier(5)], ids=str)
def test_values_can_be_differentiated_in_depth_up_to_the_ends(basis):
    for piece in range(len(basis.knots) + 1):
        u = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda u, i=piece: basis.values(u, basis.table(i)), u)


@pytest.mark.parametrize("basis", [BSpline(0, 3), BSpline(3, 5), Chebyshev(4), Fourier(5)], ids=str)
def test_every_basis_holds_the_constants(basis):
    np.testing.assert_allclose((evaluate_basis(basis, S) @ ones(basis)).numpy(), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 24])
def test_gauss_points_are_numpys(n):
    points, weights = np.polynomial.legendre.leggauss(n)
    np.testing.assert_allclose(gauss_legendre(n)[0].numpy(), (points + 1) / 2, rtol=0, atol=1e-14)
    np.testing.assert_allclose(gauss_legendre(n)[1].numpy(), weights / 2, rtol=0, atol=1e-14)
