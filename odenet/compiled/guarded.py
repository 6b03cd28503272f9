"""A function that Dynamo captures once, and whose guards are asked directly ever after.

A call of what `torch.compile` returns sets up tracing, looks up the frame, and takes both down again, which costs more
than Dynamo's guards themselves: in a solve of a small F they are most of what is not the solve. The guards and the code
behind them are the same objects here, so that nothing is believed that Dynamo would not believe.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from inspect import signature
from types import FunctionType
from typing import Any, NamedTuple

import torch

ALL_GUARDS = {"skip_nnmodule_hook_guards": False, "skip_no_tensor_aliasing_guards_on_parameters": False}
_numbers = itertools.count()


class Known(NamedTuple):
    """What Dynamo made of one kind of call.

    Attributes:
        guards: which say whether a call is of that kind; they forget their place in the cache when they stop holding.
        check: the same, (arguments by name) -> bool.
        run: what is called in the function's place.
    """

    guards: Any
    check: Callable[[dict[str, Any]], bool]
    run: Callable[..., Any]


class Guarded:
    """A copy of a function under `torch.compile(fullgraph=True)`, with guards on the hooks of modules and on parameters
    that are one another, which Dynamo leaves out by default.

    Args:
        function: a plain function of positional arguments without defaults.
        backend: what Dynamo hands its graph to.
    """

    def __init__(self, function: Callable[..., Any], backend: Callable[..., Any]):
        self._function = own(function)
        self._names = tuple(signature(function).parameters)
        self._compiled = torch.compile(self._function, fullgraph=True, backend=backend)
        self._known: list[Known] = []

    def __call__(self, *args: Any) -> Any:
        if self._known:
            named = dict(zip(self._names, args, strict=True))
            for known in self._known:
                if known.guards.cache_entry is not None and known.check(named):
                    return known.run(*args)
        with torch._dynamo.config.patch(ALL_GUARDS):
            result = self._compiled(*args)
        self._known = entries(self._function)
        return result


def entries(function: Callable[..., Any]) -> list[Known]:
    """What Dynamo holds of a function now; nothing where it does not show it."""
    assert isinstance(function, FunctionType)
    try:
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list

        found = []
        for entry in _debug_get_cache_entry_list(function.__code__):
            guards = entry.guard_manager
            run = FunctionType(entry.code, function.__globals__, function.__name__, None, function.__closure__)
            if guards.cache_entry is not None:
                found.append(Known(guards, guards.root.check, run))
        return found
    except (ImportError, AttributeError, TypeError):  # these are Dynamo's own affairs, and may change
        return []


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function: dynamo counts recompilations by code object, and these are of many F.

    It has a name of its own as well. By that dynamo remembers the numbers that it has seen, and where another method's
    coefficients come next it would make arguments of them, which lose half of float64's digits on their way.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
