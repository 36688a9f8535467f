"""Lists run folders as a table for the terminal."""

import pathlib
from collections.abc import Sequence

from distil_jax.analysis.report import groups
from distil_jax.analysis.report.markup import mean, percent
from distil_jax.analysis.report.run_record import (
  RunRecord,
  find_runs,
  read_run,
)
from distil_jax.training.logging import tables
from distil_jax.training.logging.tables import ReportError

_HEAD = ("run", "status", "step", "last held-out", "best", "settings")


def table(folder: pathlib.Path) -> str:
  """Returns a line for each run folder; a damaged one says what is wrong.

  Raises:
    ReportError: there is no run folder.
  """
  found = find_runs(folder)
  if not found:
    raise ReportError(
      f"there is no run folder in {folder}; distil-jax train CONFIG makes one"
    )
  runs, damaged = _read(found)
  rows = [_HEAD, *_rows(folder, runs)]
  rows += [
    (_name(folder, path), "damaged", "", "", "", why)
    for path, why in damaged.items()
  ]
  return tables.aligned(rows, left=(1, 5))


def summary(folder: pathlib.Path) -> str:
  """Returns a line for each group of runs, the mean over its seeds.

  Damaged runs are left out.
  """
  runs, _ = _read(find_runs(folder))
  rows = [("runs", "last held-out", "best held-out", "settings")]
  for group in groups.group_runs(runs):
    last = [run.last[1] for run in group.runs if run.last]
    best = [run.best[1] for run in group.runs if run.best]
    count = str(len(group.runs))
    rows.append((count, mean(last), mean(best), group.label))
  return tables.aligned(rows, left=(3,))


def _read(
  paths: Sequence[pathlib.Path],
) -> tuple[list[RunRecord], dict[pathlib.Path, str]]:
  """Returns the runs, and what is wrong with those that are damaged."""
  runs: list[RunRecord] = []
  damaged = {}
  for path in paths:
    try:
      runs.append(read_run(path))
    except (ReportError, OSError) as error:
      damaged[path] = str(error)
  return runs, damaged


def _rows(
  folder: pathlib.Path, runs: Sequence[RunRecord]
) -> list[tuple[str, ...]]:
  keys = groups.differing(runs)
  if len({run.settings.get(groups.SEED) for run in runs}) > 1:
    keys.append(groups.SEED)
  rows = []
  for run in runs:
    last = percent(run.last[1]) if run.last else "-"
    best = f"{percent(run.best[1])} at {run.best[0]}" if run.best else "-"
    step = f"{run.step}/{run.num_steps}"
    what = groups.label(run.settings, keys)
    rows.append(
      (_name(folder, run.directory), run.status, step, last, best, what)
    )
  return rows


def _name(folder: pathlib.Path, path: pathlib.Path) -> str:
  return path.name if path == folder else str(path.relative_to(folder))
