"""The report as a page: the same parts in the same order, written as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from odenet.experiments.claims import Claim, judge, sentences
from odenet.experiments.report_findings import findings
from odenet.experiments.report_table import TABLE_COLUMNS, Results, known, sections

LARGEST_SVG = 600_000  # bytes; a larger drawing is inlined as PNG

MEASURED = (
    (
        "NFE forward, NFE backward",
        "Evaluations of the residual function F in a forward pass and during the backward pass (recomputation, or the "
        "adjoint’s solve), summed over the blocks, mean over the training steps of the last epoch. Backpropagation "
        "through stored steps needs none.",
    ),
    (
        "Test accuracy",
        "Share of the test set that is classified rightly (in a regression: met within the tolerance), after the last "
        "epoch.",
    ),
    (
        "Train loss",
        "Mean cross-entropy (in a regression: squared error) of the training samples as they were seen during the last "
        "epoch.",
    ),
    (
        "s / epoch",
        "Wall time of an epoch’s training steps, without evaluation and checkpoints: the median over the epochs.",
    ),
    (
        "Inference",
        "Wall time of a forward pass of one test batch without gradients, divided by the samples in it: the median of "
        "five passes, after one that is not counted.",
    ),
    (
        "Peak training memory",
        "On a CPU the peak of what one training step saves for its backward pass, parameters left out; on CUDA the "
        "peak of allocated memory. 1 MiB is 2²⁰ bytes.",
    ),
    (
        "Solver swap",
        "The trained weights, untouched, walked by another solver over the same test set. Flips are the samples whose "
        "class is not the one that they had under the training solver. A network with untied layers that is walked "
        "with fewer steps than layers keeps every k-th layer.",
    ),
)


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        title: heading.
        caption: how to read it.
        files: where it was written, by kind: "png" and "svg".
    """

    title: str
    caption: str
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Page:
    """All that a report shows."""

    results: Results
    pictures: list[Picture]
    config_yaml: str
    environment: Mapping[str, Any]


def facts(results: Results) -> str:
    """The run in one line: data, seed, epochs, device, time, version."""
    data = results["data"]
    targets = f"{len(data['classes'])} classes"
    if known(data.get("tolerance")):
        targets = f"a regression, counted as right within {data['tolerance']:g}"
    parts = [
        f"{data['name']}: {data['n_train']} training and {data['n_test']} test samples of shape "
        f"{' × '.join(map(str, data['shape']))}, {targets}",
        f"seed {results['seed']}",
    ]
    for key, text in (("epochs", "{} epochs"), ("batch_size", "batches of {}"), ("device", "device {}")):
        if results.get(key) is not None:
            parts.append(text.format(results[key]))
    if results.get("threads") is not None:
        parts.append(f"{results['threads']} threads")
    if results.get("seconds") is not None:
        parts.append(f"{results['seconds']:.0f} s in all")
    revision = f" ({results['git_revision'][:10]})" if results.get("git_revision") else ""
    return "; ".join([*parts, f"odenet {results.get('version', '')}{revision}"]) + "."


def markdown(page: Page, folder: Path) -> str:
    """The report as Markdown, its figures linked relative to `folder`."""
    text = [f"# {as_markdown(page.results['title'])}", "", facts(page.results), "", "## What was found", ""]
    text += [f"- {as_markdown(sentence)}" for sentence in findings(page.results)]
    text += ["", "## Results", "", *_markdown_table(page.results), ""]
    for picture in page.pictures:
        link = picture.files["png"].relative_to(folder).as_posix()
        text += [f"## {picture.title}", "", f"![{picture.title}]({link})", "", picture.caption, ""]
    text += ["## How this was measured", "", *(f"- **{what}.** {how}" for what, how in MEASURED), ""]
    text += ["## Config", "", _fenced(page.config_yaml, "yaml"), "", "## Environment", ""]
    text += ["| what | value |", "| --- | --- |"]
    text += [f"| {as_markdown(key)} | {as_markdown(value)} |" for key, value in flat(page.environment)]
    text += claim_section(judge([page.results]), [page.results["seed"]])
    return "\n".join(text) + "\n"


def claim_section(claim: Claim | None, seeds: Sequence[int]) -> list[str]:
    """The last lines of a report, on a paper’s claim that was judged by runs of these seeds; none without a claim."""
    if claim is None:
        return []
    return ["", "## The paper’s claim", *(line for s in sentences(claim, seeds) for line in ("", as_markdown(s)))]


def _markdown_table(results: Results) -> list[str]:
    headings = [column.heading for column in TABLE_COLUMNS]
    rows = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    for title, section in sections(results):
        if title == "controls":
            rows.append(f"| *controls* |{' |' * (len(headings) - 1)}")
        rows += [f"| {' | '.join(as_markdown(row[h]) for h in headings)} |" for row in section]
    return rows


def as_markdown(value: object) -> str:
    """Text that Markdown leaves as it is, also inside a table."""
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("<", "&lt;")
    for sign in "|*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as pairs of a dotted name and a text, None left out."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found.append((f"{prefix}{key}", text))
    return found


def document(title: str, body: Sequence[str]) -> str:
    """One HTML file that refers to nothing outside itself, from an escaped title and the lines of the body."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body>\n</html>\n"
    )


def html(page: Page) -> str:
    """The report as one HTML file that refers to nothing outside itself."""
    title = escape(str(page.results["title"]))
    body = [f"<h1>{title}</h1>", f"<p class=facts>{escape(facts(page.results))}</p>", "<h2>What was found</h2>"]
    body += ["<ul>", *(f"<li>{escape(sentence)}</li>" for sentence in findings(page.results)), "</ul>"]
    body += ["<h2>Results</h2>", _html_table(page.results)]
    for picture in page.pictures:
        image = f'<img src="{inline(picture.files)}" alt="{escape(picture.title)}">'
        body.append(f"<h2>{escape(picture.title)}</h2>")
        body.append(f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>")
    body += ["<h2>How this was measured</h2>", "<dl>"]
    body += [f"<dt>{escape(what)}</dt><dd>{escape(how)}</dd>" for what, how in MEASURED]
    body += ["</dl>", "<h2>Config</h2>", f"<pre>{escape(page.config_yaml.rstrip())}</pre>", "<h2>Environment</h2>"]
    rows = (f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in flat(page.environment))
    body.append(f"<div class=wide><table class=pairs>{''.join(rows)}</table></div>")
    claim = judge([page.results])
    if claim is not None:
        said = sentences(claim, [page.results["seed"]])
        body += ["<h2>The paper’s claim</h2>", *(f"<p>{escape(s)}</p>" for s in said)]
    return document(title, body)


def _html_table(results: Results) -> str:
    headings = "".join(f"<th scope=col>{escape(column.heading)}</th>" for column in TABLE_COLUMNS)
    parts = [f"<thead><tr>{headings}</tr></thead>"]
    for title, rows in sections(results):
        name = f"<tr class=section><td colspan={len(TABLE_COLUMNS)}>{title}</td></tr>" if title == "controls" else ""
        parts.append(f"<tbody>{name}{''.join(map(_html_row, rows))}</tbody>")
    return f"<div class=wide><table>{''.join(parts)}</table></div>"


def _html_row(row: Mapping[str, str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(row[column.heading])}</td>' for column in TABLE_COLUMNS)}</tr>"


def inline(files: Mapping[str, Path]) -> str:
    """A figure as a data URI: the drawing, or the pixels where the drawing is too large."""
    svg = files["svg"].read_bytes()
    if len(svg) <= LARGEST_SVG:
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return f"data:image/png;base64,{base64.b64encode(files['png'].read_bytes()).decode()}"


STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --muted: #5c5c5c; --rule: #dcdcdc; --paper: #fff; --soft: #f5f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --muted: #a8a8a8; --rule: #3a3a3a; --paper: #161616; --soft: #222; }
}
* { box-sizing: border-box; }
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
li { margin: .35rem 0; }
.facts, figcaption { color: var(--muted); font-size: .92rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.section td { color: var(--muted); padding-top: 1rem; }
.pairs th, .pairs td { text-align: left; font-weight: 400; }
.pairs th { color: var(--muted); white-space: nowrap; width: 1%; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { margin-top: .6rem; }
dt { font-weight: 600; } dd { margin: 0 0 .7rem; }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; border-radius: 4px;
  font-size: .8rem; line-height: 1.4; }
@media print {
  :root { --ink: #000; --muted: #444; --rule: #ccc; --paper: #fff; --soft: #f5f5f5; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr, li { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .2rem .3rem; }
  pre { white-space: pre-wrap; }
}
"""
