"""What is said of a solve that broke down: which of the errors it was, and in which step and sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odenet.errors import NonFiniteFunctionError, NonFiniteStateError, NonlinearSolveError, SolveError
from odenet.solvers.newton import SINGULAR
from odenet.solvers.problem import Problem
from odenet.solvers.stepper import NOTHING, Stepper, Trial

TOO_MANY = "loosen rtol and atol, raise max_steps, or look for stiffness in F"
TOO_FAST = "the dynamics grow too fast for this step or this dtype"


def nonfinite_error(
    stepper: Stepper, trial: Trial, nfe: int, error: float | None
) -> NonFiniteFunctionError | NonFiniteStateError:
    """Which of the two it was: F gave NaN or infinity for a finite state, or the state itself overflowed."""
    numbers = {"t": trial.span.t, "h": trial.span.h, "nfe": nfe, "error_ratio": error}
    if first_bad_sample(trial.x) is not None:
        return NonFiniteStateError(
            "the state at the start of a step holds NaN or infinity", sample=first_bad_sample(trial.x), **numbers
        )
    for number, k in enumerate(trial.stages, start=1):
        sample = first_bad_sample(k)
        if sample is not None:
            what = f"F returned NaN or infinity in stage {number}"
            return NonFiniteFunctionError(what, sample=sample, **numbers, advice=stepper.weakness)
    if not trial.converged and first_bad_sample(trial.x_next) is None:
        return NonFiniteFunctionError("the derivative of F with respect to x is NaN or infinite", **numbers)
    return NonFiniteStateError(
        "the state overflowed",
        sample=first_bad_sample(trial.x_next),
        **numbers,
        advice=stepper.weakness or TOO_FAST,
    )


def unsolved_error(stepper: Stepper, trial: Trial, nfe: int) -> SolveError:
    """The equations of a step could not be solved, or F gave NaN or infinity on the way."""
    if not math.isfinite(trial.residual):
        return nonfinite_error(stepper, trial, nfe, None)
    singular = trial.residual == SINGULAR
    return NonlinearSolveError(
        "the matrix of the step's equations is singular"
        if singular
        else "Newton's method could not solve the equations of the step",
        t=trial.span.t,
        h=trial.span.h,
        nfe=nfe,
        residual=math.inf if singular else trial.residual,
        advice="take smaller steps or an adaptive solver, or look for kinks in F",
    )


def first_bad_sample(x: Tensor) -> int | None:
    """Index along the first axis of the first sample that is not finite."""
    bad = ~torch.isfinite(x.detach())
    if not bool(bad.any()):
        return None
    return int(bad.reshape(x.shape[0], -1).any(1).nonzero()[0]) if x.dim() else 0


def check_finite(problem: Problem, stepper: Stepper, x: Tensor) -> None:
    """Raise if a fixed-step solve ended in NaN or infinity, naming the step in which it first appeared."""
    x = x.detach()
    if not (math.isfinite(abs(x.sum().item())) or bool(torch.isfinite(x).all())):
        _find_nonfinite(problem, stepper)


@torch.no_grad()
def _find_nonfinite(problem: Problem, stepper: Stepper) -> None:
    nfe = problem.stats.nfe
    if first_bad_sample(problem.x0) is not None:
        raise NonFiniteStateError(
            "the initial state holds NaN or infinity",
            t=problem.start,
            h=0.0,
            sample=first_bad_sample(problem.x0),
            nfe=nfe,
        )
    with problem.field.recompute():
        state, memory, piece = problem.x0.detach(), NOTHING, -1
        for span in problem.spans():
            f = problem.field.piece(span.piece)
            if piece < 0 or (span.piece != piece and not stepper.lasting):
                memory = stepper.start(f, span.t, state)
            trial = stepper.step(f, span, state, memory)
            if first_bad_sample(trial.x_next) is not None:
                raise nonfinite_error(stepper, trial, nfe, None)
            state, memory, piece = trial.x_next, trial.memory, span.piece
