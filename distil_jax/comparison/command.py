"""`distil-jax compare`: all trials, then the report."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import jax

from distil_jax.comparison import pictures, study, tables
from distil_jax.comparison.settings import Comparison

# One thread a process: small networks gain nothing from more, and processes
# side by side would fight for the cores.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


class ComparisonError(RuntimeError):
  """A family could not be run; the trials that are done are kept."""


def run(
  comparison: Comparison,
  arguments: Sequence[str],
  families: Sequence[str] = (),
  arms: Sequence[str] = (),
  *,
  reports: bool = True,
) -> None:
  """Runs what is not there yet and writes the report.

  It stands in `report.md` of the comparison's folder, beside its pictures.

  Args:
    comparison: what to run.
    arguments: config and overrides, as the command was given them; processes
      of their own get the same.
    families: only these; all if empty.
    arms: only these; all if empty.
    reports: whether to write the report.

  Raises:
    ComparisonError: a family could not be run.
  """
  # Programs are compiled once, not once a process and a run.
  jax.config.update(
    "jax_compilation_cache_dir", str(comparison.directory / "compiled")
  )
  names = list(families or comparison.families)
  if comparison.jobs == 1 or len(names) == 1:
    for name in names:
      study.run_family(comparison, name, arms, _say)
  else:
    _side_by_side(comparison, arguments, names, arms)
  if reports:
    if not families:
      study.measure_gradients(comparison, _say)
    done = study.read_trials(comparison.directory)
    path = comparison.directory / "report.md"
    path.write_text(tables.report(comparison, done), encoding="utf-8")
    pictures.save(comparison, done)
    _say(f"\n{tables.verdict(comparison, done)}\n\n{path}: all tables")


def _say(line: str) -> None:
  print(line, flush=True)


def _side_by_side(
  comparison: Comparison,
  arguments: Sequence[str],
  names: list[str],
  arms: Sequence[str],
) -> None:
  """A process for each family, `jobs` of them at a time."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
  environment = {**os.environ, "XLA_FLAGS": flags}
  command = [sys.executable, "-m", "distil_jax", "compare", *arguments]
  command += ["--no-report", *(f"--arm={arm}" for arm in arms)]
  waiting, running, failed = list(names), {}, []
  try:
    while waiting or running:
      while waiting and len(running) < comparison.jobs:
        name = waiting.pop(0)
        running[name] = subprocess.Popen(
          [*command, f"--family={name}"],
          env=environment,
          cwd=pathlib.Path.cwd(),
        )
      name = _first_to_end(running)
      if running.pop(name).returncode:
        failed.append(name)
  finally:
    for process in running.values():
      process.terminate()
  if failed:
    raise ComparisonError(
      f"families that failed: {', '.join(failed)}; the trials that are done "
      f"are kept in {comparison.directory}, and the same command goes on"
    )


def _first_to_end(running: dict[str, subprocess.Popen]) -> str:
  while True:
    for name, process in running.items():
      try:
        process.wait(timeout=0.2)
      except subprocess.TimeoutExpired:
        continue
      return name
