"""TODO docstring."""

import argparse

from distil_jax import config as configs


def train(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  # Heavy imports wait until the command line is known to be right.
  from distil_jax.training import run_checks, trainer
  from distil_jax.training.logging import tables

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  run_checks.check_same_command("train", config)
  summary = trainer.Trainer(config).train()
  if summary:
    print(tables.comparison_table(summary["before"], summary["after"]))
    print(f"\n{config.run_directory}: metrics, samples, plot, checkpoints")
  return 0
