"""What the numbers of an audit mean, in two sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from odenet.gradients import gradients
from odenet.gradients.reversal import Undone

if TYPE_CHECKING:
    from odenet.diagnostics.gradient_audit import MethodAudit

GOOD, POOR = 1e-3, 1e-2  # relative errors of a gradient
SAME, NEAR = 1e-5, 1e-2  # relative differences of an output
LESS = 0.75
NOISE = 2.0  # times backprop's own rounding, above which an error is the method's


def size(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def tolerated(methods: Sequence[MethodAudit]) -> float:
    """The relative error up to which a method is not to blame; in low precision backprop's own is above `GOOD`."""
    rounding = next((m.error for m in methods if m.gradient == "autograd"), 0.0)
    return max(GOOD, NOISE * rounding)


def verdict(methods: Sequence[MethodAudit], used: str) -> str:
    """Whether the network's own method can be trusted.

    Args:
        methods: what was measured.
        used: the network's own method.
    """
    own = next((m for m in methods if m.gradient == used), None)
    if own is None:
        return f"`{used}` could not be measured."
    numbers = f"relative error {own.error:.1e}, cosine {own.cosine:.4f}"
    if own.error <= GOOD:
        return f"`{used}` gives the gradient of the steps that were taken: {numbers}."
    if own.error <= tolerated(methods):
        return (
            f"`{used}` gives the gradient of the steps that were taken as nearly as this precision does, in which "
            f"backprop itself is as far off: {numbers}."
        )
    group, (error, _) = max(own.groups.items(), key=lambda item: item[1][0])
    worst = f"worst for {group}, {error:.1e}"
    if own.error <= POOR:
        return f"`{used}` is slightly off the gradient of the steps that were taken: {numbers}; {worst}."
    return f"`{used}` is NOT the gradient of the steps that were taken: {numbers}; {worst}."


def recommendation(methods: Sequence[MethodAudit], used: str) -> str:
    """The fastest method that can be trusted, the smallest, and one whose memory does not grow with the steps.

    Methods that take another form of the steps are considered if that changes the output by less than 1 %.

    Args:
        methods: what was measured.
        used: the network's own method.
    """
    limit = tolerated(methods)
    good = [m for m in methods if m.error <= limit and (m.output <= NEAR or m.gradient == used)]
    if not good:
        best = min(methods, key=lambda m: m.error)
        return (
            f"No method comes within {limit:.1g} of the exact gradient; nearest is `{best.gradient}`, {best.error:.1e}."
        )
    fastest = min(good, key=lambda m: m.seconds)
    said = [f"Speed wanted: {_mention(fastest)}."]
    smallest = min(good, key=lambda m: (m.bytes, m.seconds))
    if smallest.bytes <= LESS * fastest.bytes:
        said.append(f"Little memory wanted: {_mention(smallest, fastest)}.")
    undone = [m for m in good if isinstance(gradients[m.gradient], Undone)]
    constant = min(undone, key=lambda m: m.seconds, default=None)
    if constant is not None and constant not in (fastest, smallest):
        said.append(f"Constant memory wanted: {_mention(constant, fastest)}.")
    return " ".join(said)


def _mention(method: MethodAudit, fastest: MethodAudit | None = None) -> str:
    ratio = "" if fastest is None else f"{method.seconds / fastest.seconds:.1f}x the time, "
    other = f", output {method.output:.0e} off" if method.output > SAME else ""
    return f"`{method.gradient}`, {ratio}{size(method.bytes)}, error {method.error:.0e}{other}"
