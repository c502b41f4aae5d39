"""The report as one page that needs nothing else: tables, plots and the plotting code in one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from plotly.offline import get_plotlyjs

from qshift.benchmarks.suite.averages import Averaged
from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.report_text import NOTES, Entry, Grid, colour, grids
from qshift.benchmarks.suite.rows import FROZEN, Cell, Part

Figure = dict[str, object]
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22",
)  # fmt: skip
DASHES = ("solid", "dash", "dot")
"""Methods beyond the tenth draw the same colours, dashed."""
SIGNS = {"green": "#0a7d32", "red": "#c0201c", "default": "#777"}
PANELS, PANEL_HEIGHT, POINT_HEIGHT = 3, 90, 15
"""Panels side by side; pixels of a panel without its points, and of a point."""
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
    figures = _figures(report)
    plots = "\n".join(
        f'<h3>{escape(title)}</h3>\n<div id="plot-{number}"></div>'
        for number, (title, _) in enumerate(figures)
    )
    drawn = "\n".join(
        f"Plotly.newPlot('plot-{number}', {script_json(figure['data'])}, {script_json(figure['layout'])}, "
        "{responsive: true, displaylogo: false});"
        for number, (_, figure) in enumerate(figures)
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


def _figures(report: Report) -> list[tuple[str, Figure]]:
    figures = [("Averages with 95 % intervals", _averages(report))] if report.averages else []
    for line in report.lines:
        frozen = line[FROZEN]
        if len(frozen.parts) > 1:
            title = f"{frozen.task} {frozen.stream.name}"
            figures.append((f"{title}: mAP by segment", _by_segment(line, report.adapting)))
            cells = [line[name] for name in report.adapting]
            figures.append((f"{title}: gain over the last 64 queries, × resets", _curves(cells)))
    return figures


# -- plots -----------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A method in a panel: its value, and how far its interval reaches to either side."""

    method: str
    value: float
    below: float
    above: float
    kind: str


class Panel(NamedTuple):
    """Points one below the other, and where on their axis frozen stands."""

    title: str
    frozen: float
    points: Sequence[Point]


def _averages(report: Report) -> Figure:
    panels = [
        Panel(
            f"{average[0].title} ({average[0].streams})", 0.0, [_point(o.method, o.gain, o) for o in average]
        )
        for average in report.averages
    ]
    return _panels(panels, "gain of mAP, points")


def _by_segment(line: Mapping[str, Cell], methods: Sequence[str]) -> Figure:
    panels = []
    for number, frozen in enumerate(line[FROZEN].parts):
        own = [(name, line[name].parts[number]) for name in methods]
        points = [_point(name, part.served.map, part) for name, part in own]
        panels.append(Panel(frozen.name, frozen.frozen.map, points))
    return _panels(panels, "mAP, %; the line is frozen")


def _point(method: str, value: float, of: Averaged | Part) -> Point:
    return Point(method, value, of.gain - of.low, of.high - of.gain, colour(of.low, of.high))


def _panels(panels: Sequence[Panel], axis: str) -> Figure:
    """Many methods stay apart where each has a line of its own: bars in groups of twenty do not."""
    data: list[dict[str, object]] = []
    notes: list[dict[str, object]] = []
    shapes: list[dict[str, object]] = []
    axes: dict[str, object] = {}
    columns = min(PANELS, len(panels))
    for number, panel in enumerate(panels):
        own = str(number + 1) if number else ""
        data.append(_dots(panel, own))
        at = {"xref": f"x{own} domain", "yref": f"y{own} domain"}
        notes.append(
            {
                **at, "x": 0, "y": 1, "yanchor": "bottom", "text": escape(panel.title), "showarrow": False,
                "font": {"size": 13},
            }
        )  # fmt: skip
        upright = _upright(panel.frozen, "#000", "solid")
        shapes.append({**upright, "xref": f"x{own}", "yref": f"y{own} domain", "layer": "below"})
        axes[f"xaxis{own}"] = {"zeroline": False, "tickfont": {"size": 10}}
        axes[f"yaxis{own}"] = {
            "autorange": "reversed", "tickfont": {"size": 10}, "dtick": 1,
            "showticklabels": number % columns == 0,
        }  # fmt: skip
    rows = -(-len(panels) // columns)
    height = rows * (PANEL_HEIGHT + POINT_HEIGHT * max(len(panel.points) for panel in panels))
    grid = {"rows": rows, "columns": columns, "pattern": "independent", "xgap": 0.06, "ygap": 0.25}
    more = {
        **axes, "grid": grid, "shapes": shapes, "annotations": notes, "height": height,
        "showlegend": False, "hovermode": "closest", "margin": {"t": 60, "l": 140},
        "title": {"text": axis, "font": {"size": 12}, "x": 0},
    }  # fmt: skip
    return {"data": data, "layout": {"template": "plotly_white", **more}}


def _dots(panel: Panel, own: str) -> dict[str, object]:
    return {
        "type": "scatter", "mode": "markers", "name": panel.title, "xaxis": f"x{own}", "yaxis": f"y{own}",
        "x": _round(point.value for point in panel.points), "y": [point.method for point in panel.points],
        "marker": {"color": [SIGNS[point.kind] for point in panel.points], "size": 7},
        "error_x": {
            "type": "data", "symmetric": False, "thickness": 1, "width": 2, "color": "#999",
            "array": _round(point.above for point in panel.points),
            "arrayminus": _round(point.below for point in panel.points),
        },
        "hovertemplate": "%{y} %{x:.1f} +%{error_x.array:.1f} −%{error_x.arrayminus:.1f}<extra></extra>",
    }  # fmt: skip


def _curves(cells: Sequence[Cell]) -> Figure:
    data: list[dict[str, object]] = []
    for number, cell in enumerate(cells):
        tint = COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        shared = {"type": "scatter", "name": cell.method, "legendgroup": cell.method}
        at, gains = [at for at, _ in cell.curve], [gain for _, gain in cell.curve]
        data.append(
            {
                **shared, "mode": "lines", "line": {"color": tint, "dash": dash, "width": 1.5},
                "x": _round(at), "y": _round(gains),
            }
        )  # fmt: skip
        if cell.resets:
            # On the curve and in its group of the legend, so that they are hidden with it.
            data.append(
                {
                    **shared, "mode": "markers", "showlegend": False, "x": _round(cell.resets),
                    "y": _round(np.interp(cell.resets, at, gains).tolist()), "hoverinfo": "skip",
                    "marker": {"color": tint, "symbol": "x", "size": 8},
                }
            )  # fmt: skip
    borders = _borders(cells[0]) if cells else []
    shapes = [{**_upright(at, "#bbb", "solid"), "yref": "paper"} for at in borders]
    layout = {
        "template": "plotly_white", "margin": {"t": 20}, "hovermode": "closest", "height": 520,
        "legend": {"font": {"size": 11}, "tracegroupgap": 0},
        "yaxis": {"title": {"text": "gain of mAP, points"}, "zeroline": True},
        "xaxis": {"title": {"text": "query"}}, "shapes": shapes,
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _upright(at: float, tint: str, dash: str) -> dict[str, object]:
    """A vertical line over the whole height."""
    return {
        "type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1,
        "line": {"color": tint, "dash": dash, "width": 1},
    }  # fmt: skip


def _borders(cell: Cell) -> list[float]:
    ends, total = [], 0
    for segment in cell.stream.segments[:-1]:
        total += segment.queries
        ends.append(float(total))
    return ends


# -- tables ----------------------------------------------------------------------------------------------


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


def _round(values: Iterable[float]) -> list[float]:
    return [round(value, 3) for value in values]


def script_json(value: object) -> str:
    """For a script inside a page."""
    # A closing tag inside a string would end the script.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
