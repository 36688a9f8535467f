"""The `train` command."""

import argparse

from distil_jax import config as configs
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
  config = configs.load(arguments.config, overrides)
  # These imports take seconds; a mistake in the config shows before them.
  from distil_jax.training import run_checks, trainer
  from distil_jax.training.logging import tables

  run_checks.check_same_command("train", config)
  summary = trainer.Trainer(config).train()
  if summary:
    print(tables.comparison_table(summary["before"], summary["after"]))
    print(
      f"\nmetrics, samples, plot and checkpoints are in {config.run_directory}"
    )
  return 0
