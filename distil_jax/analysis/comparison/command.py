"""`distil-jax compare`: all trials, then the report."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import jax

from distil_jax.analysis.comparison import (
  report,
  results,
  study,
  tables,
  training,
  trial_store,
)
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.config import ConfigError
from distil_jax.training import run_checks

# One thread a process: small networks gain nothing from more, and processes
# side by side would fight for the cores.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# For processes that are told to end; what they lose is one trial.
_SECONDS_TO_END = 5.0


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
    ConfigError: the place is taken, or a training config does not fit; nothing
      has been run.
    ValueError: a trial that is there ran with other settings; nor has anything
      been run.
    ComparisonError: a family could not be run.
  """
  names = list(families or comparison.families)
  run_checks.check_directory("run_directory", comparison.directory)
  for name in names:
    training.check(comparison, name, arms or list(comparison.arms))
  done = trial_store.read_trials(comparison.directory)
  trial_store.check_counted(
    comparison,
    {t: r for t, r in done.items() if reports or t.family in names},
  )
  # Programs are compiled once, not once a process and a run.
  jax.config.update(
    "jax_compilation_cache_dir", str(comparison.directory / "compiled")
  )
  if comparison.jobs == 1 or len(names) == 1:
    for name in names:
      study.run_family(comparison, name, arms, _say)
  else:
    _side_by_side(comparison, arguments, names, arms)
  if reports:
    if not families:
      study.measure_gradients(comparison, _say)
    write_report(comparison)


def write_gradients(comparison: Comparison) -> None:
  """Measures the gradients that the config names, and writes their table.

  Raises:
    ConfigError: the place is taken, or the config names none.
  """
  if not (comparison.gradients.arms and comparison.gradients.families):
    raise ConfigError(
      "the config measures no gradients; name families and arms under "
      "`gradients`, as configs/comparison/full.yaml does"
    )
  run_checks.check_directory("run_directory", comparison.directory)
  study.measure_gradients(comparison, _say)
  _say(f"{report.save_gradients(comparison)}: gradients")


def write_report(comparison: Comparison) -> None:
  """Writes the report of the trials that are there, and says its verdict.

  Raises:
    ConfigError: the place is taken.
    ValueError: no trial is there, or one ran with other settings.
  """
  run_checks.check_directory("run_directory", comparison.directory)
  done = trial_store.read_trials(comparison.directory)
  if not done:
    raise ValueError(
      f"no trials in {comparison.directory / 'trials'}: there is nothing to "
      "report; run the comparison first, or set run_directory to where it ran"
    )
  trial_store.check_counted(comparison, done)
  path = report.save(comparison, done)
  found = results.collect(comparison, done)
  _say(f"\n{tables.verdict(comparison, found)}\n\n{path}: all tables")


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
    _end(list(running.values()))
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


def _end(
  processes: Sequence[subprocess.Popen], seconds: float = _SECONDS_TO_END
) -> None:
  """Ends processes in order, after some seconds at once; none outlives this."""
  for process in processes:
    process.terminate()
  deadline = time.monotonic() + seconds
  for process in processes:
    try:
      process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
