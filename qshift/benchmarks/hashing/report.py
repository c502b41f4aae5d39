"""Rows, tables and the page of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from plotly.offline import get_plotlyjs

from qshift.benchmarks.hashing.run import DIRECTIONS, PLACES, Cell, Direction, Done, Score
from qshift.benchmarks.suite.plots import COLOURS
from qshift.benchmarks.suite.report_html import STYLE, script_json
from qshift.terminal.sheet import Head, Sheet

Results = Mapping[Cell, Done]
Key = tuple[str, str, Direction]
"""Method, task, direction."""
NOTES = (
    "mAP: tie-aware, over the whole ranking, queries without a relevant item left out. mAP@k divides by the "
    "hits among the first k. PR area: pooled over queries and radii, as part of the literature calls mAP; it "
    "is no mean average precision and never comparable with one.",
    "cross: queries of the target ask the source. single: they ask the target's training rows. Fits see the "
    "labels of the source only. ± is the standard deviation over splits.",
    "learned: gallery codes of the cross direction are those that the fit gave to its source rows, which "
    "hold their labels; hash_fn: those of the out-of-sample function. Never compare across the two.",
)


@dataclass(frozen=True, slots=True)
class Line:
    """Means over splits at one code length, points; `spread` is the standard deviation of map_all."""

    bits: int
    map_all: float
    spread: float
    map_at_k: float
    pooled: float
    seconds: float
    scores: tuple[Score, ...]


def rows(results: Results) -> list[dict[str, object]]:
    """For `--json`: one row per split and one per mean; points, and null where a measure does not apply."""
    found: list[dict[str, object]] = []
    for cell, done in results.items():
        for score in done.scores:
            head = {
                "method": cell.method, "task": cell.task, "direction": score.direction, "bits": cell.bits,
                "split": cell.split,
            }  # fmt: skip
            found.append(
                {
                    **head,
                    "map_all": _points(score.map_all),
                    "map_at_k": _points(score.map_at_k),
                    "pooled_pr_area": _points(score.pooled_pr_area),
                    "seconds": round(done.seconds, 3),
                    "codes": cell.codes if score.direction == "cross" else "hash_fn",
                    "scheme": cell.scheme,
                    "precision": _at_places([score]),
                    "gauges": {name: _plain(value) for name, value in done.gauges.items()},
                }
            )
    some = next(iter(results))
    for (method, task, direction), lines in grouped(results).items():
        for line in lines:
            found.append(
                {
                    "method": method, "task": task, "direction": direction, "bits": line.bits,
                    "split": "mean", "map_all": _plain(line.map_all), "map_at_k": _plain(line.map_at_k),
                    "pooled_pr_area": _plain(line.pooled), "seconds": round(line.seconds, 3),
                    "codes": _codes(results, method) if direction == "cross" else "hash_fn",
                    "scheme": some.scheme,
                    "precision": _at_places(line.scores), "spread": _plain(line.spread),
                    "splits": len(line.scores),
                }
            )  # fmt: skip
    return found


def grouped(results: Results) -> dict[Key, list[Line]]:
    """Means over splits, in the order of the cells."""
    found: dict[Key, dict[int, list[tuple[Score, float]]]] = {}
    for cell, done in results.items():
        for score in done.scores:
            own = found.setdefault((cell.method, cell.task, score.direction), {})
            own.setdefault(cell.bits, []).append((score, done.seconds))
    return {
        key: [_line(bits, pairs) for bits, pairs in by_bits.items()]
        for key, by_bits in sorted(found.items(), key=lambda item: DIRECTIONS.index(item[0][2]))
    }


def _at_places(scores: Sequence[Score]) -> dict[str, float | None]:
    """Precision at N, points, by N."""
    means = np.mean([score.precision for score in scores], axis=0)
    return {str(n): _points(float(value)) for n, value in zip(PLACES, means)}


def _line(bits: int, pairs: Sequence[tuple[Score, float]]) -> Line:
    scores = tuple(score for score, _ in pairs)
    values = [100 * score.map_all for score in scores]
    return Line(
        bits, float(np.mean(values)), float(np.std(values)),
        100 * float(np.mean([score.map_at_k for score in scores])),
        100 * float(np.mean([score.pooled_pr_area for score in scores])),
        float(np.mean([seconds for _, seconds in pairs])), scores,
    )  # fmt: skip


def sheets(results: Results) -> list[Sheet]:
    """One per task and direction: a line per method, mAP and pooled area by code length."""
    lines, found = grouped(results), []
    lengths = sorted({cell.bits for cell in results if cell.bits}) or [0]
    for task in dict.fromkeys(cell.task for cell in results):
        for direction in DIRECTIONS:
            columns = [Head(f"{bits} bits" if bits else "mAP") for bits in lengths]
            sheet = Sheet(
                f"{task}, {direction}: mAP ± sd over splits (pooled PR area)",
                [Head("method", left=True), Head("codes", 2, left=True), *columns, Head("fit, s", 1)],
            )
            for (method, own, way), means in lines.items():
                if (own, way) == (task, direction):
                    sheet.add(method, *_cells(results, method, direction, means, lengths))
            found.append(sheet)
    return found


def _cells(
    results: Results, method: str, direction: Direction, means: Sequence[Line], lengths: Sequence[int]
) -> list[str]:
    by_bits = {line.bits: line for line in means}
    seconds = f"{max(line.seconds for line in means):.2f}"
    if 0 in by_bits:  # no codes: the same at every length
        return ["floats", *[_text(by_bits[0])] * len(lengths), seconds]
    kind = _codes(results, method) if direction == "cross" else "hash_fn"
    return [kind, *(_text(by_bits[bits]) if bits in by_bits else "" for bits in lengths), seconds]


def _text(line: Line) -> str:
    pooled = "" if math.isnan(line.pooled) else f"\n({line.pooled:.1f})"
    return f"{line.map_all:.1f} ± {line.spread:.1f}{pooled}"


def _codes(results: Results, method: str) -> str:
    return next(cell.codes for cell in results if cell.method == method)


def markdown(results: Results, title: str) -> str:
    """The same tables."""
    parts = [f"# {title}"]
    for sheet in sheets(results):
        heads = [head.text for head in sheet.heads]
        body = [[str(value).replace("\n", " ") for value in row] for row in sheet.rows]
        lines = [heads, ["---"] * len(heads), *body]
        parts.append(f"**{sheet.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join((*parts, *NOTES)) + "\n"


def page(results: Results, title: str) -> str:
    """A page that needs nothing else: tables, and the plots of the literature."""
    drawn = figures(results)
    plots = "".join(f'<h3>{escape(name)}</h3><div id="plot-{n}"></div>' for n, (name, _) in enumerate(drawn))
    script = "\n".join(
        f"Plotly.newPlot('plot-{n}', {script_json(figure['data'])}, {script_json(figure['layout'])}, "
        "{responsive: true, displaylogo: false});"
        for n, (_, figure) in enumerate(drawn)
    )
    found = "\n".join(f"<h3>{escape(sheet.title)}</h3>{_html(sheet)}" for sheet in sheets(results))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in NOTES)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head><body>
<h1>{escape(title)}</h1>
{found}
{plots}
{notes}
<script>{script}</script></body></html>
"""


def figures(results: Results) -> list[tuple[str, dict[str, object]]]:
    """Per task and direction, the plots of the literature; curves are those of the longest codes."""
    lines, found = grouped(results), []
    for task in dict.fromkeys(cell.task for cell in results):
        for direction in DIRECTIONS:
            own = {key[0]: means for key, means in lines.items() if key[1:] == (task, direction)}
            last = {name: means[-1] for name, means in own.items()}
            longest = max(line.bits for line in last.values())
            by_bits = {
                name: ([line.bits for line in means], [line.map_all for line in means])
                for name, means in own.items()
                if means[0].bits
            }
            where = f"{task}, {direction}"
            if by_bits:
                found.append((f"{where}: mAP by code length", _plot(by_bits, "bits", "mAP, %")))
            curves = {name: _curve(line) for name, line in last.items() if line.bits}
            if curves:
                found.append(
                    (
                        f"{where}: precision and recall by Hamming radius, {longest} bits",
                        _plot(curves, "recall, %", "precision, %"),
                    )
                )
            for what in ("precision", "recall"):
                at = {
                    name: (PLACES, np.mean([getattr(s, what) for s in line.scores], axis=0) * 100)
                    for name, line in last.items()
                }
                found.append((f"{where}: {what} at N", _plot(at, "N", f"{what}, %", log=True)))
    return found


def _curve(line: Line) -> tuple[Sequence[float], Sequence[float]]:
    """Of the first split: radii of different splits are no common axis."""
    points = line.scores[0].curve
    return [100 * recall for recall, _ in points], [100 * precision for _, precision in points]


def _plot(
    series: Mapping[str, tuple[Iterable[float], Iterable[float]]], x: str, y: str, log: bool = False
) -> dict[str, object]:
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": name,
            "line": {"color": COLOURS[number % len(COLOURS)], "width": 1.5},
            "x": [round(float(value), 3) for value in xs], "y": [round(float(value), 3) for value in ys],
        }
        for number, (name, (xs, ys)) in enumerate(series.items())
    ]  # fmt: skip
    axis = {"title": {"text": x}, **({"type": "log"} if log else {})}
    layout = {
        "template": "plotly_white", "height": 420, "margin": {"t": 20}, "xaxis": axis,
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _html(sheet: Sheet) -> str:
    heads = "".join(f"<th>{escape(head.text)}</th>" for head in sheet.heads)
    lines = ["".join(f"<td>{escape(str(value))}</td>" for value in row) for row in sheet.rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{heads}</tr>\n{body}</table></div>'


def _points(share: float) -> float | None:
    return _plain(100 * share)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
