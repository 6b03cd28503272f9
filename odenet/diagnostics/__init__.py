"""Is it an ODE, and is its gradient right? Pure functions of (block, x), or of (model, x, y), that return a `Result`.

A block is a `ResNet` or an `ODEBlock`, x the state with which it starts. Diagnostics look at blocks in evaluation mode
and change nothing.
"""

from odenet.diagnostics.cosine import residual_cosine
from odenet.diagnostics.critical_step import critical_step
from odenet.diagnostics.crossing import crossing
from odenet.diagnostics.gradient_audit import Audit, MethodAudit, audit_gradients
from odenet.diagnostics.gradient_error import gradient_error
from odenet.diagnostics.jacobian import lipschitz, ritz_values
from odenet.diagnostics.lyapunov import lyapunov
from odenet.diagnostics.nfe_difficulty import nfe_difficulty
from odenet.diagnostics.ode_distance import ode_distance
from odenet.diagnostics.path import Path, follow
from odenet.diagnostics.residual_norm import residual_norm
from odenet.diagnostics.result import Curves, Diagnostic, Line, Result, diagnostic, diagnostics
from odenet.diagnostics.reversibility import reversibility
from odenet.diagnostics.solver_swap import solver_swap
from odenet.diagnostics.stability import stability, stability_function
from odenet.diagnostics.step_halving import step_halving
from odenet.diagnostics.survey import Finding, block_inputs, survey, verdict_of
from odenet.diagnostics.weight_smoothness import weight_smoothness
from odenet.solvers.stability import stability_roots


def list_diagnostics() -> list[str]:
    """Names of the diagnostics."""
    return list(diagnostics)


__all__ = [
    "Audit",
    "Curves",
    "Diagnostic",
    "Finding",
    "Line",
    "MethodAudit",
    "Path",
    "Result",
    "audit_gradients",
    "block_inputs",
    "critical_step",
    "crossing",
    "diagnostic",
    "diagnostics",
    "follow",
    "gradient_error",
    "lipschitz",
    "list_diagnostics",
    "lyapunov",
    "nfe_difficulty",
    "ode_distance",
    "residual_cosine",
    "residual_norm",
    "reversibility",
    "ritz_values",
    "solver_swap",
    "stability",
    "stability_function",
    "stability_roots",
    "step_halving",
    "survey",
    "verdict_of",
    "weight_smoothness",
]
