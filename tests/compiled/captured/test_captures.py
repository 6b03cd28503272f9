"""Which capture serves a solve, and what is not captured."""

import gc
import weakref

import pytest
import torch

import odenet
from odenet.compiled import CompileWarning
from odenet.compiled.captured import graphs
from tests.compiled.captured.smooth import Smooth
from tests.compiled.test_compiled import REFUSED, agree


def test_what_f_holds_is_seen_at_every_solve(x, captures):
    """Parameters changed in place, replaced ones, numbers, other arguments: each gives what the eager solve gives."""

    class Scaled(Smooth):
        scale = 1.0

        def forward(self, t, x, u=0.0, power=1):
            return self.scale * super().forward(t, x) ** power + u

    F = Scaled()
    optimizer = torch.optim.SGD(F.parameters(), lr=0.1)

    def same(captured, *args):
        agree(F, x, solver="rk4", steps=3, args=args)
        agree(F, x, args=args, rtol=1e-5, atol=1e-5)
        assert sum(made.compilations for made in captures) == captured

    same(4)
    F.A.grad = torch.ones_like(F.A)
    optimizer.step()
    same(4)
    F.A.data = torch.randn(3, 3, dtype=torch.float64)
    same(8)
    F.scale = 0.5
    same(12)
    same(16, torch.full((3,), 0.2, dtype=torch.float64))
    same(16, torch.full((3,), 0.4, dtype=torch.float64))
    with torch.no_grad():
        for power in (1, 2):
            args = 0.0, power
            got = odenet.solve(F, x, solver="rk4", steps=3, args=args, compile=True).last
            expected = odenet.solve(F, x, solver="rk4", steps=3, args=args, compile=False).last
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_few_captures_are_kept(x, captures):
    F = Smooth()
    for _ in range(2):
        for batch in (1, 2, 3):
            agree(F, x[:batch], solver="rk4", steps=3)
    assert captures[0].compilations == 6
    for batch in range(5, 5 + graphs.MOST_CAPTURES):
        agree(F, torch.randn(batch, 3, dtype=torch.float64), solver="rk4", steps=3)
    assert len(captures[0]._walks) == len(captures[0]._backs) == graphs.MOST_CAPTURES


def test_shapes_without_end_are_walked_eagerly(x):
    F = Smooth()

    def solve_them_all():
        for batch in range(1, 2 * graphs.MOST_FORGOTTEN):
            odenet.solve(F, torch.randn(batch, 3, dtype=torch.float64), solver="rk4", steps=3, compile=True)

    with torch.no_grad(), pytest.warns(CompileWarning, match="change from call to call"):
        solve_them_all()


class Counting(Smooth):
    calls = 0

    def forward(self, t, x):
        self.calls += 1
        return super().forward(t, x)


class Remembering(Smooth):
    def forward(self, t, x):
        self.c.mul_(1.0)
        return super().forward(t, x)


@pytest.mark.parametrize(
    ("kind", "why"), [(Counting, "changes what it holds"), (Remembering, "changes its buffer 'c'")]
)
def test_an_f_that_changes_what_it_holds_is_walked_eagerly(kind, why, x):
    F = kind()
    with pytest.warns(CompileWarning, match=why), torch.no_grad():
        got = odenet.solve(F, x, solver="rk4", steps=3, compile=True)
    assert torch.equal(got.ys, odenet.solve(F, x, solver="rk4", steps=3, compile=False).ys)


@pytest.mark.parametrize("case", [case for case in REFUSED if case != "host"])
def test_what_cannot_be_captured_is_walked_eagerly(case, x):
    kind, scheme, why = REFUSED[case]
    F = kind()
    torch.manual_seed(1)
    with pytest.warns(CompileWarning, match=why):
        got = odenet.solve(F, x, compile=True, **scheme)
    torch.manual_seed(1)
    assert torch.equal(got.ys, odenet.solve(F, x, compile=False, **scheme).ys)


def test_captures_go_with_f(x, captures):
    """Nothing that is kept of its solves keeps F."""
    F = Smooth()
    agree(F, x, rtol=1e-4, atol=1e-4)
    agree(F, x, solver="rk4", steps=3)
    known = weakref.ref(F)
    del F
    gc.collect()
    assert known() is None


def test_weights_that_are_a_function_of_depth(x, captures):
    F = odenet.residual.MLP(3, width=8, norm="none").double()
    numerics = {"weights": odenet.depth.chebyshev(3), "rtol": 1e-5, "atol": 1e-5, "t1": 2.0}
    block = odenet.ODEBlock(F, compile=True, **numerics)
    plain = odenet.ODEBlock(F, compile=False, **numerics)
    plain.load_state_dict(block.state_dict())
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(block(x), plain(x), rtol=1e-10, atol=1e-10)
    assert captures[0].compilations == 1
