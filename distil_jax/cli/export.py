"""The `export` command."""

import argparse

from distil_jax import config as configs
from distil_jax.cli.options import add_run_command


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  add_run_command(
    commands,
    "export",
    "write the last checkpoint as a Hugging Face folder",
    run,
    directory="the folder to write",
  )


def run(arguments: argparse.Namespace) -> int:
  """Writes the policy of the last checkpoint in the Hugging Face format."""
  config = configs.load(arguments.config, arguments.overrides)
  import dataclasses

  import jax

  from distil_jax.training import run_checks, trainer

  # A setting in the place of the folder would become its name.
  if "=" in arguments.directory:
    raise configs.ConfigError(
      f"DIRECTORY comes before the settings, got {arguments.directory!r}; "
      "put the settings last"
    )
  command = f"export to {arguments.directory}"
  run_checks.check_same_command(command, config)
  loaded = trainer.Trainer(config)
  with jax.set_mesh(loaded.mesh):
    step, params = loaded.trained_params()
    dataclasses.replace(loaded.policy, params=params).save(arguments.directory)
  if jax.process_index() == 0:
    print(f"step {step} of {config.run_directory} -> {arguments.directory}")
  return 0
