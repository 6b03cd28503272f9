"""Live progress of a run in the terminal: a bar for what is being trained, and the time left for all of it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from odenet.training import Progress as TrainingProgress

QUIET_SECONDS = 15.0


class Board:
    """Shows contenders one after the other, each with its bar, and the time left for all.

    Where the output is no terminal, a plain line is printed every fifteen seconds instead.

    Args:
        expected: estimated seconds of each contender, in order.
        console: where to write.
    """

    def __init__(self, expected: dict[str, float], console: Console):
        self.expected, self.console = dict(expected), console
        self.spent: dict[str, float] = {}
        self.name, self.started, self.left, self.said = "", 0.0, 0.0, time.monotonic()
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[what]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.current: TaskID | None = None
        self.total: TaskID | None = None

    def __enter__(self) -> Board:
        self.bars.start()
        self.total = self.bars.add_task("", name="all", what="", total=max(1e-9, sum(self.expected.values())))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, name: str) -> None:
        """A contender is starting."""
        self.name, self.started = name, time.monotonic()
        self.left = self.expected[name]
        self.current = self.bars.add_task("", name=name, what="starting", total=1.0)

    def trained(self, at: TrainingProgress) -> None:
        """A training step of the current contender."""
        what = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}  NFE {at.nfe:.0f}"
        self.left = at.eta_seconds
        self._show(at.step / at.steps, what)

    def told(self, what: str, share: float) -> None:
        """Something that comes after the training of the current contender."""
        self.left = 0.0
        self._show(share, what)

    def end(self, line: str) -> None:
        """The current contender is done; `line` says how it ended."""
        self.spent[self.name] = time.monotonic() - self.started
        if self.current is not None:
            self.bars.remove_task(self.current)
        self.current = None
        self.console.print(line, highlight=False)

    def remaining(self) -> float:
        """Estimated seconds left for the current contender and all after it."""
        expected_so_far = sum(self.expected[name] for name in self.spent)
        pace = sum(self.spent.values()) / expected_so_far if expected_so_far > 0 else 1.0
        waiting = [s for name, s in self.expected.items() if name not in self.spent and name != self.name]
        return self.left + pace * sum(waiting)

    def _show(self, share: float, what: str) -> None:
        left = f"about {clock(self.remaining())} left"
        if self.console.is_terminal and self.current is not None and self.total is not None:
            self.bars.update(self.current, completed=share, what=what)
            done, left_seconds = sum(self.spent.values()) + time.monotonic() - self.started, self.remaining()
            self.bars.update(self.total, completed=done, total=max(1e-9, done + left_seconds), what=left)
        elif time.monotonic() - self.said > QUIET_SECONDS:
            self.said = time.monotonic()
            self.console.print(f"  {self.name}: {what}  ({left})", highlight=False)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 3:07."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def summary_line(result: dict[str, Any], seconds: float | None) -> str:
    """How a contender ended, in one line."""
    took = "already done" if seconds is None else clock(seconds)
    nfe = f"NFE {result['nfe_forward']:.0f}+{result['nfe_backward']:.0f}"
    return f"[bold]{result['label']:<28}[/bold] test accuracy {100 * result['test_accuracy']:5.1f} %   {nfe:<10} {took}"
