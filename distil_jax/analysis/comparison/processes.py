"""Runs the families of a comparison in processes side by side."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from distil_jax.analysis.comparison.settings import Comparison

# Small networks gain nothing from more than one thread, and processes side by
# side would compete for the cores.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# How long processes may take to end in order; killing one loses one trial.
_SECONDS_TO_END = 5.0


class ComparisonError(RuntimeError):
  """Says which families could not be run; finished trials are kept."""


def run_side_by_side(
  comparison: Comparison,
  arguments: Sequence[str],
  families: Sequence[str],
  arms: Sequence[str],
) -> None:
  """Runs each family in its own process, `jobs` of them at a time.

  Args:
    comparison: What to run.
    arguments: Config and overrides as the command received them.
    families: Families to run.
    arms: Only these arms; all if empty.

  Raises:
    ComparisonError: A family could not be run.
  """
  flags = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
  environment = {**os.environ, "XLA_FLAGS": flags}
  command = [sys.executable, "-m", "distil_jax", "compare", *arguments]
  command += ["--no-report", *(f"--arm={arm}" for arm in arms)]
  waiting, running, failed = list(families), {}, []
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
    end_all(list(running.values()))
  if failed:
    raise ComparisonError(
      f"families that failed: {', '.join(failed)}; finished trials are kept in "
      f"{comparison.directory}, and the same command continues from them"
    )


def _first_to_end(running: dict[str, subprocess.Popen]) -> str:
  """Waits for a process to end; returns its family."""
  while True:
    # Waited for in turn: `subprocess` cannot wait for the first of several.
    for name, process in running.items():
      try:
        process.wait(timeout=0.2)
      except subprocess.TimeoutExpired:
        continue
      return name


def end_all(
  processes: Sequence[subprocess.Popen], seconds: float = _SECONDS_TO_END
) -> None:
  """Asks processes to end, and kills those that have not after some seconds."""
  # All are asked before the first is waited for, so that they end at once.
  for process in processes:
    process.terminate()
  deadline = time.monotonic() + seconds
  for process in processes:
    try:
      process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
