"""Chooses the charts of a report and computes their series."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.analysis.report.figures import Chart, Series
from distil_jax.analysis.report.groups import Group
from distil_jax.analysis.report.run_record import RunRecord
from distil_jax.training.logging import series as reports

MAX_POINTS = 240
MAX_SERIES = 12
MAX_OTHERS = 40
# A metric whose name says more to a reader than its key.
_NAMES = {
  "cost": "cost (student under teacher)",
  "entropy": "student's entropy",
  "teacher_entropy": "teacher's entropy",
  "completion_length": "completion length",
  "cut_off": "cut off at the limit",
}
# Title, unit, the metrics, what to look for. The first are the results.
_CHARTS = (
  ("Reward", "0 to 1", ("reward",), "Mean reward of the step's completions."),
  (
    "Teacher against student",
    "nats per token",
    ("cost", "teacher_entropy", "entropy"),
    "The cost approaches the teacher's entropy as the student follows it. A "
    "student's entropy near 0 early on has stopped exploring.",
  ),
  (
    "Future credit",
    "nats",
    ("future_cost", "score_weight"),
    "The cost that is still to come, and the mean size of the weight on log π.",
  ),
  (
    "Teacher's accuracy",
    "0 to 1",
    ("teacher/accuracy",),
    "How often the teacher is right when it sees the feedback.",
  ),
  (
    "Completion length",
    "tokens",
    ("completion_length",),
    "A fall is the first sign that credit teaches to stop early.",
  ),
  (
    "Cut off",
    "share",
    ("cut_off",),
    "Completions that hit the limit of their length.",
  ),
  (
    "Groups without contrast",
    "share",
    ("frac_reward_zero_std",),
    "Problems all of whose samples have the same reward.",
  ),
  (
    "Advantages",
    "reward",
    ("advantage",),
    "Mean size of the group-relative reward; 0 teaches nothing.",
  ),
  (
    "Loss",
    "nats",
    ("loss",),
    "The surrogate; only its gradient has a meaning.",
  ),
  (
    "Gradient norm",
    "",
    ("gradient_norm",),
    "Before clipping. Spikes: lower the learning rate.",
  ),
  ("Learning rate", "", ("learning_rate",), "As the schedule sets it."),
  (
    "Speed",
    "tokens per second",
    ("time/tokens_per_second",),
    "Tokens of the student over the whole step.",
  ),
)
# Shown in charts of their own kind, or of no use as a curve.
_ELSEWHERE = re.compile(r"(verdict|status|signal)/|step$")


def held_out_charts(groups: Sequence[Group]) -> list[Chart]:
  """Returns the held-out accuracies, of several groups in a chart each."""
  lines = [line for run in _runs(groups) for line in run.evaluations]
  names = reports.accuracies(lines)
  note = "Mean reward on problems that are not trained on."
  if len(groups) == 1:
    found = _lines(groups, names, "evaluations")
    title = "Held-out accuracy"
    return [Chart(title, "", note, found, is_share=True)] if found else []
  return [
    Chart(f"Held-out {name}", "", note, found, is_share=True)
    for name in names
    if (found := _lines(groups, [name], "evaluations"))
  ]


def main_charts(groups: Sequence[Group]) -> Iterator[Chart]:
  """Yields the charts of the metrics that every reader wants."""
  for title, unit, names, note in _CHARTS:
    if len(groups) == 1:
      found = _lines(groups, names, "metrics")
      if found:
        yield Chart(title, unit, note, found)
      continue
    for name in names:
      found = _lines(groups, [name], "metrics")
      if found:
        named = title if len(names) == 1 else _name(name).capitalize()
        yield Chart(named, unit, note, found)


def other_charts(groups: Sequence[Group]) -> Iterator[Chart]:
  """Yields a chart for each of the metrics that are left."""
  shown = {name for _, _, names, _ in _CHARTS for name in names}
  names = dict.fromkeys(
    name for run in _runs(groups) for line in run.metrics for name in line
  )
  left = [x for x in names if x not in shown and not _ELSEWHERE.match(x)]
  for name in left[:MAX_OTHERS]:
    found = _lines(groups, [name], "metrics")
    if found:
      yield Chart(name, "", "", found)


def _runs(groups: Sequence[Group]) -> Iterator[RunRecord]:
  for group in groups:
    yield from group.runs


def _lines(
  groups: Sequence[Group], names: Sequence[str], source: str
) -> list[Series]:
  """Returns a line for each metric of a lone group, else for each group."""
  found = []
  for group in groups[:MAX_SERIES]:
    for name in names:
      label = _name(name) if len(groups) == 1 else group.label
      line = _line(label, [getattr(r, source) for r in group.runs], name)
      if line is not None:
        is_marked = source == "evaluations"
        found.append(dataclasses.replace(line, is_marked=is_marked))
  if source == "metrics":
    found = [_smooth(line) for line in found]
  return found


def _name(metric: str) -> str:
  return _NAMES.get(metric, metric.replace("_", " "))


def _line(
  label: str, runs: Sequence[Sequence[Mapping[str, Any]]], name: str
) -> Series | None:
  """Returns the mean over runs at each step, with lowest and highest."""
  read = [reports.read(lines, name) for lines in runs]
  read = [_thinned(steps, values) for steps, values in read if len(steps)]
  if not read:
    return None
  if len(read) == 1:
    return Series(label, *read[0])
  steps = np.unique(np.concatenate([steps for steps, _ in read]))
  # A run that was stopped says nothing of later steps, and one that logs
  # seldom is taken to go straight from line to line.
  table = np.stack(
    [np.interp(steps, x, y, left=np.nan, right=np.nan) for x, y in read]
  )
  return Series(
    label,
    steps,
    np.nanmean(table, axis=0),
    low=np.nanmin(table, axis=0),
    high=np.nanmax(table, axis=0),
  )


def _thinned(
  steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns at most `MAX_POINTS` points, each the mean of its neighbours."""
  if len(steps) <= MAX_POINTS:
    return steps, values
  parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
  # The last step of each part, so that the curve ends at the run's last step.
  return (
    np.array([steps[part[-1]] for part in parts]),
    np.array([values[part].mean() for part in parts]),
  )


def _smooth(line: Series) -> Series:
  window = reports.window(len(line.values))
  if window is None:
    return line
  smooth = reports.running_mean(line.values, window)
  if line.low is None or line.high is None:
    return dataclasses.replace(line, values=smooth, raw=line.values)
  return dataclasses.replace(
    line,
    values=smooth,
    low=reports.running_mean(line.low, window),
    high=reports.running_mean(line.high, window),
  )
