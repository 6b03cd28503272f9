"""States that are tuples and dicts: the answer of the tensor they are packed into, in their own structure."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

import odenet
from odenet.errors import InputError, ResidualError
from odenet.solvers import backends
from tests.oracles.methods import gradients_for
from tests.oracles.problems import LINEAR_X0, A

SCHEMES = [{"rtol": 1e-8, "atol": 1e-8}, {"solver": "rk4", "steps": 20}]


class Pair(NamedTuple):
    q: torch.Tensor
    p: torch.Tensor


class Tree(nn.Module):
    """x' = A x, the state in parts."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(A.clone())

    def forward(self, t, x):
        q, p = leaves(x)
        k = torch.cat([q, p], -1) @ self.A.T
        parts = k[..., :1], k[..., 1:]
        if isinstance(x, dict):
            return dict(zip("qp", parts, strict=True))
        return type(x)(*parts) if isinstance(x, Pair) else type(x)(parts)


def trees():
    q, p = LINEAR_X0[:, :1].clone(), LINEAR_X0[:, 1:].clone()
    return [(q, p), [q, p], {"q": q, "p": p}, Pair(q, p)]


def leaves(x):
    return list(x.values()) if isinstance(x, dict) else list(x)


@pytest.mark.parametrize("gradient", sorted({*gradients_for("dopri5"), "adjoint"}))
@pytest.mark.parametrize("scheme", SCHEMES, ids=["adaptive", "fixed"])
@pytest.mark.parametrize("kind", range(4), ids=["tuple", "list", "dict", "namedtuple"])
def test_a_tree_is_solved_as_the_tensor_of_its_parts(kind, scheme, gradient):
    F, tree, ts = Tree(), trees()[kind], [0.0, 0.4, 1.0]
    flat = LINEAR_X0.clone().requires_grad_()
    expected = odenet.solve(lambda t, x: x @ F.A.T, flat, ts=ts, gradient=gradient, **scheme)
    for leaf in leaves(tree):
        leaf.requires_grad_()
    solution = odenet.solve(F, tree, ts=ts, gradient=gradient, **scheme)
    assert type(solution.ys) is type(tree) and type(solution.last) is type(tree)
    got = torch.cat(leaves(solution.ys), -1)
    torch.testing.assert_close(got, expected.ys, rtol=1e-12, atol=1e-12)
    assert solution.stats.nfe == expected.stats.nfe and solution.stats.h == expected.stats.h
    grads = torch.autograd.grad(got.square().sum(), [*leaves(tree), F.A])
    wanted = torch.autograd.grad(expected.ys.square().sum(), [flat, F.A])
    torch.testing.assert_close(torch.cat(grads[:2], -1), wanted[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(grads[2], wanted[1], rtol=1e-8, atol=1e-8)


def test_leaves_of_any_shapes_and_nested():
    x0 = {"image": torch.ones(2, 3, 4, 4), "more": (torch.tensor(2.0), torch.full((5,), 3.0))}

    def decay(t, x):
        return {"image": -x["image"], "more": (-2 * x["more"][0], -3 * x["more"][1])}

    solution = odenet.solve(decay, x0, ts=[0.0, 1.0], rtol=1e-6, atol=1e-6, dense=True)
    assert solution.ys["image"].shape == (2, 2, 3, 4, 4) and solution.ys["more"][0].shape == (2,)
    e = torch.exp(-torch.ones(()))
    torch.testing.assert_close(solution.last["image"], x0["image"] * e, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solution.last["more"], (2 * e**2, x0["more"][1] * e**3), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solution(1.0)["more"][1], solution.last["more"][1])


def test_leaves_of_several_dtypes_keep_theirs():
    x0 = (torch.ones(2, 1), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.complex64))
    seen = []

    def F(t, x):
        seen.append([leaf.dtype for leaf in x])
        return -x[0], -x[1], 1j * x[2]

    last = odenet.solve(F, x0, rtol=1e-6, atol=1e-6).last
    kinds = [torch.float32, torch.float64, torch.complex64]
    assert [leaf.dtype for leaf in last] == kinds and all(s == kinds for s in seen)
    torch.testing.assert_close(last[2], torch.exp(torch.full((2, 2), 1j)).cfloat(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy"])
def test_other_backends_take_trees_too(backend):
    solver = "dopri5" if "dopri5" in backends[backend].methods() else "DOP853"
    with torch.no_grad():
        last = odenet.solve(Tree(), trees()[0], backend=backend, solver=solver, rtol=1e-9, atol=1e-9).last
    torch.testing.assert_close(torch.cat(last, -1), LINEAR_X0 @ torch.linalg.matrix_exp(A).T, rtol=1e-7, atol=1e-7)


def test_a_pair_of_tensors_is_the_state_of_a_symplectic_method():
    q, p = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    pair = odenet.solve(lambda t, x: (x[1], -x[0]), (q, p), solver="leapfrog", steps=50).last
    joined = odenet.solve(
        lambda t, x: torch.cat([x[:, 2:], -x[:, :2]], 1), torch.cat([q, p], 1), solver="leapfrog", steps=50
    ).last
    torch.testing.assert_close(torch.cat(pair, 1), joined)


def test_tolerances_and_norms_of_trees():
    def two_speeds(t, x):
        return torch.cos(t) + 0 * x[0], 30 * torch.cos(30 * t) + 0 * x[1]

    x0 = (torch.zeros(1, 1).double(), torch.zeros(1, 2).double())
    strict = odenet.solve(two_speeds, x0, rtol=1e-8, atol=1e-8).stats.nfe
    loose = odenet.solve(two_speeds, x0, rtol=1e-8, atol=(1e-8, 10.0)).stats.nfe
    normed = odenet.solve(two_speeds, x0, rtol=1e-8, atol=1e-8, norm=lambda x: x[0].abs().max()).stats.nfe
    assert loose < strict / 2 and normed < strict / 2


BAD = [
    (lambda t, x: x[0], ((torch.ones(2), torch.ones(2)),), ResidualError, r"\(tensor, tensor\), but returned tensor"),
    (lambda t, x: (x[0], x[1][:1]), ((torch.ones(2), torch.ones(2)),), ResidualError, r"\(1,\) for tensor 1"),
    (lambda t, x: (x[0], x[1].double()), ((torch.ones(2), torch.ones(2)),), ResidualError, "float64 for tensor 1"),
    (lambda t, x: x, ((torch.ones(2), 1.0),), InputError, "a tensor or a tuple or dict of them, got float"),
    (lambda t, x: x, ((torch.ones(2), torch.ones(2).long()),), InputError, "floating-point or complex dtype"),
    (lambda t, x: x, ((),), InputError, "at least one tensor"),
    (lambda t, x: x, ("x",), InputError, "must be a tensor"),
]


@pytest.mark.parametrize(("F", "arguments", "kind", "message"), BAD, ids=[b[-1] for b in BAD])
def test_trees_that_cannot_be_used_are_refused_in_words(F, arguments, kind, message):
    with pytest.raises(kind, match=message):
        odenet.solve(F, *arguments)


def test_blocks_take_trees_too():
    block = odenet.ODEBlock(Tree(), solver="rk4", steps=30)
    q, p = block(trees()[0])
    expected = LINEAR_X0 @ torch.linalg.matrix_exp(A).T
    torch.testing.assert_close(torch.cat([q, p], -1), expected, rtol=1e-6, atol=1e-6)
