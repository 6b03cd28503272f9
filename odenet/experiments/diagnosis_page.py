"""The report of a diagnosis, as Markdown, as one self-contained HTML file, and as a table in CSV."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from odenet.diagnostics import Finding, diagnostics
from odenet.experiments.report_page import as_markdown, document, inline

VERDICTS = {True: "yes", False: "no", None: "not judged"}
HEADINGS = ("diagnostic", "block", "like an ODE", "what was found")


@dataclass(frozen=True)
class Diagnosis:
    """What was found of one network.

    Attributes:
        name: its name in its run.
        label: its name in words.
        facts: data, seed and solver.
        verdict: True if every diagnostic that judges passes, False if one fails, None if none judges.
        findings: what each diagnostic found.
        figures: for each diagnostic with a figure its files.
    """

    name: str
    label: str
    facts: str
    verdict: bool | None
    findings: list[Finding]
    figures: Mapping[str, Mapping[str, Path]]


def summary(diagnosis: Diagnosis) -> str:
    """The verdict in a sentence."""
    judged = [f for f in diagnosis.findings if f.result is not None and f.result.verdict is not None]
    failed = dict.fromkeys(diagnostics[f.diagnostic].title for f in judged if f.result and not f.result.verdict)
    if not judged:
        return "Nothing was measured that tells a network from an ODE."
    if not failed:
        return f"By all {len(judged)} measures that judge, this network behaves like the ODE with its weights."
    passed = len(judged) - sum(1 for f in judged if f.result and not f.result.verdict)
    return (
        f"This network is not the ODE with its weights: {passed} of {len(judged)} measures pass; it fails "
        f"{', '.join(failed)}."
    )


def rows(diagnosis: Diagnosis) -> list[tuple[str, str, str, str]]:
    """The table: diagnostic, block, verdict, sentence."""
    found = []
    for f in diagnosis.findings:
        verdict = "not run" if f.result is None else VERDICTS[f.result.verdict]
        text = f.note if f.result is None else f.result.sentence
        found.append((diagnostics[f.diagnostic].title, "" if f.block is None else str(f.block), verdict, text))
    return found


def csv(diagnosis: Diagnosis) -> str:
    """The table as CSV."""
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerows([HEADINGS, *rows(diagnosis)])
    return text.getvalue()


def markdown(diagnosis: Diagnosis, folder: Path) -> str:
    """The report as Markdown, its figures linked relative to `folder`."""
    text = [f"# Is it an ODE? {as_markdown(diagnosis.label)}", "", as_markdown(diagnosis.facts), ""]
    text += [as_markdown(summary(diagnosis)), "", f"| {' | '.join(HEADINGS)} |", "| --- | --- | --- | --- |"]
    text += [f"| {' | '.join(map(as_markdown, row))} |" for row in rows(diagnosis)]
    for name in dict.fromkeys(f.diagnostic for f in diagnosis.findings):
        entry = diagnostics[name]
        text += ["", f"## {entry.title}", "", f"`{entry.formula}` ({entry.reference}). {_how(name)}"]
        if name in diagnosis.figures:
            text += ["", f"![{entry.title}]({diagnosis.figures[name]['png'].relative_to(folder).as_posix()})"]
    return "\n".join(text) + "\n"


def html(diagnosis: Diagnosis) -> str:
    """The report as one HTML file that refers to nothing outside itself."""
    title = escape(f"Is it an ODE? {diagnosis.label}")
    body = [f"<h1>{title}</h1>", f"<p class=facts>{escape(diagnosis.facts)}</p>"]
    body += [f"<p><strong>{escape(summary(diagnosis))}</strong></p>", "<div class=wide><table class=pairs>"]
    body.append(f"<thead><tr>{''.join(f'<th scope=col>{h}</th>' for h in HEADINGS)}</tr></thead><tbody>")
    for row in rows(diagnosis):
        body.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    body.append("</tbody></table></div>")
    for name in dict.fromkeys(f.diagnostic for f in diagnosis.findings):
        entry = diagnostics[name]
        body.append(f"<h2>{escape(entry.title)}</h2>")
        caption = f"<code>{escape(entry.formula)}</code> ({escape(entry.reference)}). {escape(_how(name))}"
        if name in diagnosis.figures:
            image = f'<img src="{inline(diagnosis.figures[name])}" alt="{escape(entry.title)}">'
            body.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
        else:
            body.append(f"<p class=facts>{caption}</p>")
    return document(title, body)


def _how(name: str) -> str:
    """The first sentence of the function's docstring, and what it takes for a pass."""
    doc = " ".join((diagnostics[name].run.__doc__ or "").split())
    first = doc.split(". ")[0].rstrip(".") + "."
    _, _, after = doc.partition("Returns: ")
    passes = after.split(" Raises:")[0].strip()
    return f"{first} {passes}".strip()
