// The three charts, drawn by plotly. Each takes a part of the snapshot; colours come from the style sheet.
"use strict";
const Charts = (() => {
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const washed = (hex, alpha) => {
    const [r, g, b] = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };
  const config = { displayModeBar: false, responsive: true };
  const axis = more => ({
    gridcolor: colour("grid"), zeroline: false, linecolor: colour("line"), automargin: true,
    tickfont: { color: colour("soft"), size: 12 }, ...more,
  });
  const layout = more => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("soft"), size: 12.5 },
    margin: { l: 48, r: 18, t: 30, b: 42 }, showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("ink"), size: 12.5 } },
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    ...more,
  });

  function draw(id, traces, shape) {
    const box = document.getElementById(id);
    box.querySelector(":scope > .empty")?.remove();
    Plotly.react(box, traces, shape, config);
  }

  // Phases as faint bands with their names above the plot.
  function phases(marks, last) {
    const shapes = [], annotations = [];
    marks.forEach((mark, index) => {
      const end = mark.end ?? last;
      if (index % 2 === 0) shapes.push({
        type: "rect", xref: "x", yref: "paper", x0: mark.first, x1: end, y0: 0, y1: 1,
        fillcolor: washed(colour("frozen"), .07), line: { width: 0 }, layer: "below",
      });
      if (index) shapes.push({
        type: "line", xref: "x", yref: "paper", x0: mark.first, x1: mark.first, y0: 0, y1: 1,
        line: { color: washed(colour("frozen"), .45), width: 1, dash: "dot" }, layer: "below",
      });
      // A name that its phase has no room for stays out: the table below has them all.
      const share = (end - mark.first) / Math.max(1, last);
      if (share * document.getElementById("quality").clientWidth > 7 * mark.text.length) annotations.push({
        xref: "x", yref: "paper", x: (mark.first + end) / 2, y: 1, yanchor: "bottom", showarrow: false,
        text: mark.text.replace(/[<>&]/g, " "), font: { color: colour("soft"), size: 12 },
      });
    });
    return { shapes, annotations };
  }

  // A line where lanes obeyed a command; one that was refused is fainter.
  const ordered = commands => commands.map(c => ({
    type: "line", xref: "x", yref: "paper", x0: c.x, x1: c.x, y0: 0, y1: 1, name: c.action,
    line: { color: washed(colour("ink"), c.result === "applied" ? .6 : .25), width: 1.4, dash: "dash" }, layer: "below",
  }));

  function quality(series, marks, commands) {
    const rows = series.x.map((_, i) => i).filter(i => series.served[i] !== null);
    if (!rows.length) return;
    const pick = name => rows.map(i => series[name][i]);
    const x = pick("x"), last = Math.max(x.at(-1), series.x.at(-1)), traces = [];
    for (const name of ["frozen", "adapted", "served"]) {
      const low = pick(`${name}_low`), high = pick(`${name}_high`), hue = colour(name);
      traces.push({
        x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", mode: "none",
        fillcolor: washed(hue, name === "served" ? .16 : .1), hoverinfo: "skip", showlegend: false,
      });
    }
    for (const name of ["frozen", "adapted", "served"]) traces.push({
      x, y: pick(name), name, mode: x.length > 1 ? "lines" : "markers", hovertemplate: "%{y:.1f}",
      line: { color: colour(name), width: name === "served" ? 3 : 2, dash: name === "frozen" ? "dash" : name === "adapted" ? "dot" : "solid" },
      marker: { color: colour(name) },
    });
    // The first labels alone have intervals across the whole scale: they do not set it.
    const settled = rows.slice(Math.min(4, rows.length - 1));
    const lows = settled.flatMap(i => ["frozen_low", "adapted_low", "served_low"].map(n => series[n][i] ?? series.served[i]));
    const highs = settled.flatMap(i => ["frozen_high", "adapted_high", "served_high"].map(n => series[n][i] ?? series.served[i]));
    const bottom = Math.min(...lows), top = Math.max(...highs), room = Math.max(2, (top - bottom) * .1);
    const { shapes, annotations } = phases(marks, last);
    draw("quality", traces, layout({
      shapes: [...shapes, ...ordered(commands)], annotations, margin: { l: 48, r: 18, t: 52, b: 42 },
      legend: { orientation: "h", x: 0, y: 1.085, yanchor: "bottom", font: { color: colour("ink"), size: 12.5 } },
      xaxis: axis({ title: { text: "queries answered", standoff: 8 }, range: [0, last * 1.005], showgrid: false }),
      yaxis: axis({ title: { text: "mAP, points", standoff: 8 }, range: [Math.max(0, bottom - room), Math.min(100, top + room)] }),
    }));
  }

  const STATISTICS = { mean_gap: "mean gap", entropy_ks: "entropy", nearest_ks: "nearest distance", modality_gap: "modality gap" };

  function drift(series, marks, lane, commands) {
    const rows = series.x.map((_, i) => i).filter(i => !lane || series.lane[i] === lane);
    const names = Object.keys(STATISTICS).filter(name => rows.some(i => series.statistics[name][i] !== null));
    if (!names.length) return;
    const last = series.x[rows.at(-1)];
    const traces = names.map((name, order) => ({
      x: rows.map(i => series.x[i]), y: rows.map(i => series.statistics[name][i]), name: STATISTICS[name],
      mode: "lines", connectgaps: false, hovertemplate: "%{y:.2f}",
      line: { color: colour(`drift-${order + 1}`), width: 2, dash: ["solid", "dash", "dot", "dashdot"][order] },
    }));
    const top = Math.max(1.25, ...traces.flatMap(t => t.y.filter(y => y !== null))) * 1.08;
    const { shapes } = phases(marks, last);
    shapes.push(...ordered(commands.filter(c => !lane || c.lane === lane)));
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: colour("bad"), width: 1.6 } });
    shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: 1, y1: top, fillcolor: washed(colour("bad"), .05), line: { width: 0 }, layer: "below" });
    draw("drift", traces, layout({
      shapes, annotations: [{ xref: "paper", x: 1, y: 1, xanchor: "right", yanchor: "bottom", text: "alarm", showarrow: false, font: { color: colour("bad"), size: 12 } }],
      xaxis: axis({ title: { text: "queries answered", standoff: 8 }, range: [0, last * 1.005], showgrid: false }),
      yaxis: axis({ range: [0, top], title: { text: "× threshold", standoff: 8 } }),
    }));
  }

  function latency(part) {
    if (!part.stages.length) return;
    const names = part.stages.map(stage => stage.replaceAll("_", " "));
    draw("latency", [{
      type: "bar", orientation: "h", y: names, x: part.p50, marker: { color: washed(colour("served"), .75), line: { width: 0 } },
      error_x: { type: "data", symmetric: false, array: part.p95.map((p, i) => p - part.p50[i]), arrayminus: part.p50.map(() => 0), color: colour("ink"), thickness: 1.4, width: 4 },
      customdata: part.p95, hovertemplate: "p50 %{x:.1f} ms · p95 %{customdata:.1f} ms<extra></extra>",
    }], layout({
      showlegend: false, hovermode: "closest", bargap: .42, margin: { l: 100, r: 18, t: 8, b: 42 },
      xaxis: axis({ title: { text: "milliseconds", standoff: 8 }, rangemode: "tozero" }),
      yaxis: axis({ autorange: "reversed", showgrid: false, tickfont: { color: colour("ink"), size: 12.5 } }),
    }));
  }

  return { quality, drift, latency };
})();
