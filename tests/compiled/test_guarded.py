"""Dynamo's guards, asked directly: what was captured is used as long as Dynamo would use it, and no longer."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from odenet.compiled import guarded
from odenet.compiled.guarded import Guarded

SCALE = 1.0


def called(F, x, args):
    return F(x, *args)


class Kept:
    """A Dynamo backend that runs its graph, counts the graphs, and says how often `torch.compile` was asked."""

    def __init__(self):
        self.graphs, self.asked = 0, 0
        self.guarded = Guarded(called, self._backend)
        compiled = self.guarded._compiled

        def ask(*args):
            self.asked += 1
            return compiled(*args)

        self.guarded._compiled = ask

    def _backend(self, graph, inputs):
        self.graphs += 1
        return graph.forward

    def __call__(self, F, x, *args):
        return self.guarded(F, x, args)


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.factor, self.act = 2.0, torch.tanh

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        y = self.factor * SCALE * self.act(self.linear(x)) if self.training else self.linear(x)
        return self.other(y) + sum(args)


def test_torch_compile_is_asked_once_and_the_answers_are_those_of_F():
    F, kept = Affine(), Kept()
    for _ in range(4):
        x = torch.randn(3, 2)
        torch.testing.assert_close(kept(F, x), F(x))
    assert (kept.graphs, kept.asked) == (1, 1)


def test_weights_that_are_other_tensors_are_the_ones_that_are_taken():
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    kept(F, x)
    F.linear.weight = nn.Parameter(torch.randn(2, 2))
    with torch.no_grad():
        F.linear.bias.add_(1.0)
    torch.testing.assert_close(kept(F, x), F(x))
    assert kept.asked == 1


def _replaced(F: Affine):
    F.linear = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())  # pyright: ignore[reportAttributeAccessIssue]


def _hooked(F: Affine):
    F.linear.register_forward_hook(lambda module, given, result: 3 * result)


def _tied(F: Affine):
    F.linear.bias = nn.Parameter(torch.ones(2))
    F.other.bias = F.linear.bias


def _another_forward(F: Affine):
    F.linear.forward = lambda x: 5 * x  # pyright: ignore[reportAttributeAccessIssue]


CHANGES = {
    "a flag": lambda F: F.eval(),
    "a number": lambda F: setattr(F, "factor", 3.0),
    "a function": lambda F: setattr(F, "act", torch.sin),
    "a module": _replaced,
    "a hook": _hooked,
    "a parameter that is another": _tied,
    "a forward of its own": _another_forward,
    "a shape": lambda F: setattr(F, "other", nn.Linear(2, 4)),
    "a dtype": lambda F: F.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_has_changed_in_F_is_seen(change):
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    for _ in range(2):
        kept(F, x)
    change(F)
    x = x.to(next(F.parameters()).dtype)
    for _ in range(2):
        torch.testing.assert_close(kept(F, x), F(x))
    assert (kept.graphs, kept.asked) == (2, 2)


def test_a_global_that_F_reads_is_seen(monkeypatch):
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    kept(F, x)
    monkeypatch.setitem(globals(), "SCALE", 7.0)
    torch.testing.assert_close(kept(F, x), F(x))
    assert kept.graphs == 2


def test_where_the_caller_stands_is_seen():
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    assert kept(F, x).requires_grad
    with torch.no_grad():
        assert not kept(F, x).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kept(F, x), F(x))
    assert kept.graphs == 3
    kept(F, x)
    assert kept.asked == 3


def test_another_F_that_lies_where_the_former_lay_is_another_F():
    kept, x = Kept(), torch.randn(3, 2)
    for factor in range(6):
        F = lambda x, factor=float(factor): factor * x  # noqa: E731
        torch.testing.assert_close(kept(F, x), factor * x)
        del F
        gc.collect()


def test_dynamo_may_forget_what_it_knew():
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    kept(F, x)
    torch._dynamo.reset()
    for _ in range(2):
        torch.testing.assert_close(kept(F, x), F(x))
    assert kept.asked == 2


def test_where_dynamo_does_not_show_its_guards_it_is_asked_itself(monkeypatch):
    import torch._dynamo.eval_frame

    monkeypatch.delattr(torch._dynamo.eval_frame, "_debug_get_cache_entry_list")
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    for _ in range(3):
        torch.testing.assert_close(kept(F, x), F(x))
    assert (kept.graphs, kept.asked) == (1, 3)
    assert guarded.entries(kept.guarded._function) == []


def test_arguments_of_other_kinds_are_other_calls():
    F, kept, x = Affine(), Kept(), torch.randn(3, 2)
    for args in ((), (torch.ones(3, 2),), (torch.ones(2),), (2.0,), ()):
        torch.testing.assert_close(kept(F, x, *args), F(x, *args))
    assert kept.asked == 4
