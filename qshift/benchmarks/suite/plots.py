"""The plots of the report, as plotly takes them: averages, segments, and gains over the stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from qshift.benchmarks.suite.averages import Averaged
from qshift.benchmarks.suite.grids import colour
from qshift.benchmarks.suite.report import Report
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


def figures(report: Report) -> list[tuple[str, Figure]]:
    """Titles and plots: the averages, and for streams of several segments two of their own."""
    figures = [("Averages with 95 % intervals", _averages(report))] if report.averages else []
    for line in report.lines:
        frozen = line[FROZEN]
        if len(frozen.parts) > 1:
            title = f"{frozen.task} {frozen.stream.name}"
            figures.append((f"{title}: mAP by segment", _by_segment(line, report.adapting)))
            cells = [line[name] for name in report.adapting]
            figures.append((f"{title}: gain over the last 64 queries, × resets", _curves(cells)))
    return figures


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


def _round(values: Iterable[float]) -> list[float]:
    return [round(value, 3) for value in values]
