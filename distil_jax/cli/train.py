"""The `train` command."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from distil_jax import config as configs
from distil_jax.cli import sweep
from distil_jax.cli.options import add_run_command


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_run_command(
    commands,
    "train",
    "train, or go on from the last checkpoint",
    run,
    example="configs/calculator/quickstart.yaml train.num_steps=20",
  )
  command.add_argument(
    "--allow",
    action="extend",
    nargs="+",
    default=[],
    metavar="KEY",
    help="settings that may differ from those of the checkpoint on purpose, "
    "such as optimizer.learning_rate",
  )
  command.add_argument(
    "--quiet",
    action="store_true",
    help="show warnings and the result, and no progress",
  )
  command.add_argument(
    "--sweep",
    action="extend",
    nargs="+",
    default=[],
    metavar="KEY=VALUES",
    help="train once for each combination of values, such as "
    "optimizer.learning_rate=1e-5,3e-5 train.seed=0..2, one after another in "
    "folders of their own, then write a report; the same command goes on where "
    "it was stopped",
  )


def run(arguments: argparse.Namespace) -> int:
  """Trains and prints the held-out accuracy before and after."""
  overrides = arguments.overrides
  if arguments.allow:
    # What stands behind --allow with an equals sign is a setting itself.
    keys = [x for x in arguments.allow if "=" not in x]
    overrides = [
      *overrides,
      *(x for x in arguments.allow if "=" in x),
      f"train.allow_changes=[{', '.join(keys)}]",
    ]
  if arguments.quiet:
    overrides = [*overrides, "logging.quiet=true"]
  if arguments.sweep:
    return _sweep(arguments, overrides)
  config = configs.load(arguments.config, overrides)
  summary = _train(config)
  if summary:
    _say_what_next(arguments.config, config.run_directory, summary)
  return 0


def _train(config: configs.Config) -> dict[str, Any]:
  """Trains a run and prints its table; returns its summary."""
  # These imports take seconds; a mistake in the config shows before them.
  from distil_jax.training import run_checks, trainer
  from distil_jax.training.logging import tables

  run_checks.check_same_command("train", config)
  summary = trainer.Trainer(config).train()
  if summary:
    table = tables.comparison_table(summary["before"], summary["after"])
    print(table, flush=True)
  return summary


def _say_what_next(
  path: str, directory: pathlib.Path, summary: dict[str, Any]
) -> None:
  _say(
    f"{summary['steps']} steps in {summary['seconds']:.0f} s; metrics, "
    f"learning.png, rollouts and checkpoints are in {directory}\n"
    f"next: distil-jax report {directory}   a page with curves and rollouts\n"
    f"      distil-jax evaluate {path}   accuracy, and each sample to read"
  )


def _say(text: str) -> None:
  print(f"distil-jax: {text}", file=sys.stderr, flush=True)


def _sweep(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
  """Trains the runs of a sweep; returns 1 if one failed."""
  folder, trials = sweep.trials(arguments.config, overrides, arguments.sweep)
  import jax

  is_writer = jax.process_index() == 0
  failed = []
  for number, trial in enumerate(trials, start=1):
    if is_writer:
      _say(f"run {number} of {len(trials)}: {trial.name}")
    if _is_done(trial.config):
      continue
    try:
      _train(trial.config)
    except (ValueError, RuntimeError, OSError) as error:
      if jax.process_count() > 1 or arguments.debug:
        # The others have not agreed to leave this run out.
        raise
      failed.append(trial.name)
      _say(f"{trial.name}: {error}")
  if is_writer:
    _report(folder)
  if failed:
    _say(
      f"{len(failed)} of {len(trials)} runs failed: {'; '.join(failed)}; the "
      "same command tries these again"
    )
  return 1 if failed else 0


def _is_done(config: configs.Config) -> bool:
  """Returns True if the run has all the steps that it is to have."""
  try:
    text = (config.run_directory / "summary.json").read_text(encoding="utf-8")
    # A run also ends if its epochs do, but its own start says that best.
    return json.loads(text)["steps"] == config.train.num_steps
  except (OSError, ValueError, KeyError):
    return False


def _report(folder: pathlib.Path) -> None:
  """Writes the page of all runs, and prints and writes their table."""
  from distil_jax.analysis.report import page, run_table
  from distil_jax.analysis.report.run_record import find_runs

  if not find_runs(folder):
    return  # no run came as far as its folder
  table = run_table.table(folder)
  summary = run_table.summary(folder)
  print(f"{table}\n\n{summary}")
  (folder / "summary.txt").write_text(f"{table}\n\n{summary}\n", "utf-8")
  output = folder / "report.html"
  output.write_text(page.to_page(page.read_runs([folder])), encoding="utf-8")
  _say(f"the runs are in {folder}, a page that compares them is {output}")
