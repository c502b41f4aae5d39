"""How a panel of the dashboard is written: its queries as Grafana's JSON, and the few looks that we use."""

from __future__ import annotations

from typing import Any

SOURCE = {"type": "prometheus", "uid": "qshift-prometheus"}
Panel = dict[str, Any]
Query = tuple[str, str]
"""PromQL and the legend of its lines."""


def panel(title: str, description: str, unit: str, *queries: Query, kind: str = "timeseries") -> Panel:
    """A panel without its place; `unit` is one of Grafana's unit names."""
    targets = [
        {"datasource": SOURCE, "expr": expr, "legendFormat": legend, "refId": chr(ord("A") + i)}
        for i, (expr, legend) in enumerate(queries)
    ]
    found: Panel = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    }
    if kind == "timeseries":
        found["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return found


def band(found: Panel, low: str, high: str) -> Panel:
    """Shades between the two bounds, both drawn without a line of their own."""
    found["fieldConfig"]["overrides"] += [
        _override(low, **{"custom.lineWidth": 0}),
        _override(high, **{"custom.lineWidth": 0, "custom.fillBelowTo": low, "custom.fillOpacity": 18}),
    ]
    return found


def zero_line(found: Panel) -> Panel:
    """Colours what lies below 0 as bad."""
    found["fieldConfig"]["defaults"]["thresholds"] = {
        "mode": "absolute",
        "steps": [{"color": "red", "value": None}, {"color": "green", "value": 0}],
    }
    found["fieldConfig"]["defaults"]["custom"] = {"thresholdsStyle": {"mode": "area"}}
    return found


def dashed(found: Panel, pattern: str) -> Panel:
    """Draws the lines whose legend matches as dashes: thresholds, not measurements."""
    found["fieldConfig"]["overrides"].append(
        {
            "matcher": {"id": "byRegexp", "options": pattern},
            "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}}],
        }
    )
    return found


def placed(*sections: tuple[str, list[Panel], int]) -> list[Panel]:
    """All panels with place and number: of each section a heading, then its panels of one width, in lines."""
    found: list[Panel] = []
    bottom = 0
    for title, panels, width in sections:
        heading = {"type": "row", "title": title, "collapsed": False, "panels": []}
        found.append({**heading, "gridPos": _at(0, bottom, 24, 1)})
        bottom += 1
        per_line = 24 // width
        for i, one in enumerate(panels):
            place = _at(i % per_line * width, bottom + i // per_line * 8, width, 8)
            found.append({**one, "gridPos": place})
        bottom += -(-len(panels) // per_line) * 8
    return [{**one, "id": number} for number, one in enumerate(found, 1)]


def _override(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}
