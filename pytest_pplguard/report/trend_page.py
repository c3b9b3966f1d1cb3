"""The trend as one page for a browser: it holds all it needs, and fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from ..history import Series
from .history import BREAK, commit_text, one_line
from .text import change_text, number
from .trend_panels import Panel

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #d0d0d0;
  --red: #a33a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c;
  --line: #3c4048; --red: #ff9d5c; } }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2, h3 { overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0; } h3 { font-size: 1rem; margin: 1rem 0 0; }
.plot { height: 17rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  max-width: 20rem; overflow-wrap: anywhere; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.no { color: var(--red); font-weight: 600; }
summary { cursor: pointer; padding: .3rem 0; }
summary:focus-visible, .scroll:focus-visible { outline: 2px solid currentColor; }
"""

_SCRIPT = """
"use strict";
const panels = JSON.parse(document.getElementById("panels").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const ink = dark.matches ? "#e6e6e6" : "#1b1b1b";
  const grid = dark.matches ? "#3c4048" : "#e3e3e3";
  const blue = dark.matches ? "#56B4E9" : "#0072B2";
  const red = dark.matches ? "#E69F00" : "#D55E00";
  panels.forEach((panel, index) => {
    const traces = [];
    if (panel.baseline.length) traces.push({
      x: panel.times, y: panel.baseline, name: "baseline", mode: "lines",
      line: {dash: "dash", width: 1.5, color: dark.matches ? "#a0a0a0" : "#7F7F7F"},
      hoverinfo: "skip"});
    traces.push({
      x: panel.times, y: panel.values, name: "measured", mode: "lines+markers",
      text: panel.hover, hoverinfo: "text", line: {color: blue, width: 2},
      marker: {color: blue, size: 7}});
    if (panel.passed.includes(false)) traces.push({
      x: panel.times, name: "not passed", mode: "markers", hoverinfo: "skip",
      y: panel.values.map((value, i) => panel.passed[i] ? null : value),
      marker: {color: red, size: 12, symbol: "x"}});
    const y = {gridcolor: grid, zeroline: false, automargin: true};
    if (panel.kind === "share") Object.assign(y, {range: [-0.03, 1.03],
      tickformat: ".0%"});
    Plotly.react("plot" + index, traces, {
      margin: {l: 60, r: 15, t: 34, b: 40}, font: {color: ink, size: 12},
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: {type: "date", gridcolor: grid, automargin: true}, yaxis: y,
      showlegend: panel.baseline.length > 0,
      legend: {orientation: "h", y: 1.02, yanchor: "bottom"}, hovermode: "closest",
      hoverlabel: {align: "left"}
    }, {responsive: true, displaylogo: false});
  });
}
draw();
dark.addEventListener("change", draw);
"""


def page(panels: Sequence[Panel], *, tables: Sequence[Series]) -> str:
    """The whole page: a plot for each panel, and the numbers below."""
    from plotly.offline import get_plotlyjs

    parts: list[str] = []
    numbered = groupby(enumerate(panels), key=lambda one: one[1].checkpoint)
    for checkpoint, of_checkpoint in numbered:
        parts.append(f"<section><h2>{_text(checkpoint)}</h2>")
        for index, panel in of_checkpoint:
            title = _text(panel.title)
            label = _text(f"{panel.title} of {checkpoint} over time")
            parts.append(
                f'<h3>{title}</h3><div class="plot" id="plot{index}" role="img" '
                f'aria-label="{label}; the numbers are in the table below"></div>'
            )
        for one in tables:
            if one.checkpoint == checkpoint:
                parts.append(_table(one))
        parts.append("</section>")
    data = [_data(panel) for panel in panels]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>pplguard: trend</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>Trend</h1>{''.join(parts)}</main>\n"
        f'<script type="application/json" id="panels">{_json(data)}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _data(panel: Panel) -> dict[str, Any]:
    return {
        "kind": panel.kind,
        "times": panel.times,
        "values": panel.values,
        "passed": panel.passed,
        "baseline": panel.baseline,
        # Plotly takes some HTML in texts.
        "hover": [escape(text).replace("\n", "<br>") for text in panel.hover],
    }


def _table(one: Series) -> str:
    rows: list[str] = []
    for point in one.points:
        if point.breaks:
            rows.append(f'<tr><td colspan="7">{BREAK}</td></tr>')
        passed = "" if point.point.passed else ' class="no"'
        zeros = "-" if point.sparsity is None else f"{100 * point.sparsity:.2f} %"
        numbers = (
            number(point.point.measured),
            change_text(point.since_last),
            change_text(point.point.change),
            zeros,
        )
        rows.append(
            f"<tr><td>{_text(point.run.time[:16].replace('T', ' '))}</td>"
            f"<td>{_text(commit_text(point.run))}</td>"
            + "".join(f'<td class="n">{value}</td>' for value in numbers)
            + f"<td{passed}>{_text(point.point.outcome)}</td></tr>"
        )
    heads = ("UTC", "commit", "measured", "to last", "to base", "zeros", "outcome")
    columns = "".join(
        f'<th scope="col"{n}>{head}</th>'
        for head, n in zip(heads, ["", "", *[' class="n"'] * 4, ""], strict=True)
    )
    title = _text(f"{one.key} {one.metric}")
    return (
        f"<details><summary>Numbers of {title}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</div></details>"
    )


def _text(text: str) -> str:
    return escape(one_line(text))


def _json(data: object) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")
