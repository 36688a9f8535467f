"""TODO docstring."""

import argparse

from distil_jax import config as configs


def export(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  import dataclasses

  import jax

  from distil_jax.training import run_checks, trainer

  if "=" in arguments.directory:
    raise configs.ConfigError(
      f"DIRECTORY comes before the settings, got {arguments.directory!r}"
    )
  command = f"export to {arguments.directory}"
  run_checks.check_same_command(command, config)
  owner = trainer.Trainer(config)
  with jax.set_mesh(owner.mesh):
    step, params = owner.trained_params()
    dataclasses.replace(owner.policy, params=params).save(arguments.directory)
  if jax.process_index() == 0:
    print(f"step {step} of {config.run_directory} -> {arguments.directory}")
  return 0
