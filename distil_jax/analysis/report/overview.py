"""Writes the tables of a report: runs, groups, time and settings."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.analysis.report.groups import Group, differing, shown
from distil_jax.analysis.report.markup import (
  duration,
  escape,
  mean,
  number,
  percent,
)
from distil_jax.analysis.report.run_record import RunRecord

# Of a step: name in the style sheet, in words. The rest of a step is `other`.
_PHASES = (
  ("rollout", "sampling"),
  ("judging", "waiting for judges"),
  ("update", "scoring and update"),
  ("other", "evaluation, checkpoints, start"),
)
_MAX_RUNS = 60


def tiles(run: RunRecord) -> str:
  """Returns the figures of one run that a reader looks for first."""
  first = run.accuracies.get(min(run.accuracies, default=0))
  found = []
  if run.last and run.best:
    found.append(
      (
        "held-out accuracy",
        percent(run.last[1]),
        f"from {percent(first)} at the start"
        if run.last[0]
        else "of the base model",
      )
    )
    found.append(("best", percent(run.best[1]), f"at step {run.best[0]}"))
  latest = run.metrics[-1] if run.metrics else {}
  if latest.get("reward") is not None:
    recent = [
      x["reward"] for x in run.metrics[-10:] if x.get("reward") is not None
    ]
    note = f"mean of {len(recent)} steps"
    found.append(("reward", number(statistics.fmean(recent)), note))
  elif latest.get("loss") is not None:
    found.append(("loss", number(latest["loss"]), "last step"))
  of = f"of {run.num_steps:,}" if run.num_steps else ""
  found.append(("step", f"{run.step:,}", of))
  seconds = _seconds(run)
  if seconds:
    speed = latest.get("time/tokens_per_second")
    note = f"{number(speed)} tokens/s" if speed else ""
    found.append(("time", duration(seconds), note))
  cells = "".join(
    f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
    f"<dd class=note>{escape(note)}</dd></div>"
    for name, value, note in found
  )
  return f'<dl class="tiles">{cells}</dl>'


def facts(run: RunRecord) -> str:
  """Returns a line that says what was trained, and on what."""
  devices = run.environment.get("devices", {})
  objective = run.settings.get("objective.kind")
  parts = [
    run.settings.get("model.directory"),
    f"objective {objective}" if objective else None,
    run.settings.get("environment.kind"),
    f"{devices['count']} × {devices['kind']}" if devices else None,
    f"seed {run.settings.get('train.seed', 0)}",
  ]
  return " · ".join(escape(part) for part in parts if part)


def run_table(groups: Sequence[Group]) -> str:
  """Returns a row for each run, with what sets it apart."""
  runs = [run for group in groups for run in group.runs]
  keys = differing(runs)[:6]
  has_seeds = len({run.settings.get("train.seed") for run in runs}) > 1
  head = ["", "run", *(key.rpartition(".")[2] for key in keys)]
  head += ["seed"] * has_seeds + ["status", "step", "last held-out", "best"]
  rows = []
  for i, group in enumerate(groups):
    for run in group.runs:
      if len(rows) == _MAX_RUNS:
        break
      cells = [f'<td><i class="c{i % 8}"></i></td>', _cell(run.name, "name")]
      cells += [_cell(shown(run.settings.get(key))) for key in keys]
      if has_seeds:
        cells.append(_cell(run.settings.get("train.seed")))
      cells.append(f"<td>{chip(run.status)}</td>")
      cells.append(_cell(f"{run.step:,} / {run.num_steps:,}", "number"))
      last = percent(run.last[1]) if run.last else "–"
      best = f"{percent(run.best[1])} at {run.best[0]}" if run.best else "–"
      cells += [_cell(last, "number"), _cell(best, "number")]
      rows.append(f"<tr>{''.join(cells)}</tr>")
  return _table(head, rows)


def group_table(groups: Sequence[Group]) -> str:
  """Returns a row for each group with mean and spread over its seeds."""
  rows = []
  for i, group in enumerate(groups):
    last = [run.last[1] for run in group.runs if run.last]
    best = [run.best[1] for run in group.runs if run.best]
    rows.append(
      f'<tr><td><i class="c{i % 8}"></i></td>{_cell(group.label, "name")}'
      f"{_cell(len(group.runs), 'number')}{_cell(mean(last), 'number')}"
      f"{_cell(mean(best), 'number')}</tr>"
    )
  head = ("", "settings", "runs", "last held-out", "best held-out")
  return _table(head, rows)


def time_bars(groups: Sequence[Group]) -> str:
  """Returns a bar for each group: the parts of its time."""
  rows = []
  for group in groups:
    split = _time_split(group)
    total = sum(split.values())
    if total <= 0:
      continue
    bars = "".join(
      f'<span class="p-{name}" style="flex-grow:{split[name] / total:.4f}" '
      f'title="{words}: {percent(split[name] / total)}"></span>'
      for name, words in _PHASES
      if split[name] > 0
    )
    words = ", ".join(
      f"{words} {percent(split[name] / total)}"
      for name, words in _PHASES
      if split[name] / total >= 0.0005
    )
    rows.append(
      f'<div class="time"><p><b>{escape(group.label)}</b> '
      f'{escape(duration(total))}</p><div class="bar" role="img" '
      f'aria-label="{escape(words)}">{bars}</div><p class=note>'
      f"{escape(words)}</p></div>"
    )
  legend = "".join(
    f'<li><i class="p-{name}"></i>{words}</li>' for name, words in _PHASES
  )
  return f'<ul class="legend">{legend}</ul>{"".join(rows)}' if rows else ""


def settings_table(runs: Sequence[RunRecord]) -> str:
  """Returns all settings; of several runs the values side by side."""
  keys = dict.fromkeys(key for run in runs for key in run.settings)
  different = {*differing(runs), "train.seed"}
  names = [run.name for run in runs] if len(runs) <= 6 else []
  columns: Sequence[RunRecord] = runs if names else runs[:1]
  rows = []
  for key in keys:
    cells = "".join(_cell(shown(r.settings.get(key))) for r in columns)
    mark = " class=differs" if key in different and len(runs) > 1 else ""
    rows.append(f"<tr{mark}>{_cell(key, 'name')}{cells}</tr>")
  return _table(("setting", *(names or (runs[0].name,))), rows)


def chip(status: str) -> str:
  """Returns a run's status as a coloured word."""
  return f'<span class="chip s-{status}">{status}</span>'


def _time_split(group: Group) -> Mapping[str, float]:
  """Returns seconds of each phase, summed over the steps of all runs."""
  found = dict.fromkeys((name for name, _ in _PHASES), 0.0)
  for run in group.runs:
    steps = 0.0
    for line in run.metrics:
      judging = line.get("time/judging_seconds") or 0.0
      rollout = line.get("time/rollout_seconds") or 0.0
      whole = line.get("time/step_seconds") or 0.0
      found["rollout"] += max(rollout - judging, 0.0)
      found["judging"] += judging
      found["update"] += max(whole - rollout, 0.0)
      steps += whole
    found["other"] += max(_seconds(run) - steps, 0.0)
  return found


def _seconds(run: RunRecord) -> float:
  if run.summary is not None:
    return float(run.summary.get("seconds") or 0.0)
  return sum(line.get("time/step_seconds") or 0.0 for line in run.metrics)


def _cell(value: Any, kind: str = "") -> str:
  mark = f' class="{kind}"' if kind else ""
  return f"<td{mark}>{escape(value)}</td>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
  heads = "".join(f"<th>{escape(name)}</th>" for name in head)
  return (
    f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )
