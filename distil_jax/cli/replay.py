"""The `replay` command."""

import argparse
import pathlib

from distil_jax import config as configs
from distil_jax.cli.options import (
  OVERRIDES_HELP,
  add_command,
  add_common,
  positive,
)


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "replay",
    "compute a step of a run again, from its batch, and compare",
    "runs/quickstart 12",
  )
  command.add_argument("directory", metavar="RUN", help="the run's folder")
  command.add_argument(
    "step",
    metavar="STEP",
    type=positive,
    help="a training step whose batch is in RUN/batches: one whose update was "
    "skipped, or one of the last logging.kept_batches",
  )
  add_common(command, run, OVERRIDES_HELP)


def run(arguments: argparse.Namespace) -> int:
  """Computes the step and prints what differs; 1 if anything does."""
  folder = pathlib.Path(arguments.directory)
  if not (folder / "config.yaml").is_file():
    raise configs.ConfigError(
      f"{folder.absolute()} is no run: it has no config.yaml"
    )
  config = configs.load(
    folder / "config.yaml",
    [*arguments.overrides, f"train.run_directory={folder}"],
  )
  # These imports take seconds; a mistake in the config shows before them.
  import jax

  from distil_jax.analysis import replay
  from distil_jax.training import trainer
  from distil_jax.training.logging.progress import Progress

  loaded = trainer.Trainer(config)
  with jax.set_mesh(loaded.mesh), Progress(None) as progress:
    found = replay.replay(loaded, arguments.step, progress)
  differences = found.differences()
  for name, value in found.computed.items():
    if name in differences:
      print(f"{name:30} {differences[name][0]!r} in the run, {value!r} now")
    else:
      print(f"{name:30} {value!r}")
  print(
    f"\n{folder}, step {arguments.step}, from "
    + (f"the checkpoint of step {found.start}" if found.start else "its start")
    + f": {len(found.recorded) - len(differences)} of {len(found.recorded)} "
    "numbers are the same bit for bit"
  )
  return 1 if differences else 0
