"""The report as one page that needs nothing else: tables, plots and the plotting code in one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from plotly.offline import get_plotlyjs

from app.suite.report import Report
from app.suite.report_text import NOTES, STARS, cell_text, colour, gain_text
from app.suite.rows import FROZEN, Cell

Figure = dict[str, object]
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22",
)  # fmt: skip
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px;
  padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12px; }
th, td { padding: 2px 8px; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; }
td.name, th.name { text-align: left; }
.green { color: #0a7d32; } .red { color: #c0201c; }
.wide { overflow-x: auto; } .plot { min-height: 420px; }
p.note { color: #555; max-width: 90ch; }
"""


def page(report: Report) -> str:
    """The whole page; the same report gives the same bytes."""
    figures = _figures(report)
    plots = "\n".join(
        f'<h3>{escape(title)}</h3>\n<div class="plot" id="plot-{number}"></div>'
        for number, (title, _) in enumerate(figures)
    )
    drawn = "\n".join(
        f"Plotly.newPlot('plot-{number}', {_json(figure['data'])}, {_json(figure['layout'])}, "
        "{responsive: true, displaylogo: false});"
        for number, (_, figure) in enumerate(figures)
    )
    left_out = "".join(f"<li>left out: {escape(m.name)}: {escape(m.reason)}</li>" for m in report.left_out)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in NOTES)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head><body>
<h1>{escape(report.title)}</h1>
<p>Seeds {", ".join(map(str, report.seeds))}. Rows <code>{report.digest}</code>.</p><ul>{left_out}</ul>
<h2>Averages</h2>{_averages(report)}
<h2>Streams: gain of mAP over frozen, points</h2>{_streams(report)}
<h2>Segments</h2>{_segments(report)}
<h2>Cost, passes per query</h2>{_cost(report)}
<h2>Plots</h2>{plots}
{notes}
<script>{drawn}</script></body></html>
"""


def _figures(report: Report) -> list[tuple[str, Figure]]:
    figures = [("Averages with 95 % intervals", _bars(report))] if report.averages else []
    for line in report.lines:
        frozen = line[FROZEN]
        if len(frozen.parts) > 1:
            title = f"{frozen.task} {frozen.stream.name}"
            figures.append((f"{title}: mAP by segment", _by_segment(list(line.values()))))
            cells = [line[name] for name in report.adapting]
            figures.append((f"{title}: gain over the last 64 queries", _curves(cells)))
    return figures


def _bars(report: Report) -> Figure:
    titles = [f"{average[0].title} ({average[0].streams})" for average in report.averages]
    data = []
    for number, name in enumerate(report.adapting):
        own = [next(one for one in average if one.method == name) for average in report.averages]
        data.append(
            {
                "type": "bar", "name": name, "x": titles, "y": _round(o.gain for o in own),
                "marker": {"color": COLOURS[number % len(COLOURS)]},
                "error_y": {
                    "type": "data", "symmetric": False, "thickness": 1, "width": 2,
                    "array": _round(o.high - o.gain for o in own),
                    "arrayminus": _round(o.gain - o.low for o in own),
                },
            }
        )  # fmt: skip
    return {"data": data, "layout": _layout("gain of mAP, points", {"barmode": "group", "height": 560})}


def _by_segment(cells: Sequence[Cell]) -> Figure:
    frozen = next(cell for cell in cells if cell.method == FROZEN)
    names = [part.name for part in frozen.parts]
    data: list[dict[str, object]] = [
        {
            "type": "scatter", "mode": "lines+markers", "name": FROZEN, "x": names,
            "y": _round(part.frozen.map for part in frozen.parts), "line": {"color": "#000", "dash": "dash"},
        }
    ]  # fmt: skip
    for number, cell in enumerate(cell for cell in cells if cell.method != FROZEN):
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": cell.method, "x": names,
                "y": _round(part.served.map for part in cell.parts),
                "error_y": {
                    "type": "data", "symmetric": False, "thickness": 1, "width": 2,
                    "array": _round(part.high - part.gain for part in cell.parts),
                    "arrayminus": _round(part.gain - part.low for part in cell.parts),
                },
                "line": {"color": COLOURS[number % len(COLOURS)]},
            }
        )  # fmt: skip
    return {"data": data, "layout": _layout("mAP, %", {})}


def _curves(cells: Sequence[Cell]) -> Figure:
    data: list[dict[str, object]] = []
    shapes: list[dict[str, object]] = []
    for number, cell in enumerate(cells):
        tint = COLOURS[number % len(COLOURS)]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": cell.method, "line": {"color": tint},
                "x": _round(at for at, _ in cell.curve), "y": _round(gain for _, gain in cell.curve),
            }
        )  # fmt: skip
        shapes += [_upright(at, tint, "dot") for at in cell.resets]
    shapes += [_upright(at, "#bbb", "solid") for at in _borders(cells[0])] if cells else []
    return {"data": data, "layout": _layout("gain of mAP, points", {"shapes": shapes}, "query")}


def _upright(at: float, tint: str, dash: str) -> dict[str, object]:
    """A vertical line: where a segment ends (grey), or where a method was reset (dotted, its colour)."""
    return {
        "type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": tint, "dash": dash, "width": 1},
    }  # fmt: skip


def _borders(cell: Cell) -> list[float]:
    ends, total = [], 0
    for segment in cell.stream.segments[:-1]:
        total += segment.queries
        ends.append(float(total))
    return ends


def _layout(y: str, more: dict[str, object], x: str = "") -> dict[str, object]:
    return {
        "template": "plotly_white", "margin": {"t": 20}, "hovermode": "x unified",
        "yaxis": {"title": {"text": y}, "zeroline": True}, "xaxis": {"title": {"text": x}}, **more,
    }  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------------


def _averages(report: Report) -> str:
    lines = []
    for average in report.averages:
        cells = [_td(gain_text(o.gain, o.low, o.high), colour(o.low, o.high)) for o in average]
        lines.append([_name(average[0].title), _td(str(average[0].streams)), *cells])
    worst = [_td(f"{c.gain:+.1f}: {c.task} {c.stream.name}") for c in report.worst]
    lines.append([_name("worst single stream"), _td(""), *worst])
    return _table(["average", "streams", *report.adapting], lines, 1)


def _streams(report: Report) -> str:
    lines = []
    for line in report.lines:
        frozen = line[FROZEN]
        cells = [_td(cell_text(line[n]), colour(line[n].low, line[n].high)) for n in report.adapting]
        head = [_name(frozen.task), _name(frozen.stream.name), _td(str(frozen.queries))]
        lines.append([*head, _td(f"{frozen.frozen.map:.1f}"), *cells])
    stars = ", ".join(f"{mark} p &lt; {bound}" for bound, mark in reversed(STARS))
    return _table(["task", "stream", "queries", "frozen mAP", *report.adapting], lines, 2) + f"<p>{stars}</p>"


def _segments(report: Report) -> str:
    lines = []
    for line in report.lines:
        frozen = line[FROZEN]
        for number, part in enumerate(frozen.parts):
            own = [line[name].parts[number] for name in report.adapting]
            cells = [_td(gain_text(p.gain, p.low, p.high), colour(p.low, p.high)) for p in own]
            head = [_name(frozen.task), _name(frozen.stream.name), _name(part.name)]
            recalls = f"{part.frozen.r1:.1f} {part.frozen.r5:.1f} {part.frozen.r10:.1f}"
            lines.append([*head, _td(f"{part.frozen.map:.1f}"), _td(recalls), *cells])
    heads = ["task", "stream", "segment", "frozen mAP", "frozen R@1 5 10", *report.adapting]
    return _table(heads, lines, 3)


def _cost(report: Report) -> str:
    lines = []
    for name in (FROZEN, *report.adapting):
        own = report.of(name)
        means = [sum(getattr(c, part) for c in own) / len(own) for part in ("forwards", "backwards")]
        lines.append([_name(name), *(_td(f"{mean:.2f}") for mean in means)])
    return _table(["method", "forward", "backward"], lines, 1)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    top = "".join(
        f'<th class="name">{escape(head)}</th>' if number < left else f"<th>{escape(head)}</th>"
        for number, head in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(line)}</tr>\n" for line in lines)
    return f'<div class="wide"><table><tr>{top}</tr>\n{body}</table></div>'


def _td(text: str, kind: str = "default") -> str:
    return f'<td class="{kind}">{escape(text)}</td>'


def _name(text: str) -> str:
    return f'<td class="name">{escape(text)}</td>'


def _round(values: Iterable[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _json(value: object) -> str:
    # A closing tag inside a string would end the script.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
