"""The result table: the same rows for Markdown, HTML and the terminal; and the CSV files, in full precision."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Results = dict[str, Any]
MISSING = "–"


def known(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(share: Any) -> str:
    """A share as a percentage, "97.8 %"."""
    return f"{100 * share:.1f} %" if known(share) else MISSING


def evaluations(nfe: Any) -> str:
    """A number of function evaluations: whole as it is, a mean with one decimal."""
    return MISSING if not known(nfe) else f"{nfe:.0f}" if float(nfe).is_integer() else f"{nfe:.1f}"


def mebibytes(count: Any) -> str:
    """Bytes as MiB with three significant digits or one decimal."""
    if not known(count):
        return MISSING
    mib = count / 2**20
    return f"{mib:,.1f}" if mib >= 1 else f"{mib:.3g}"


def _format(spec: str) -> Callable[[Any], str]:
    return lambda value: format(value, spec) if known(value) else MISSING


@dataclass(frozen=True)
class Column:
    """One column of the result table.

    Attributes:
        heading: what stands above it, unit included.
        key: where the value is in a contender's result.
        text: turns the value into what is shown.
    """

    heading: str
    key: str
    text: Callable[[Any], str]


TABLE_COLUMNS = (
    Column("network", "label", str),
    Column("parameters", "parameters", _format(",d")),
    Column("test accuracy", "test_accuracy", percent),
    Column("train loss", "train_loss", _format(".4f")),
    Column("NFE forward", "nfe_forward", evaluations),
    Column("NFE backward", "nfe_backward", evaluations),
    Column("gradient error", "gradient_error", _format(".1e")),
    Column("s / epoch", "seconds_per_epoch", _format(".2f")),
    Column("inference, ms / sample", "inference_ms", _format(".3f")),
    Column("peak training memory, MiB", "memory_bytes", mebibytes),
)

SOLVER_KEYS = ("solver", "steps", "rtol", "atol", "backend")
RESULT_FIELDS = (
    "name",
    "label",
    "role",
    *SOLVER_KEYS,
    "gradient",
    "weights",
    "parameters",
    "test_accuracy",
    "test_loss",
    "train_accuracy",
    "train_loss",
    "nfe_forward",
    "nfe_backward",
    "gradient_error",
    "seconds_per_epoch",
    "inference_ms",
    "memory_bytes",
)
CELL_FIELDS = ("label", "solver", "steps", "pieces", "rtol", "atol", "accuracy", "flips", "nfe", "trained", "note")


def result_table(results: Results) -> list[dict[str, str]]:
    """The table, a row for each network in the order of the results: heading -> text, "–" for what is missing.

    Args:
        results: results of a comparison, as in results.json.
    """
    return [_row(network) for network in results["contenders"]]


def sections(results: Results) -> list[tuple[str, list[dict[str, str]]]]:
    """The table's rows in two sections, contenders and controls, without empty ones."""
    found = []
    for title, role in (("contenders", "contender"), ("controls", "control")):
        rows = [_row(n) for n in results["contenders"] if (n["role"] == "control") == (role == "control")]
        if rows:
            found.append((title, rows))
    return found


def _row(network: Mapping[str, Any]) -> dict[str, str]:
    return {column.heading: column.text(network.get(column.key)) for column in TABLE_COLUMNS}


def terminal_table(results: Results) -> Table:
    """The result table for the terminal, controls in a section of their own.

    Args:
        results: results of a comparison.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(str(results["title"])), box=box.SIMPLE_HEAD, title_justify="left")
    for column in TABLE_COLUMNS:
        name = column.key == "label"
        table.add_column(column.heading, justify="left" if name else "right", no_wrap=name)
    for title, rows in sections(results):
        for row in rows:
            table.add_row(*map(escape, row.values()), style="dim" if title == "controls" else None)
        table.add_section()
    return table


def results_csv(results: Results) -> str:
    """One line for each network, numbers in full precision, empty where a value is missing."""
    rows = []
    for network in results["contenders"]:
        solver = network.get("solver") or {}
        rows.append({**network, **{key: solver.get(key) for key in SOLVER_KEYS}})
    return csv_text(RESULT_FIELDS, rows)


def swap_csv(results: Results) -> str:
    """One line for each network under each solver."""
    rows = [
        {"network": network["name"], **cell} for network in results["contenders"] for cell in network.get("swap") or []
    ]
    return csv_text(("network", *CELL_FIELDS), rows)


def csv_text(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV: the given columns in the given order, nothing for None, NaN and infinity."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([_plain(row.get(field)) for field in fields] for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
