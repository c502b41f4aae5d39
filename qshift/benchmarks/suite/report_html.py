"""The report as one page that needs nothing else: tables, plots and the plotting code in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from plotly.offline import get_plotlyjs

from qshift.benchmarks.suite.grids import Entry, Grid, grids
from qshift.benchmarks.suite.plots import figures
from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.report_text import NOTES

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1800px;
  padding: 0 1rem; color: #222; }
nav a { margin-right: 1.2em; white-space: nowrap; }
/* Borders of a collapsed table do not move with its sticky cells. */
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: 12px;
  line-height: 1.25; }
th, td { padding: 2px 5px; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap;
  vertical-align: top; background: #fff; }
th { position: sticky; top: 0; z-index: 2; vertical-align: bottom; border-bottom: 1px solid #888;
  white-space: normal; }
td.name, th.name { text-align: left; position: sticky; left: 0; border-right: 1px solid #ccc; }
td.name { z-index: 1; } th.name { z-index: 3; }
tr:hover td { background: #f2f6fb; }
td.long { white-space: normal; min-width: 7em; overflow-wrap: anywhere; }
small { display: block; font-size: 10px; color: #666; }
.green { color: #0a7d32; } .red { color: #c0201c; }
.wide { overflow: auto; max-height: 85vh; width: fit-content; max-width: 100%; }
p.note { color: #555; max-width: 90ch; }
"""


def page(report: Report) -> str:
    """The whole page; the same report gives the same bytes."""
    drawings = figures(report)
    plots = "\n".join(
        f'<h3>{escape(title)}</h3>\n<div id="plot-{number}"></div>'
        for number, (title, _) in enumerate(drawings)
    )
    drawn = "\n".join(
        f"Plotly.newPlot('plot-{number}', {script_json(figure['data'])}, {script_json(figure['layout'])}, "
        "{responsive: true, displaylogo: false});"
        for number, (_, figure) in enumerate(drawings)
    )
    left_out = "".join(f"<li>left out: {escape(m.name)}: {escape(m.reason)}</li>" for m in report.left_out)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in NOTES)
    found = grids(report)
    titles = [*(grid.title for grid in found), "Plots", "Notes"]
    links = "\n".join(f'<a href="#part-{n}">{escape(title)}</a>' for n, title in enumerate(titles))
    tables = "\n".join(f"{_heading(n, grid.title)}\n{_table(grid)}" for n, grid in enumerate(found))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head><body>
<h1>{escape(report.title)}</h1>
<p>Seeds {", ".join(map(str, report.seeds))}. Rows <code>{report.digest}</code>.</p><ul>{left_out}</ul>
<nav>{links}</nav>
{tables}
{_heading(len(found), "Plots")}
<p class="note">A click on a name in a legend hides its method, a double click shows it alone.</p>{plots}
{_heading(len(found) + 1, "Notes")}
{notes}
<script>{drawn}</script></body></html>
"""


def _heading(number: int, title: str) -> str:
    return f'<h2 id="part-{number}">{escape(title)}</h2>'


def _table(grid: Grid) -> str:
    """All names of a line share one cell: a single column is easily kept in sight."""
    top = f'<th class="name">{_two(grid.names)}</th>'
    top += "".join(f"<th>{_breakable(head)}</th>" for head in grid.heads)
    body = "".join(
        f'<tr><td class="name">{_two(line.names)}</td>{"".join(map(_td, line.entries))}</tr>\n'
        for line in grid.lines
    )
    return f'<div class="wide"><table><tr>{top}</tr>\n{body}</table></div>'


def _breakable(head: str) -> str:
    """A head may break inside a name: its column is then as narrow as what stands in it."""
    return escape(head).replace("_", "_<wbr>").replace("-", "-<wbr>")


def _two(names: Sequence[str]) -> str:
    return escape(names[0]) + _small(" · ".join(names[1:]))


def _td(entry: Entry) -> str:
    kind = "" if entry.kind == "default" else f' class="{entry.kind}"'
    return f"<td{kind}>{escape(entry.text)}{_small(entry.more)}</td>"


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def script_json(value: object) -> str:
    """For a script inside a page."""
    # A closing tag inside a string would end the script.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
