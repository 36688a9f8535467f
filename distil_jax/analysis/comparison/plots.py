"""Draws the results of a comparison."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes
from matplotlib.backends import backend_agg

from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_record import Found

Against = Literal["rollouts", "seconds"]
# Keywords that matplotlib takes for a line.
Style = Mapping[str, Any]
Styles = Mapping[str, Style]

# The colors of Okabe and Ito, then line styles, so that a dozen arms can be
# told apart. Black is for the default arm.
_COLORS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#999999",
)
_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))
_DEFAULT_COLOR = "black"
# Labels of the measures on a curve; those that are shares run from 0 to 1.
_LABELS = {
  "avg": "held-out accuracy (avg@4)",
  "good_route": "good route's share",
  "entropy": "entropy, nats per token",
  "length": "completion length, tokens",
  "p_eos": "P(end) before the end",
  "teacher": "teacher's accuracy with feedback",
  "score_share": "score-function share, one seed",
  "rollouts": "rollouts, thousands",
  "seconds": "seconds of training",
}
_SHARES = ("avg", "good_route", "teacher", "score_share")
# Measures that are drawn for every arm beside its accuracy.
_MEASURES = ("entropy", "length", "p_eos", "teacher", "score_share")
# Inches.
_PANEL_WIDTH, _PANEL_HEIGHT, _LEGEND_WIDTH = 2.8, 2.5, 1.7


def save(comparison: Comparison, found: Found) -> list[pathlib.Path]:
  """Draws all figures into the comparison's folder; returns their paths."""
  paths = []
  for name, picture in draw(comparison, found).items():
    paths.append(comparison.directory / name)
    paths[-1].parent.mkdir(exist_ok=True)
    picture.savefig(paths[-1], dpi=110)
  return paths


def draw(comparison: Comparison, found: Found) -> dict[str, mpl_figure.Figure]:
  """Draws the figures of a comparison, by the names of their files.

  Returns:
    `accuracy.png` (against rollouts), `time.png` (against seconds),
    `measures.png`, and `figures/NAME.png` for each figure of the config.
    Figures without data are left out.
  """
  main = comparison.main_arms
  shown = _some(found, comparison.families, main)
  pictures = {}
  if shown:
    styles = _styles(comparison, main)
    pictures = {
      "accuracy.png": _accuracy(shown, styles, "rollouts"),
      "time.png": _accuracy(shown, styles, "seconds"),
      "measures.png": _measures(comparison, shown, styles, _MEASURES),
    }
  for name, figure in comparison.figures.items():
    shown = _some(found, figure.families, figure.arms)
    if shown:
      styles = _styles(comparison, figure.arms)
      pictures[f"figures/{name}.png"] = _measures(
        comparison, shown, styles, figure.measures
      )
  return pictures


def _some(found: Found, families: Iterable[str], arms: Sequence[str]) -> Found:
  """Returns the records of some families and arms, in the given order."""
  some = {
    family: {arm: found[family][arm] for arm in arms if arm in found[family]}
    for family in families
    if family in found
  }
  return {family: by_arm for family, by_arm in some.items() if by_arm}


def _styles(comparison: Comparison, arms: Sequence[str]) -> Styles:
  """Returns the style of each arm's line."""
  others = [arm for arm in arms if arm != comparison.default]
  styles = {}
  for i, arm in enumerate(others):
    style, color = divmod(i, len(_COLORS))
    styles[arm] = {
      "color": _COLORS[color],
      "linestyle": _STYLES[style % len(_STYLES)],
      "linewidth": 1.3,
      "zorder": 2,
    }
  styles[comparison.default] = {
    "color": _DEFAULT_COLOR,
    "linewidth": 2.4,
    "zorder": 3,
  }
  return styles


def _accuracy(
  found: Found, styles: Styles, against: Against
) -> mpl_figure.Figure:
  columns = min(5, len(found))
  rows = -(-len(found) // columns)
  picture, axes = _panels(rows, columns)
  for i, (family, by_arm) in enumerate(found.items()):
    for arm, records in by_arm.items():
      x = np.asarray([0, *_horizontal(records, against)])
      curves = [
        [r["before"]["avg"], *(p["avg"] for p in r["curve"])] for r in records
      ]
      _band(axes[i], x, np.asarray(curves), arm, styles[arm])
    axes[i].set_title(family)
    axes[i].set_ylim(-0.02, 1.02)
    axes[i].set_xlim(left=0)
    if i + columns >= len(found):  # no panel is below
      axes[i].set_xlabel(_LABELS[against])
    if i % columns == 0:
      axes[i].set_ylabel(_LABELS["avg"])
  _legend(picture, axes, found)
  return picture


def _measures(
  comparison: Comparison,
  found: Found,
  styles: Styles,
  names: Sequence[str],
) -> mpl_figure.Figure:
  picture, axes = _panels(len(found), len(names))
  for row, (family, by_arm) in enumerate(found.items()):
    for column, name in enumerate(names):
      panel = axes[row * len(names) + column]
      for arm, records in by_arm.items():
        _draw_measure(panel, comparison, arm, records, name, styles[arm])
      if name in _SHARES:
        panel.set_ylim(-0.02, 1.02)
      panel.set_xlim(left=0)
      if row == 0:
        panel.set_title(_LABELS[name], fontsize=10)
      if column == 0:
        panel.set_ylabel(family)
      if row == len(found) - 1:
        panel.set_xlabel(_LABELS["rollouts"])
      if not panel.lines:  # measured only in other families
        panel.set_axis_off()
  _legend(picture, axes, found)
  return picture


def _draw_measure(panel: Axes, comparison, arm, records, name, style) -> None:
  objective = comparison.arms[arm].objective
  if name == "teacher" and not objective.needs_teacher:
    return  # it would measure the student, given feedback
  records = [r for r in records if all(name in point for point in r["curve"])]
  if records:
    curves = np.asarray([[p[name] for p in r["curve"]] for r in records])
    _band(panel, _horizontal(records, "rollouts"), curves, arm, style)


def _panels(rows: int, columns: int) -> tuple[mpl_figure.Figure, list[Axes]]:
  picture = mpl_figure.Figure(
    figsize=(_PANEL_WIDTH * columns, _PANEL_HEIGHT * rows + 1.2),
    layout="constrained",
  )
  backend_agg.FigureCanvasAgg(picture)
  grid = picture.subplots(rows, columns, squeeze=False)
  for panel in grid.flat:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
  return picture, list(grid.flat)


def _horizontal(
  records: Sequence[Mapping[str, Any]], against: Against
) -> np.ndarray:
  steps = np.asarray([point["step"] for point in records[0]["curve"]])
  if against == "rollouts":
    return steps * records[0]["num_sequences"] / 1000
  # The median, because other work on the machine disturbs some trials.
  return steps * np.median([r["step_seconds"] for r in records])


def _band(
  panel: Axes, x: np.ndarray, curves: np.ndarray, arm: str, style: Style
) -> None:
  """Draws the mean over seeds, and one standard error to either side."""
  mean = curves.mean(axis=0)
  panel.plot(x, mean, label=arm, **style)
  if len(curves) > 1:
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
    panel.fill_between(
      x,
      mean - error,
      mean + error,
      color=style["color"],
      alpha=0.12,
      linewidth=0,
    )


def _legend(picture: mpl_figure.Figure, axes: list[Axes], found: Found) -> None:
  """Adds the legend, and hides panels without lines."""
  handles = {}
  for panel in axes:
    if not panel.lines and not panel.get_title():
      panel.set_visible(False)
    for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
      handles.setdefault(label, handle)
  counts = {len(r) for by_arm in found.values() for r in by_arm.values()}
  seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
  picture.legend(
    [*handles.values()],
    [*handles],
    loc="outside lower center",
    ncols=max(1, int(picture.get_figwidth() / _LEGEND_WIDTH)),
    frameon=False,
    fontsize=9,
    title=f"line and band: mean and one standard error of {seeds} seeds",
    title_fontsize=9,
  )
