"""The `evaluate` command."""

import argparse
from typing import Any

from distil_jax import config as configs
from distil_jax.cli.options import add_run_command, add_step


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_run_command(
    commands,
    "evaluate",
    "print the held-out accuracy of a checkpoint, and write each sample",
    run,
    example="configs/calculator/quickstart.yaml --step 50",
  )
  add_step(command)


def run(arguments: argparse.Namespace) -> int:
  """Evaluates a checkpoint and prints a table."""
  config = configs.load(arguments.config, arguments.overrides)
  # These imports take seconds; a mistake in the config shows before them.
  import jax

  from distil_jax.training import run_checks, trainer
  from distil_jax.training.logging import sample_recorder, tables
  from distil_jax.training.logging.progress import Progress
  from distil_jax.training.setup import steps

  run_checks.check_same_command(f"evaluate {arguments.step}", config)
  loaded = trainer.Trainer(config)
  recorders: dict[str, Any] = {
    name: sample_recorder.SampleRecorder(worker)
    for name, worker in loaded.evaluation_workers.items()
  }
  loaded.evaluation_workers = recorders
  is_shown = jax.process_index() == 0
  progress = Progress(None, is_shown=is_shown)
  with jax.set_mesh(loaded.mesh), progress:
    found, params = steps.trained_params(
      config, loaded.policy.params, arguments.step
    )
    step = found or 0
    if not found:
      progress.message(
        f"no checkpoint in {config.run_directory}: evaluating the base model"
      )
    values = loaded.evaluate(params, progress, f"evaluating step {step}")
    samples = [x for recorder in recorders.values() for x in recorder.samples]
    path = sample_recorder.write(config.run_directory, step, samples)
    progress.message(
      f"{path} has each sample, the worst first; distil-jax report "
      f"{config.run_directory} shows them"
    )
  if is_shown:
    print(f"{config.run_directory}, step {step}")
    print(tables.evaluation_table(values))
  return 0
