"""Puts a report together as one HTML file that loads nothing."""

import base64
import hashlib
import pathlib
from collections.abc import Iterable, Sequence

from distil_jax.analysis.report import (
  charts,
  drawing,
  overview,
  rollout_browser,
  stacks,
)
from distil_jax.analysis.report.figures import Chart
from distil_jax.analysis.report.groups import Group, group_runs
from distil_jax.analysis.report.markup import escape, to_json
from distil_jax.analysis.report.run_record import (
  RunRecord,
  find_runs,
  read_run,
)
from distil_jax.training.logging.tables import ReportError

_FOLDER = pathlib.Path(__file__).parent
_MAX_STACKS = 8  # groups with charts of their own


def read_runs(folders: Iterable[pathlib.Path]) -> list[RunRecord]:
  """Reads run folders, and those inside folders of runs, each once.

  Raises:
    ReportError: a folder has no run, or a file is damaged.
  """
  found: dict[pathlib.Path, RunRecord] = {}
  for folder in folders:
    paths = find_runs(folder)
    if not paths:
      raise ReportError(
        f"{folder} is no run folder and holds none; distil-jax runs FOLDER "
        "lists those there are"
      )
    for path in paths:
      if path.resolve() not in found:
        found[path.resolve()] = read_run(path)
  return list(found.values())


def to_page(runs: Sequence[RunRecord], *, version: str | None = None) -> str:
  """Returns the page.

  Args:
    runs: at least one.
    version: names the state of the runs for a server, which the page then asks
      now and then for a newer one. None makes a page that stays as it is.

  Raises:
    ReportError: the rollouts of a run are damaged.
  """
  groups = group_runs(runs)
  sections = [
    ("overview", "Overview", _overview(runs, groups)),
    ("curves", "Curves", _curves(groups)),
    ("verdicts", "Verdicts", _stacks(groups)),
    ("time", "Time", overview.time_bars(groups)),
    ("rollouts", "Rollouts", _rollouts(groups)),
    ("settings", "Settings", _settings(runs)),
  ]
  sections = [section for section in sections if section[2]]
  links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
  body = "".join(
    f'<section id="{key}"><h2>{name}</h2>{content}</section>'
    for key, name, content in sections
  )
  title = _title(runs)
  style = (_FOLDER / "page.css").read_text(encoding="utf-8")
  script = (_FOLDER / "page.js").read_text(encoding="utf-8")
  live = mark = ""
  if version is not None:
    live = '<span id="live" role="status">live</span>'
    mark = f' data-live="{escape(version)}"'
  return (
    "<!doctype html>\n"
    f'<html lang="en"{mark}>\n<head>\n'
    '<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
    f"<body>\n<header><h1>{escape(title)}</h1>{_below_title(runs)}{live}"
    f'</header>\n<nav aria-label="sections">{links}</nav>\n<main>{body}</main>'
    f"\n<script>{script}</script>\n</body>\n</html>\n"
  )


def _policy(script: str) -> str:
  """Returns a policy under which no text of a run can become a program."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src "
    f"'sha256-{digest}'; connect-src 'self'; base-uri 'none'; form-action "
    "'none'"
  )


def _title(runs: Sequence[RunRecord]) -> str:
  return runs[0].name if len(runs) == 1 else f"{len(runs)} runs"


def _below_title(runs: Sequence[RunRecord]) -> str:
  if len(runs) > 1:
    names = ", ".join(run.name for run in runs[:8])
    more = f" and {len(runs) - 8} more" if len(runs) > 8 else ""
    return f'<p class="facts">{escape(names)}{more}</p>'
  run = runs[0]
  return (
    f'<p class="facts">{overview.chip(run.status)} {overview.facts(run)}</p>'
  )


def _overview(runs: Sequence[RunRecord], groups: Sequence[Group]) -> str:
  if len(runs) == 1:
    return overview.tiles(runs[0])
  parts = [overview.group_table(groups)]
  if len(groups) < len(runs):
    parts.append(f"<h3>Runs</h3>{overview.run_table(groups)}")
  else:
    parts = [overview.run_table(groups)]
  return "".join(parts)


def _curves(groups: Sequence[Group]) -> str:
  main = [*charts.held_out_charts(groups), *charts.main_charts(groups)]
  others = list(charts.other_charts(groups))
  note = ""
  if any(len(group.runs) > 1 for group in groups):
    note = (
      '<p class="note">A band reaches from the lowest to the highest seed, the '
      "line is their mean.</p>"
    )
  if len(groups) > charts.MAX_SERIES:
    note += (
      f'<p class="note">The first {charts.MAX_SERIES} of {len(groups)} groups '
      "are drawn.</p>"
    )
  if not main and not others:
    return ""
  found = f'{note}<div class="grid">{_drawn(main, "chart")}</div>'
  if others:
    found += (
      f'<details id="others"><summary>{len(others)} more metrics</summary>'
      f'<div class="grid">{_drawn(others, "other")}</div></details>'
    )
  return found


def _drawn(found: Sequence[Chart], key: str) -> str:
  return "".join(
    drawing.draw_chart(chart, f"{key}-{i}") for i, chart in enumerate(found)
  )


def _stacks(groups: Sequence[Group]) -> str:
  found = []
  for i, group in enumerate(groups[:_MAX_STACKS]):
    of = "" if len(groups) == 1 else f": {group.label}"
    for name, stack in (
      ("verdicts", stacks.verdict_stack(group, f"Verdicts{of}")),
      ("signals", stacks.signal_stack(group, f"What the teacher was told{of}")),
    ):
      if stack is not None:
        found.append(drawing.draw_stack(stack, f"{name}-{i}"))
  return f'<div class="grid">{"".join(found)}</div>' if found else ""


def _rollouts(groups: Sequence[Group]) -> str:
  found = rollout_browser.rollouts(groups)
  if not found:
    return (
      '<p class="note">None were recorded; logging.rollouts_every sets how '
      "often.</p>"
    )
  return (
    '<div id="browser"><noscript>Rollouts need JavaScript.</noscript></div>'
    f'<script type="application/json" id="data">{to_json(found)}</script>'
  )


def _settings(runs: Sequence[RunRecord]) -> str:
  table = overview.settings_table(runs)
  return f'<details id="all"><summary>All settings</summary>{table}</details>'
