"""What F's modules hold: the mode they are in, their tensors, and the buffers that an evaluation moves on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from odenet.errors import GradientError

ABSENT = object()


class Unchanged:
    """Tensors that F is to be evaluated with again, and that must not be changed in place until then; of those that
    require a gradient autograd itself says so.

    Args:
        tensors: each with what it is called; {} in that stands for its shape.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]] = ()):
        self._versions = [(name, x, x._version) for name, x in tensors if not (x.requires_grad or x.is_inference())]

    def check(self) -> None:
        """Raise `GradientError` if one of them was changed."""
        for name, x, version in self._versions:
            if x._version != version:
                raise GradientError(
                    f"{name.format(tuple(x.shape))} was changed in place between the solve and its backward pass, "
                    "which evaluates F again; change it after backward()"
                )


class Holdings:
    """Modules as they are now, for a repetition of what they compute.

    Between a solve and its backward pass a module may be switched to another mode, or get its own tensors back, after
    `torch.func.functional_call` has lent it others.

    Args:
        modules: whose mode, parameters and buffers are remembered.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        modules = list(modules)
        self._of = [(m, m.training, *(place.copy() for place in _places(m))) for m in modules]
        self._frozen = Unchanged(
            (f"parameter {name!r} of {type(m).__name__}, of shape {{}}, which F holds,", p)
            for m in modules
            for name, p in m._parameters.items()
            if p is not None and not p.requires_grad
        )

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """While this holds, the modules are as they were.

        Raises:
            GradientError: a frozen parameter has been changed in place.
        """
        self._frozen.check()
        switched: list[nn.Module] = []
        exchanged: list[tuple[dict, str, object]] = []
        for module, training, *held in self._of:
            if module.training != training:
                switched.append(module)
                module.training = training
            for then, now in zip(held, _places(module), strict=True):
                for name, tensor in then.items():
                    if now.get(name) is not tensor:
                        exchanged.append((now, name, now.get(name, ABSENT)))
                        now[name] = tensor
        try:
            yield
        finally:
            for module in switched:
                module.training = not module.training
            _give(exchanged)


class Moved(NamedTuple):
    """A buffer that an evaluation has changed.

    Attributes:
        buffers: of the module that holds it.
        name: its name there.
        start: its value before.
    """

    buffers: dict[str, Tensor | None]
    name: str
    start: Tensor


class Buffers:
    """The buffers of modules before an evaluation, to tell which of them it moves on, as the vectors of spectral
    normalisation; not those of normalisation layers, which have a rule of their own.

    Args:
        modules: that the evaluation may call.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        found = [m._buffers for m in modules if m._buffers and not isinstance(m, _NormBase)]
        held = [(of, name, b) for of in found for name, b in of.items() if b is not None and not b.is_inference()]
        self._before = [(of, name, b, b._version, b.detach().clone()) for of, name, b in held]

    @contextlib.contextmanager
    def spared(self) -> Iterator[None]:
        """While this holds, copies stand in their place, which are dropped with whatever is done to them."""
        with at_start([Moved(of, name, start) for of, name, _, _, start in self._before]):
            yield

    def moved(self) -> list[Moved]:
        """Those that were changed, in place or for another."""
        return [
            Moved(of, name, start)
            for of, name, b, version, start in self._before
            if of.get(name) is not b or b._version != version
        ]


@contextlib.contextmanager
def at_start(moved: Iterable[Moved]) -> Iterator[None]:
    """While this holds, copies of the buffers' first values stand in their place."""
    copies: dict[int, Tensor] = {}
    present: list[tuple[dict, str, object]] = []
    for buffers, name, start in moved:
        present.append((buffers, name, buffers.get(name, ABSENT)))
        buffers[name] = copies.setdefault(id(start), start.clone())
    try:
        yield
    finally:
        _give(present)


def _places(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


def _give(tensors: Iterable[tuple[dict, str, object]]) -> None:
    for held, name, tensor in tensors:
        if tensor is ABSENT:
            held.pop(name, None)
        else:
            held[name] = tensor
