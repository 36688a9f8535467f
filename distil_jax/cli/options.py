"""Options that several commands share."""

import argparse
import re
from collections.abc import Callable

CONFIG_HELP = "the run's settings, a YAML file; see configs/"
OVERRIDES_HELP = (
  "settings that replace those of the file, for example "
  "optimizer.learning_rate=1e-4"
)

RUNS_HELP = (
  "run folders, or folders of run folders, such as runs/quickstart; runs "
  "that differ in the seed alone are drawn together"
)


def add_command(
  commands, name: str, text: str, example: str
) -> argparse.ArgumentParser:
  """Adds a command to the parser.

  Args:
    commands: the parser's commands.
    name: of the command.
    text: its line in the help.
    example: the arguments of a call, for the command's own help.
  """
  return commands.add_parser(
    name,
    help=text,
    description=text,
    example=f"distil-jax {name} {example}",
    # An abbreviation could match an option that the user did not mean.
    allow_abbrev=False,
  )


def add_run_command(
  commands,
  name: str,
  text: str,
  run: Callable[[argparse.Namespace], int],
  *,
  example: str,
  directory: str | None = None,
) -> argparse.ArgumentParser:
  """Adds a command on a training config that several hosts may run together.

  Args:
    commands: the parser's commands.
    name, text, example: as for `add_command`.
    run: takes the parsed arguments and returns the exit status.
    directory: help text of the argument DIRECTORY; None means that there is
      none.

  Returns:
    The command's parser, for options of its own.
  """
  command = add_command(commands, name, text, example)
  command.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
  if directory is not None:
    command.add_argument("directory", metavar="DIRECTORY", help=directory)
  add_launch(command)
  add_common(command, run, OVERRIDES_HELP)
  return command


def add_step(command: argparse._ActionsContainer) -> None:
  """Adds the option that chooses a checkpoint."""
  command.add_argument(
    "--step",
    type=_step,
    metavar="N",
    help="the checkpoint of step N, or best: the one with the highest held-out "
    "accuracy of those that the run has evaluated (default: the last)",
  )


def add_common(
  command: argparse.ArgumentParser,
  run: Callable[[argparse.Namespace], int],
  overrides: str,
  metavar: str = "key=value",
) -> None:
  """Adds the arguments that every command has, and what runs the command.

  Args:
    command: the command's parser.
    run: takes the parsed arguments and returns the exit status.
    overrides: help text of the settings.
    metavar: name of the settings in the help.
  """
  command.add_argument(
    "overrides",
    nargs="*",
    default=(),  # or argparse would list it among what is required
    metavar=metavar,
    help=overrides,
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run)


def add_launch(command: argparse.ArgumentParser) -> None:
  """Adds the options of a command that can run as several processes."""
  group = command.add_argument_group(
    "several hosts",
    "Start the same command on every host; see docs/guides/several_hosts.md. "
    "TPU pods and Slurm steps need no options.",
  )
  group.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="address at which the others reach process 0 "
    "(default: JAX_COORDINATOR_ADDRESS)",
  )
  group.add_argument(
    "--num-processes",
    type=positive,
    metavar="N",
    help="number of processes on all hosts; 1 runs on this host alone "
    "(default: JAX_NUM_PROCESSES)",
  )
  group.add_argument(
    "--process-id",
    type=seed,
    metavar="I",
    help="number of this process, from 0 (default: JAX_PROCESS_ID)",
  )
  group.add_argument(
    "--initialization-timeout",
    type=positive,
    default=60,
    metavar="SECONDS",
    help="time within which all processes must have started (default: 60)",
  )


def positive(text: str) -> int:
  """Parses a whole number of at least 1."""
  return whole(text, 1, 2**31 - 1)


def _step(text: str) -> int | str:
  return text if text == "best" else positive(text)


def not_negative(text: str) -> int:
  """Parses a whole number from 0."""
  return whole(text, 0, 2**31 - 1)


def seed(text: str) -> int:
  """Parses a seed, a whole number from 0."""
  return whole(text, 0, 2**32 - 1)


def whole(text: str, least: int, most: int) -> int:
  """Parses a whole number between two limits.

  Raises:
    ArgumentTypeError: the text is anything else; argparse shows the message.
  """
  # `int` refuses thousands of digits with a message that names no option.
  if not re.fullmatch(r"-?[0-9]{1,12}", text) or not least <= int(text) <= most:
    raise argparse.ArgumentTypeError(
      f"must be a whole number from {least} to {most}, got {text!r}"
    )
  return int(text)
