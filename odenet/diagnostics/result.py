"""What a diagnostic finds, and the registry of diagnostics.

To add a diagnostic, write one file: a function of (block, x) or (model, x, y) that returns a `Result`, entered with
`diagnostic`. The report, its figures and `odenet list` show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from odenet.registry import Registry

Function = TypeVar("Function", bound=Callable[..., Any])


class Line(NamedTuple):
    """One line of a figure.

    Attributes:
        label: what it shows.
        x: abscissae.
        y: ordinates.
        look: "line", "points", "dashed" (a control or a bound), "level" (a horizontal line at y[0]) or "ring" (marks
            points of other lines).
    """

    label: str
    x: list[float]
    y: list[float]
    look: str = "line"


@dataclass(frozen=True)
class Curves:
    """A figure as data.

    Attributes:
        xlabel: of the x axis.
        ylabel: of the y axis.
        lines: what is drawn.
        logx: whether x is logarithmic.
        logy: whether y is logarithmic.
    """

    xlabel: str
    ylabel: str
    lines: list[Line]
    logx: bool = False
    logy: bool = False


@dataclass(frozen=True)
class Result:
    """What a diagnostic found; its subclasses hold the numbers, and printed it is a sentence.

    Attributes:
        verdict: True if it looks like an ODE by this measure, False if it does not, None if the measure does not judge.
        sentence: what was found, in words.
        curves: a figure of it, or None.
    """

    verdict: bool | None = field(init=False, default=None)
    sentence: str = field(init=False, default="")
    curves: Curves | None = field(init=False, default=None, repr=False)

    def judged(self, verdict: bool | None, sentence: str, curves: Curves | None = None) -> None:
        """Set the verdict, the sentence and the figure, once, when the numbers are there."""
        for name, value in (("verdict", verdict), ("sentence", sentence), ("curves", curves)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """The verdict and the sentence."""
        verdict = {True: "like an ODE: ", False: "not like an ODE: ", None: ""}[self.verdict]
        return verdict + self.sentence

    def numbers(self) -> dict[str, Any]:
        """The measured values, ready for JSON."""
        own = [f.name for f in fields(self) if f.name not in ("verdict", "sentence", "curves")]
        return {name: _plain(getattr(self, name)) for name in own}


class Diagnostic(NamedTuple):
    """A diagnostic.

    Attributes:
        run: the function, (block, x) -> Result, or (model, x, y) -> Result.
        of: "block" or "model".
        title: as it reads in a report.
        formula: what is computed.
        reference: the paper.
    """

    run: Callable[..., Result]
    of: str
    title: str
    formula: str
    reference: str


diagnostics: Registry[Diagnostic] = Registry("diagnostic")


def diagnostic(
    name: str, *, title: str, formula: str, reference: str, of: str = "block"
) -> Callable[[Function], Function]:
    """Decorator: enter a function as the diagnostic `name`.

    Args:
        name: its name.
        title: as it reads in a report.
        formula: what is computed.
        reference: the paper.
        of: "block" for a function of (block, x), "model" for one of (model, x, y).
    """

    def enter(run: Function) -> Function:
        diagnostics.add(name, Diagnostic(run, of, title, formula, reference))
        return run

    return enter


def percent(share: float) -> str:
    """A share in words: "1.3 %", "0.02 %", "3e-05 %"."""
    value = 100 * share
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g} %"
    return f"{value:.1e} %" if abs(value) < 1 else f"{value:.3g} %"


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return [value.real.tolist(), value.imag.tolist()] if value.is_complex() else value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
