"""Draws charts as SVG that fills any width, with labels as text beside it."""

import math
from collections.abc import Sequence

import numpy as np

from distil_jax.analysis.report.figures import Chart, Series, Stack
from distil_jax.analysis.report.markup import escape, number, percent, to_json

# Inside of a plot; the picture is stretched, lines keep their width.
_WIDTH, _HEIGHT = 1000, 300
_NUM_COLOURS = 8


def draw_chart(chart: Chart, key: str) -> str:
  """Returns a figure with a line for each series.

  Args:
    chart: what to draw.
    key: identifies the figure on the page.
  """
  low, high = _limits(chart)
  steps = np.concatenate([line.steps for line in chart.series])
  first, last = int(steps.min()), int(steps.max())

  def x(step: float) -> float:
    return _WIDTH * (step - first) / max(last - first, 1)

  def y(value: float) -> float:
    return _HEIGHT * (high - value) / (high - low)

  shapes = []
  for i, line in enumerate(chart.series):
    shapes += _shapes(line, i, x, y)
  shown = percent if chart.is_share else number
  axis = _whole_percent if chart.is_share else number
  marks = [v for v in ticks(low, high) if low <= v <= high]
  points = {
    "steps": sorted({int(step) for step in steps}),
    "first": first,
    "last": last,
    "low": low,
    "high": high,
    "percent": chart.is_share,
    "series": [
      {
        "label": line.label,
        "steps": line.steps.tolist(),
        "values": _rounded(line.values),
      }
      for line in chart.series
    ],
  }
  rows = [
    (line.label, f"{shown(float(line.values[-1]))}") for line in chart.series
  ]
  return _figure(
    key,
    (chart.title, chart.unit, chart.note),
    legend=_legend(rows, [f"c{i % _NUM_COLOURS}" for i in range(len(rows))])
    if len(rows) > 1
    else f'<p class="latest">last <b>{escape(rows[0][1])}</b></p>',
    y_labels=[(y(v) / _HEIGHT, axis(v)) for v in marks],
    x_labels=_step_labels(first, last, x),
    shapes=[*(_rule(y(v)) for v in marks), *shapes],
    points=points,
  )


def draw_stack(stack: Stack, key: str) -> str:
  """Returns a figure with a bar of shares for each stretch of steps."""
  num_bars = stack.shares.shape[1]
  width = _WIDTH / num_bars
  gap = min(1.5, 0.15 * width)
  tops = np.cumsum(stack.shares, axis=0)
  shapes = [
    f'<rect class="{kind}" x="{width * b + gap:.1f}" '
    f'y="{_HEIGHT * (1 - tops[k, b]):.1f}" width="{width - 2 * gap:.1f}" '
    f'height="{_HEIGHT * stack.shares[k, b]:.1f}"/>'
    for k, kind in enumerate(stack.kinds)
    for b in range(num_bars)
    if stack.shares[k, b] > 0
  ]
  rows = [
    (name, f"{total:,.0f}")
    for name, total in zip(stack.names, stack.totals, strict=True)
  ]
  first, last = int(stack.steps[0]), int(stack.steps[-1])
  points = {
    "steps": stack.steps.tolist(),
    "bars": True,
    "percent": True,
    "series": [
      {"label": name, "values": _rounded(shares)}
      for name, shares in zip(stack.names, stack.shares, strict=True)
    ],
  }

  def x(step: float) -> float:
    place = (step - first) / max(last - first, 1)
    return width / 2 + (_WIDTH - width) * place

  return _figure(
    key,
    (stack.title, "share of completions", stack.note),
    legend=_legend(rows, stack.kinds),
    y_labels=[(1 - v, _whole_percent(v)) for v in (0, 0.5, 1)],
    x_labels=_step_labels(first, last, x),
    shapes=shapes,
    points=points,
  )


def ticks(low: float, high: float, count: int = 4) -> list[float]:
  """Returns round numbers about evenly from `low` to `high`."""
  step = _round_up((high - low) / count)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _round_up(value: float) -> float:
  """Returns the next of 1, 2, 2.5 and 5 times a power of ten."""
  power = 10.0 ** math.floor(math.log10(value))
  return next(
    m * power for m in (1, 2, 2.5, 5, 10) if m * power >= value * 0.99
  )


def _limits(chart: Chart) -> tuple[float, float]:
  values = np.concatenate(
    [
      part
      for line in chart.series
      for part in (line.values, line.low, line.high, line.raw)
      if part is not None
    ]
  )
  low, high = float(np.nanmin(values)), float(np.nanmax(values))
  if low >= 0:
    low = 0.0
  if chart.is_share:
    return low, 1.0 if high > 0.5 else max(0.02, 1.25 * high)
  if high <= low:
    high = low + (abs(low) or 1.0)
  step = _round_up((high - low) / 4)
  return (
    math.floor(low / step + 1e-9) * step,
    math.ceil(high / step - 1e-9) * step,
  )


def _shapes(line: Series, i: int, x, y) -> list[str]:
  colour = f"c{i % _NUM_COLOURS}"
  dash = " dashed" if i >= _NUM_COLOURS else ""
  found = []
  if line.low is not None and line.high is not None:
    there = _path(line.steps, line.high, x, y)
    back = _path(line.steps[::-1], line.low[::-1], x, y).replace("M", "L", 1)
    found.append(f'<path class="band {colour}" d="{there}{back}Z"/>')
  if line.raw is not None:
    d = _path(line.steps, line.raw, x, y)
    found.append(f'<path class="raw {colour}" d="{d}"/>')
  d = _path(line.steps, line.values, x, y)
  found.append(f'<path class="line {colour}{dash}" d="{d}"/>')
  if line.is_marked or len(line.steps) == 1:
    # A line without length has round ends, which the stretching leaves round.
    dots = "".join(
      f"M{x(s):.1f} {y(v):.1f}h.01"
      for s, v in zip(line.steps, line.values, strict=True)
    )
    found.append(f'<path class="dots {colour}" d="{dots}"/>')
  return found


def _path(steps: np.ndarray, values: np.ndarray, x, y) -> str:
  points = [
    f"{x(s):.1f} {y(v):.1f}"
    for s, v in zip(steps.tolist(), values.tolist(), strict=True)
    if math.isfinite(v)
  ]
  return f"M{'L'.join(points)}"


def _whole_percent(value: float) -> str:
  return f"{100 * value:.3g} %"


def _rule(height: float) -> str:
  return f'<path class="rule" d="M0 {height:.1f}H{_WIDTH}"/>'


def _step_labels(first: int, last: int, x) -> list[tuple[float, str]]:
  if first == last:
    return [(x(first) / _WIDTH, f"step {first}")]
  found = [(v, f"{v:,.0f}") for v in ticks(first, last) if v == round(v)]
  return [(x(v) / _WIDTH, text) for v, text in found if first <= v <= last]


def _legend(rows: Sequence[tuple[str, str]], kinds: Sequence[str]) -> str:
  items = "".join(
    f'<li><i class="{kind}"></i>{escape(name)} <b>{escape(value)}</b></li>'
    for (name, value), kind in zip(rows, kinds, strict=True)
  )
  return f'<ul class="legend">{items}</ul>'


def _figure(
  key: str,
  words: tuple[str, str, str],
  *,
  legend: str,
  y_labels: Sequence[tuple[float, str]],
  x_labels: Sequence[tuple[float, str]],
  shapes: Sequence[str],
  points: dict,
) -> str:
  title, unit, note = map(escape, words)
  ys = "".join(
    f'<span style="top:{100 * place:.2f}%">{escape(text)}</span>'
    for place, text in y_labels
  )
  xs = "".join(
    f'<span style="left:{100 * place:.2f}%">{escape(text)}</span>'
    for place, text in x_labels
  )
  return (
    f'<figure class="chart" id="{escape(key)}">'
    f'<figcaption><h3>{title} <span class="unit">{unit}</span></h3>'
    f"<p>{note}</p></figcaption>{legend}"
    f'<div class="plot"><div class="ys" aria-hidden="true">{ys}</div>'
    f'<div class="area" tabindex="0" role="img" aria-label="{title} over '
    f'training steps"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
    f'preserveAspectRatio="none" aria-hidden="true">{"".join(shapes)}</svg>'
    '<div class="cursor" hidden></div><div class="tip" hidden></div></div>'
    f'<div class="x">step</div><div class="xs" aria-hidden="true">{xs}</div>'
    "</div>"
    f'<script type="application/json">{to_json(points)}</script></figure>'
  )


def _rounded(values: np.ndarray) -> list[float | None]:
  return [
    float(f"{v:.5g}") if math.isfinite(v) else None for v in values.tolist()
  ]
