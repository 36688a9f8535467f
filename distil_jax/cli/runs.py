"""The `runs` command."""

import argparse
import pathlib

from distil_jax.cli.options import add_command


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "runs",
    "list run folders: what sets each apart, its step and its accuracy",
    "runs/",
  )
  command.add_argument(
    "folder",
    nargs="?",
    default="runs",
    metavar="FOLDER",
    help="holds run folders, also one level further down (default: runs)",
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run, overrides=())


def run(arguments: argparse.Namespace) -> int:
  """Prints the table; returns the exit status."""
  # These imports take a second; a mistake in the arguments shows before them.
  from distil_jax.analysis.report import run_table

  print(run_table.table(pathlib.Path(arguments.folder)))
  return 0
