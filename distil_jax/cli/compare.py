"""The `compare` command."""

import argparse
from collections.abc import Mapping
from typing import Any

from distil_jax import config as configs
from distil_jax.cli.options import add_command, add_common


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  text = "compare objectives on small families of problems"
  command = add_command(
    commands, "compare", text, "configs/comparison/smoke.yaml --arm grpo"
  )
  command.add_argument(
    "config", metavar="CONFIG", help="a YAML file; see configs/comparison/"
  )
  for name in ("family", "arm"):
    command.add_argument(
      f"--{name}",
      action="append",
      default=[],
      metavar="NAME",
      help=f"run only this {name}; may be repeated",
    )
  command.add_argument(
    "--report",
    action="store_true",
    help="run no trial; write the report of the finished ones",
  )
  command.add_argument(
    "--gradients",
    action="store_true",
    help="run no trial; measure the noise of the gradients at the base model",
  )
  add_common(
    command,
    run,
    "settings that replace those of the file, for example seeds=3 "
    "families.early.num_steps=200",
  )
  # The command itself starts processes with this option.
  command.add_argument(
    "--no-report", action="store_true", help=argparse.SUPPRESS
  )


def run(arguments: argparse.Namespace) -> int:
  """Runs what is not done yet, and writes the report."""
  from distil_jax.analysis.comparison import report, run_trial, study
  from distil_jax.training import run_checks

  comparison = _comparison(arguments)
  gradients = comparison.gradients
  if arguments.gradients and not (gradients.arms and gradients.families):
    raise configs.ConfigError(
      "the config measures no gradients; name families and arms under "
      "`gradients`, as configs/comparison/full.yaml does"
    )
  run_checks.check_directory("run_directory", comparison.directory)
  if arguments.report:
    report.write(comparison, _say)
    return 0
  if not arguments.gradients:
    _run_trials(arguments, comparison)
  # Measured with the trials of the whole comparison, or when asked for.
  if arguments.gradients or not (arguments.no_report or arguments.family):
    study.measure_gradients(comparison, run_trial.measure_gradients, _say)
  if arguments.gradients:
    _say(f"{report.save_gradients(comparison)}: gradients")
  elif not arguments.no_report:
    report.write(comparison, _say)
  return 0


def train_or_none(config: configs.Config) -> Mapping[str, Any] | None:
  """Trains; returns the run's summary, or None if the run diverged."""
  from distil_jax.training import skipped_updates, trainer

  try:
    return trainer.Trainer(config).train()
  except skipped_updates.TrainingError:
    return None


def _comparison(arguments: argparse.Namespace) -> Any:
  """Loads the comparison, and checks the options against it."""
  from distil_jax.analysis.comparison.settings import Comparison

  for option in ("report", "gradients"):
    if getattr(arguments, option) and (arguments.family or arguments.arm):
      raise configs.ConfigError(
        f"--{option} is for all families and arms of the config; leave "
        "out --family and --arm"
      )
  if arguments.report and arguments.gradients:
    raise configs.ConfigError(
      "--report and --gradients write different files; ask for one at a time"
    )
  comparison = configs.load_as(
    Comparison, arguments.config, arguments.overrides
  )
  for name, known in (
    ("family", comparison.families),
    ("arm", comparison.arms),
  ):
    for value in getattr(arguments, name):
      if value not in known:
        raise configs.ConfigError(
          f"--{name} {value} is not in the config, which has {sorted(known)}"
        )
  return comparison


def _run_trials(arguments: argparse.Namespace, comparison: Any) -> None:
  """Runs the trials that are not done yet, after checking their settings."""
  import jax

  from distil_jax.analysis.comparison import (
    processes,
    record_settings,
    run_trial,
    study,
    trial_store,
  )

  # A name that is given twice is run once.
  families = list(dict.fromkeys(arguments.family or comparison.families))
  arms = list(dict.fromkeys(arguments.arm))
  for name in families:
    record_settings.check_configs(comparison, name, arms or [*comparison.arms])
  done = trial_store.read_trials(comparison.directory)
  if arguments.no_report:
    # A process of one family leaves the others' trials to their own processes.
    done = {t: r for t, r in done.items() if t.family in families}
  record_settings.check_counted(comparison, done)
  # Each program is compiled once, not once per process and run.
  jax.config.update(
    "jax_compilation_cache_dir", str(comparison.directory / "compiled")
  )
  if comparison.jobs > 1 and len(families) > 1:
    words = [arguments.config, *arguments.overrides]
    processes.run_side_by_side(comparison, words, families, arms)
    return
  runners = study.Runners(run_trial.run_trial, train_or_none)
  for name in families:
    study.run_family(comparison, name, arms, runners, _say)


def _say(line: str) -> None:
  print(line, flush=True)
