"""Is the gradient that the network is trained with that of the steps it takes?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from odenet.blocks import blocks_of
from odenet.diagnostics.gradient_audit import audit_gradients
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent
from odenet.errors import GradientError, InputError

WRONG, SAMPLES = 0.01, 32


@dataclass(frozen=True)
class GradientCheck(Result):
    """Attributes:
    gradient: the method that the network uses.
    error: ‖g - g*‖ / ‖g*‖, g* from backprop in float64 through the same steps.
    cosine: of the angle between the two.
    groups: the error for x and for each module that holds parameters.
    """

    gradient: str
    error: float
    cosine: float
    groups: dict[str, float]


@diagnostic(
    "gradient_error",
    title="Error of the gradient",
    formula="‖g - g*‖ / ‖g*‖, g* from backprop in float64 through the same steps",
    reference="Gholami et al. 2019, ANODE; Onken and Ruthotto 2020, Discretize-Optimize vs. Optimize-Discretize",
    of="model",
)
def gradient_error(model: nn.Module, x: Tensor, y: Tensor | None = None, samples: int = SAMPLES) -> GradientCheck:
    """How far the gradient that the network is trained with is from that of the steps that it takes.

    Args:
        model: a classifier with blocks in it.
        x: (batch, ...) samples.
        y: (batch,) labels; (batch, numbers) of a regression; None for the mean square of the output as the loss.
        samples: samples of the batch, at most.

    Returns:
        It passes if the error is at most 1 %. `odenet.diagnostics.audit_gradients` compares all methods.

    Raises:
        InputError: the model has no blocks.
        GradientError: the network's own method cannot be measured.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise InputError(f"{type(model).__name__} has no blocks to differentiate through")
    own = blocks[0].scheme.gradient
    targets = None if y is None else y[:samples]
    error = mse_loss if targets is not None and targets.is_floating_point() else cross_entropy
    loss = None if targets is None else lambda outputs: error(outputs, targets)
    audit = audit_gradients(model, x[:samples], loss, [own], repeats=1)
    found = next((m for m in audit.methods if m.gradient == own), None)
    if found is None:
        raise GradientError(f"gradient {own!r} could not be measured: {audit.refused[0].note}")
    groups = {name: error for name, (error, _) in found.groups.items()}
    result = GradientCheck(own, found.error, found.cosine, groups)
    text = f"gradient {own!r} differs by {percent(found.error)} from backprop through the same steps"
    places = [float(i) for i in range(len(groups))]
    lines = [Line("x, then module by module", places, list(groups.values()), "points")]
    lines.append(Line(f"threshold, {percent(WRONG)}", [], [WRONG], "level"))
    result.judged(found.error <= WRONG, text, Curves("group of parameters", "relative error", lines, logy=True))
    return result
