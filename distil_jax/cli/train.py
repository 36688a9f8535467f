"""The `train` command."""

import argparse

from distil_jax import config as configs
from distil_jax.cli.options import add_run_command


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  add_run_command(
    commands,
    "train",
    "train, or go on from the last checkpoint",
    run,
    example="configs/calculator/quickstart.yaml train.num_steps=20",
  )


def run(arguments: argparse.Namespace) -> int:
  """Trains and prints the held-out accuracy before and after."""
  config = configs.load(arguments.config, arguments.overrides)
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
