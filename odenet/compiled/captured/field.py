"""F as a captured walk calls it: with arguments that stay where they are, and under the autocast of the solve."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from odenet.compiled.captured.identity import layout
from odenet.errors import ResidualError
from odenet.solvers.problem import Problem


class Autocast(NamedTuple):
    """Whether F runs in low precision, and in which."""

    enabled: bool
    dtype: torch.dtype | None

    @classmethod
    def now(cls, device: torch.device) -> Autocast:
        """As it is where the caller stands."""
        if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
            return cls(False, None)
        return cls(True, torch.get_autocast_dtype(device.type))

    def context(self, device: torch.device) -> Any:
        """For F."""
        return torch.autocast(device.type, self.dtype) if self.enabled else contextlib.nullcontext()

    def outside(self, device: torch.device) -> Any:
        """For all but F. Weights in low precision are remembered inside and forgotten at its end: what was computed in
        a captured graph is nothing to the rest of the program, and what the program computed is not computed again by
        a graph."""
        return _Outside(device) if self.enabled else contextlib.nullcontext()


class _Outside:
    def __init__(self, device: torch.device):
        self.off = torch.autocast(device.type, enabled=False)

    def __enter__(self) -> None:
        torch.clear_autocast_cache()
        self.off.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.off.__exit__(*exception)
        torch.clear_autocast_cache()


class Arguments:
    """F's arguments, with the tensors among them at places that stay.

    Args:
        args: of a first solve.
    """

    def __init__(self, args: tuple[Any, ...]):
        leaves, self._structure = tree_flatten(args)
        with torch.inference_mode(False):
            self._leaves = [kept(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.load(args)

    @staticmethod
    def key(args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What has to be equal of arguments that are loaded here; hashable if the arguments are."""
        leaves, structure = tree_flatten(args)
        return str(structure), tuple(layout(x) if isinstance(x, Tensor) else (type(x), x) for x in leaves)

    def load(self, args: tuple[Any, ...]) -> None:
        """Take the values of a solve's arguments."""
        for place, leaf in zip(self._leaves, tree_flatten(args)[0], strict=True):
            if isinstance(place, Tensor):
                place.copy_(leaf.detach())

    @property
    def values(self) -> tuple[Any, ...]:
        """The arguments."""
        return tree_unflatten(self._leaves, self._structure)


class Field:
    """F(t, x, *args), in x's precision.

    Args:
        problem: whose F, and whose arguments.
        autocast: under which it runs.
    """

    def __init__(self, problem: Problem, autocast: Autocast):
        self.F: Any = None
        self.autocast, self.device = autocast, problem.x0.device
        self.arguments = Arguments(problem.args)

    @contextlib.contextmanager
    def of_problem(self, problem: Problem) -> Iterator[None]:
        """For the length of a walk, the F and the arguments of a problem: kept longer, F would never be forgotten."""
        self.F = problem.functions[0]
        self.arguments.load(problem.args)
        try:
            yield
        finally:
            self.F = None

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        with self.autocast.context(self.device):
            k = self.F(t, x, *self.arguments.values)
        return self.checked(k, x)

    def of(self, names: Sequence[str], leaves: Sequence[Tensor], places: Sequence[int], t: Tensor, x: Tensor) -> Tensor:
        """F with other tensors for some of its parameters and arguments.

        Args:
            names: of parameters.
            leaves: the parameters, then the arguments.
            places: of arguments.
            t: time.
            x: state.
        """
        handed = list(self.arguments.values)
        for at, leaf in zip(places, leaves[len(names) :], strict=True):
            handed[at] = leaf
        with self.autocast.context(self.device):
            if names:
                assert isinstance(self.F, nn.Module)
                parameters = dict(zip(names, leaves, strict=False))
                k = torch.func.functional_call(self.F, parameters, (t, x, *handed))
            else:
                k = self.F(t, x, *handed)
        return self.checked(k, x)

    def checked(self, k: Any, x: Tensor) -> Tensor:
        """k, which has to be what F may return."""
        if isinstance(k, Tensor) and k.shape == x.shape and k.device == x.device:
            if k.dtype == x.dtype:
                return k
            if self.autocast.enabled:
                return k.to(x.dtype)
        raise ResidualError("F did not return a tensor of the state's shape, dtype and device")  # said better eagerly


def kept(x: Tensor, rows: int | None = None) -> Tensor:
    """Room for a tensor laid out as x is, or for `rows` of them one after the other."""
    strides = _dense_strides(x)
    if rows is None:
        return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
    return torch.empty_strided((rows, *x.shape), (x.numel(), *strides), dtype=x.dtype, device=x.device)


def _dense_strides(x: Tensor) -> tuple[int, ...]:
    """x's own strides if it fills its memory, else those of a contiguous tensor."""
    strides, expected = [1] * x.dim(), 1
    for d in sorted(range(x.dim()), key=lambda d: (x.stride(d), x.shape[d])):
        if x.shape[d] > 1 and x.stride(d) != expected:
            return torch.empty(x.shape, device="meta").stride()
        strides[d] = expected
        expected *= max(1, x.shape[d])
    return tuple(strides)
