"""An audit of gradient methods as a table of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from odenet.diagnostics.gradient_verdict import size

if TYPE_CHECKING:
    from odenet.diagnostics.gradient_audit import Audit, MethodAudit

HEADINGS = (
    "gradient",
    "error",
    "cosine",
    "output",
    "F forward",
    "F backward",
    "VJPs",
    "held",
    "s forward",
    "s backward",
)


def cells(method: MethodAudit) -> list[str]:
    """What stands under `HEADINGS` for one method."""
    return [
        method.gradient,
        f"{method.error:.1e}",
        f"{method.cosine:.5f}",
        f"{method.output:.0e}",
        *map(str, (method.nfe, method.nfe_backward, method.vjps)),
        size(method.bytes),
        f"{method.seconds_forward:.3g}",
        f"{method.seconds_backward:.3g}",
    ]


def text(audit: Audit) -> str:
    """The methods that were measured, those that were not, the verdict and the recommendation."""
    rows = [list(HEADINGS), *map(cells, audit.methods)]
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]
    lines += [f"{method.gradient}: {method.note}" for method in audit.refused]
    return "\n".join([*lines, audit.verdict, audit.recommendation])
