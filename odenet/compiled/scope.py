"""What can be compiled, and what is walked eagerly, with the reason."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _functorch  # type: ignore[attr-defined]
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import _has_any_global_hook

from odenet.compiled.record import inside
from odenet.compiled.report import RefusalError
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.holdings import Buffers
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme

GRADIENTS = ("autograd", "checkpoint", "stagewise")
MOST_OUTPUTS = 64
DTYPES = (torch.float32, torch.float64)
DEVICES = ("cpu", "cuda")
SEVERAL = "F changes along depth (untied weights or jumps), and one graph holds one F"
JUMPS = "jumps of F are compiled row by row only, and it cannot be written so"
VARYING = (
    "weights that vary within pieces of depth are compiled row by row, and where F cannot be written so for one piece "
    "and without a gradient only"
)
NO_MODULE = "the gradient of an F that is no module is compiled row by row only, and it cannot be written so"
HOOKS = "every module has a hook (torch.nn.modules.module.register_module_...), which graphs do not see"
NOTHING = "there is nothing to walk, or the state has no batch"


def of_scheme(scheme: Scheme) -> str | None:
    """Why no solve by a scheme is compiled, as the end of a sentence, or None."""
    if scheme.backend != "native":
        return f"the steps of backend={scheme.backend!r} are taken by another library"
    if type(solvers[scheme.solver]) is not ExplicitRungeKutta:
        return f"only explicit Runge-Kutta methods are compiled, not {scheme.solver!r}"
    if scheme.gradient not in GRADIENTS or scheme.gradient_options:
        given = f"gradient={scheme.gradient!r}" + (" with gradient_options" if scheme.gradient_options else "")
        return f"the compiled way back keeps every state, which is not {given}"
    if scheme.norm is not None or (scheme.adaptive and any(isinstance(t, Tensor) for t in scheme.tolerances)):
        return "norm and tolerances per element are looked at from the host"
    return None


def of_problem(problem: Problem) -> str | None:
    """Why a problem whose scheme can be compiled is not, or None; what F itself does is not looked at."""
    scheme = problem.scheme
    if problem.events or problem.dense:
        return "events and dense=True look at steps from the host"
    if problem.t0 == problem.t1:
        return NOTHING
    refusal = of_state(problem.x0)
    if refusal is not None or problem.ts == [problem.t1]:
        return refusal
    return _adaptive(problem) if scheme.adaptive else _fixed(problem)


def of_state(x0: Tensor) -> str | None:
    """Why no solve from a state is compiled where the caller stands, or None."""
    if type(x0) not in (Tensor, nn.Parameter) or x0.dtype not in DTYPES or x0.device.type not in DEVICES:
        return f"the state is a {type(x0).__name__} of {x0.dtype} on {x0.device}"
    if x0.numel() == 0 or x0.dim() == 0:
        return NOTHING
    transformed = _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    if torch.compiler.is_compiling() or transformed:
        return "the solve stands inside torch.compile, a torch.func transform or forward-mode differentiation"
    return HOOKS if _has_any_global_hook() else None


def _adaptive(problem: Problem) -> str | None:
    between, stepper = inside(problem), problem.stepper
    assert isinstance(stepper, ExplicitRungeKutta)
    tableau = stepper.tableau
    if between and (tableau.dense is None or tableau.dense_c or not tableau.fsal or tableau.stages > tableau.used + 1):
        return f"outputs inside the steps of {problem.scheme.solver!r} need more evaluations of F"
    if len(between) > MOST_OUTPUTS:
        return f"more than {MOST_OUTPUTS} outputs inside are cheaper eagerly"
    return None


def _fixed(problem: Problem) -> str | None:
    ends = {span.t_next for span in problem.spans()} | {problem.t0}
    if not ends.issuperset(problem.ts):
        return "outputs of fixed steps have to be ends of steps"
    return None


def of_F(problem: Problem, leaves: list[Tensor], t: Tensor | None = None) -> str | None:
    """Why F cannot be compiled for a problem, found by one evaluation on each piece that leaves no trace; or None.

    Args:
        problem: what is to be solved.
        leaves: the tensors beside the state that the compiled gradient would be taken for.
        t: the time as F is shown it, if not t0.

    Raises:
        ResidualError: F does not keep x's shape, dtype or device.
    """
    from odenet.gradients.inputs import Inputs

    x, field = problem.x0.detach(), problem.field
    modules = [thing for thing in itertools.chain(*field.found) if isinstance(thing, nn.Module)]
    for module in modules:
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            return f"F updates running statistics ({type(module).__name__} in training mode)"
    with Buffers(modules).spared(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        before = _generator_states(x.device)
        times = [field.time(start) for start in problem.starts()] if t is None else itertools.repeat(t)
        buffers = Buffers(modules)
        slopes = [
            field.checked(F(time, x, *problem.args), x) for F, time in zip(problem.functions, times, strict=False)
        ]
        after, moved = _generator_states(x.device), buffers.moved()
    if moved:
        return f"F changes its buffer {moved[0].name!r}, which is to move on once for a whole solve"
    if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        return "F draws random numbers, of which one draw has to hold for a whole solve"
    if not torch.is_grad_enabled():
        return None
    inputs = Inputs(problem)
    for piece, k in enumerate(slopes):
        inputs.observe(piece, k)
    known = set(map(id, leaves))
    for tensor in inputs.tensors:
        if id(tensor) not in known:
            return (
                f"F uses a tensor of shape {tuple(tensor.shape)} that requires a gradient and is neither a parameter "
                "of F, an nn.Module, nor handed over in args="
            )
    return None


def check_modules(problem: Any, keep: bool) -> None:
    """Raise `RefusalError` if F has to be a module, for its gradient or its pieces, and is none."""
    if problem.weights.varies and (keep or problem.weights.pieces > 1):
        raise RefusalError(VARYING)
    modules = all(isinstance(F, nn.Module) for F in problem.functions)
    if keep and not modules and any(p.requires_grad for p in problem.weights.parameters()):
        raise RefusalError(NO_MODULE)


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def compiler_missing() -> str | None:
    """Why nothing can be compiled on this machine, or None."""
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        return "no C++ compiler was found (install g++ or clang)"
    return None


class Leaves(NamedTuple):
    """What a compiled gradient is taken for beside the state.

    Attributes:
        names: of parameters, as the weights over depth know them.
        places: of arguments of F.
        tensors: the parameters, then the arguments.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    tensors: list[Tensor]

    @classmethod
    def of(cls, F: nn.Module, args: tuple[Any, ...]) -> Leaves:
        """Those that require a gradient; F with its weights over depth."""
        named = [(n, p) for n, p in F.named_parameters() if p.requires_grad]
        places = tuple(i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad)
        tensors: list[Tensor] = [*(p for _, p in named), *(args[i] for i in places)]
        return cls(tuple(name for name, _ in named), places, tensors)

    def names_in(self, F: Any) -> dict[str, int]:
        """Of those that are parameters of F, a module, their names there and which they are."""
        at = {id(tensor): number for number, tensor in enumerate(self.tensors[: len(self.names)])}
        return {name: at[id(p)] for name, p in F.named_parameters() if id(p) in at} if isinstance(F, nn.Module) else {}
