"""Plots a run as `learning.png`."""

import os
import pathlib
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends import backend_agg

from distil_jax.training.logging import run_folder, series, tables
from distil_jax.training.logging.series import Records

PLOT = "learning.png"

# Okabe and Ito's colors, which color-blind readers can tell apart.
_BLUE, _GREEN, _BROWN = "#0072B2", "#009E73", "#A66A00"
_ACCURACY_STYLES = (
  ("#D55E00", "o"),
  ("#CC79A7", "s"),
  ("#56B4E9", "D"),
  ("#E69F00", "^"),
  ("#000000", "v"),
)
_FEW = 40  # with at most this many points, each has a marker


def plot(run_directory: str | os.PathLike[str]) -> pathlib.Path:
  """Draws `learning.png` from a run's `.jsonl` files.

  Args:
    run_directory: the run's folder.

  Returns:
    The path of the plot.

  Raises:
    ReportError: there is nothing to plot, or a line cannot be read.
  """
  folder = pathlib.Path(run_directory)
  figure = draw(
    run_folder.read_lines(folder / run_folder.METRICS),
    run_folder.read_lines(folder / run_folder.EVALUATIONS),
    title=folder.resolve().name,
  )
  if figure is None:
    raise tables.ReportError(
      f"nothing to plot in {folder}: {run_folder.METRICS} and "
      f"{run_folder.EVALUATIONS} have no numbers to show; train first"
    )
  path = folder / PLOT
  # Replaced as a whole: a notebook or a viewer may read it at any time.
  temporary = path.with_name(f".{path.name}.partial")
  figure.savefig(temporary, format="png", dpi=150)
  temporary.replace(path)
  return path


def draw(
  metrics: Records, evaluations: Records, *, title: str
) -> mpl_figure.Figure | None:
  """Draws up to two panels; a panel without data is left out.

  The upper one shows the reward of each step (the loss, if there is no reward)
  with its running mean, and the held-out accuracies. The lower one shows cost
  and completion length.

  Args:
    metrics: lines of `metrics.jsonl`.
    evaluations: lines of `evaluations.jsonl`.
    title: the title above the panels.

  Returns:
    A figure with an Agg canvas; None if neither panel has data.
  """
  score = "reward" if _has(metrics, "reward") else "loss"
  accuracies = series.accuracies(evaluations)
  panels = []
  if _has(metrics, score) or accuracies:
    panels.append(lambda axes: _draw_score(axes, metrics, score, evaluations))
  if _has(metrics, "cost") or _has(metrics, "completion_length"):
    panels.append(lambda axes: _draw_cost_and_length(axes, metrics))
  if not panels:
    return None
  # pyplot would need a display and share its state with a notebook.
  figure = mpl_figure.Figure(
    figsize=(9, 0.8 + 3.3 * len(panels)), layout="constrained"
  )
  backend_agg.FigureCanvasAgg(figure)
  left = {"x": 0.012, "ha": "left"}
  figure.suptitle(title, **left, weight="bold", size=13, parse_math=False)
  stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
  for axes, panel in zip(stack, panels, strict=True):
    panel(axes)
  steps = [record["step"] for record in (*metrics, *evaluations)]
  margin = 0.02 * (max(steps) - min(steps)) or 0.5
  stack[-1].set_xlim(min(steps) - margin, max(steps) + margin)
  window = series.window(len(metrics))
  note = f"; thin: each logged step, thick: mean of {window}" if window else ""
  stack[-1].set_xlabel("training step" + note, size=11)
  stack[-1].xaxis.set_major_locator(
    ticker.MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
  )
  return figure


def _draw_score(
  axes: Axes, metrics: Records, score: str, evaluations: Records
) -> None:
  names = series.accuracies(evaluations)
  has_score = _has(metrics, score)
  accuracy_axes = axes
  if has_score:
    _draw_series(axes, metrics, score, score, _BLUE)
  if has_score and score == "loss":
    _name_axis(axes, "loss (nats per token)", _BLUE)
    if names:
      accuracy_axes = axes.twinx()
      _name_axis(accuracy_axes, "held-out accuracy (0 to 1)", "black")
  else:
    parts = ["reward"] * has_score + ["held-out accuracy"] * bool(names)
    _name_axis(axes, f"{', '.join(parts)} (0 to 1)", "black")
  for number, name in enumerate(names):
    style = _ACCURACY_STYLES[number % len(_ACCURACY_STYLES)]
    _draw_accuracy(accuracy_axes, evaluations, name, *style)
  if names or score == "reward":
    _fit_unit_interval(accuracy_axes)
  _finish(axes, accuracy_axes)


def _draw_accuracy(
  axes: Axes, evaluations: Records, name: str, color: str, marker: str
) -> None:
  steps, values = series.read(evaluations, name)
  ends = values if len(values) == 1 else values[[0, -1]]
  change = " → ".join(f"{100 * value:.1f}" for value in ends)
  axes.plot(
    steps,
    values,
    color=color,
    marker=marker,
    markersize=7 if len(steps) <= _FEW else 3,
    markeredgecolor="white",
    linewidth=1.2,
    linestyle="--",
    label=f"held-out {name} {change} %",
    zorder=4,
    clip_on=False,
  )


def _draw_cost_and_length(axes: Axes, metrics: Records) -> None:
  length_axes = axes
  if _has(metrics, "cost"):
    _draw_series(axes, metrics, "cost", "cost", _GREEN)
    _name_axis(axes, "cost (nats per token)", _GREEN)
    if _has(metrics, "completion_length"):
      length_axes = axes.twinx()
  if _has(metrics, "completion_length"):
    label = "completion length"
    _draw_series(length_axes, metrics, "completion_length", label, _BROWN)
    _name_axis(length_axes, "completion length (tokens)", _BROWN)
  if length_axes is not axes:  # more head room keeps the two lines apart
    length_axes.set_ylim(top=1.35 * length_axes.get_ylim()[1])
  _finish(axes, length_axes)


def _draw_series(
  axes: Axes, metrics: Records, name: str, label: str, color: str
) -> None:
  """Draws a thin line through every value and a thick one through the mean."""
  steps, values = series.read(metrics, name)
  window = series.window(len(metrics))
  marker = "o" if len(steps) <= _FEW else None
  style: dict[str, Any] = {"color": color, "zorder": 3, "clip_on": False}
  if window is None:
    axes.plot(steps, values, marker=marker, label=label, **style)
  else:
    thin = {"alpha": 0.35, "linewidth": 0.8, "markersize": 3}
    axes.plot(steps, values, marker=marker, **style, **thin)
    means = series.running_mean(values, window)
    axes.plot(steps, means, linewidth=2, label=label, **style)
  if values.min() >= 0:
    axes.set_ylim(bottom=0)


def _fit_unit_interval(axes: Axes) -> None:
  """Sets the limits to 0 and 1, or lower if all values are small."""
  values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
  top = 1.0 if values.max() > 0.5 else max(0.02, 1.25 * values.max())
  axes.set_ylim(0, 1.04 * top)


def _name_axis(axes: Axes, label: str, color: str) -> None:
  axes.set_ylabel(label, color=color, size=11)
  axes.tick_params(axis="y", labelcolor=color)


def _finish(left: Axes, right: Axes) -> None:
  """Adds grid, frame, and one legend for both axes above the panel."""
  both = [left] if right is left else [left, right]
  for axes in both:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(len(both) == 2)
  left.grid(alpha=0.3, linewidth=0.6)
  lines = [line for axes in both for line in axes.get_lines()]
  named = [line for line in lines if not str(line.get_label()).startswith("_")]
  left.legend(
    handles=named,
    loc="lower left",
    bbox_to_anchor=(0, 1),
    ncols=3 if len(named) <= 3 else 2,  # more columns exceed the width
    frameon=False,
    fontsize=10,
    borderaxespad=0.2,
  )


def _has(lines: Records, name: str) -> bool:
  return any(line.get(name) is not None for line in lines)
