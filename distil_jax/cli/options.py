"""Options that several commands share."""

import argparse
import re
from collections.abc import Callable

CONFIG_HELP = "a YAML file; see configs/"


OVERRIDES_HELP = "settings, for example optimizer.learning_rate=1e-4"


def add_command(commands, name: str, text: str) -> argparse.ArgumentParser:
  # Abbreviated, an option that is not in the help could be meant.
  return commands.add_parser(
    name, help=text, description=text, allow_abbrev=False
  )


def add_common(
  command: argparse.ArgumentParser,
  run: Callable[[argparse.Namespace], int],
  overrides: str,
  metavar: str = "key=value",
) -> None:
  """What every command ends with."""
  command.add_argument("overrides", nargs="*", metavar=metavar, help=overrides)
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run)


def add_launch(command: argparse.ArgumentParser) -> None:
  group = command.add_argument_group(
    "several hosts",
    "Start the same command on every host; see docs/guides/several_hosts.md. "
    "TPU pods and Slurm steps need no options.",
  )
  group.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="of process 0, as the others reach it (JAX_COORDINATOR_ADDRESS)",
  )
  group.add_argument(
    "--num-processes",
    type=positive,
    metavar="N",
    help="of all hosts; 1 runs on this one alone (JAX_NUM_PROCESSES)",
  )
  group.add_argument(
    "--process-id",
    type=seed,
    metavar="I",
    help="which one this is, from 0 (JAX_PROCESS_ID)",
  )
  group.add_argument(
    "--initialization-timeout",
    type=positive,
    default=60,
    metavar="SECONDS",
    help="until all processes must have come (default: 60)",
  )


def positive(text: str) -> int:
  return whole(text, 1, 2**31 - 1)


def seed(text: str) -> int:
  return whole(text, 0, 2**32 - 1)


def whole(text: str, least: int, most: int) -> int:
  if not re.fullmatch(r"-?[0-9]{1,12}", text) or not least <= int(text) <= most:
    raise argparse.ArgumentTypeError(
      f"must be a whole number from {least} to {most}, got {text!r}"
    )
  return int(text)
