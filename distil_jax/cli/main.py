"""The entry point of `distil-jax`: parses the command line and runs it."""

import argparse
import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Sequence

from distil_jax import __version__
from distil_jax.cli import (
  check,
  check_teacher,
  compare,
  config,
  evaluate,
  export,
  generate,
  init,
  plan,
  replay,
  report,
  runs,
  sandbox,
  serve,
  train,
  watch,
)
from distil_jax.cli.command_parser import CommandParser
from distil_jax.distributed import launch, signals

# The help lists them in this order.
_COMMANDS = (
  init,
  check,
  train,
  evaluate,
  export,
  generate,
  serve,
  runs,
  report,
  watch,
  check_teacher,
  replay,
  plan,
  compare,
  config,
  sandbox,
)
# These do not run as one of several processes.
_ALONE = (
  generate.run,
  serve.run,
  compare.run,
  check_teacher.run,
  check.run,
  replay.run,
)
# These start nothing on a device, whatever launched them.
_WITHOUT_DEVICES = (
  sandbox.run,
  config.run,
  init.run,
  runs.run,
  report.run,
  watch.run,
)

_show_as_python_does = warnings.showwarning


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: the arguments; None takes those of this process, and then an
      interrupt ends the process.

  Returns:
    The exit status: 0; 1 after an error; 130 after an interrupt.
  """
  status = _status(argv)
  if argv is None and status == signals.EXIT_STATUS:
    signals.end_process()
  return status


def _status(argv: Sequence[str] | None) -> int:
  arguments = parse_arguments(argv)
  # orbax logs details below an error that do not help the user of a command.
  logging.getLogger("absl").setLevel(logging.ERROR)
  # Of the arrays of a damaged checkpoint the first error is raised, and asyncio
  # shows tracebacks of the others.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.showwarning = _show_warning
  try:
    with signals.raised():
      process = _find_process(arguments)
      if process is None:
        return arguments.run(arguments)
      return _run_together(arguments, process)
  except KeyboardInterrupt:
    print("distil-jax: interrupted", file=sys.stderr)
    return signals.EXIT_STATUS
  except (ValueError, RuntimeError, OSError) as error:
    if arguments.debug:
      raise
    print(f"distil-jax: {error}", file=sys.stderr)
    return 1


def _show_warning(message, category, filename, *position, **more) -> None:
  """Shows this package's warnings without the place in the code."""
  is_ours = pathlib.Path(filename).is_relative_to(
    pathlib.Path(__file__).parents[1]
  )
  if is_ours and issubclass(category, UserWarning):
    print(f"distil-jax: {message}", file=sys.stderr, flush=True)
  else:
    _show_as_python_does(message, category, filename, *position, **more)


def _find_process(arguments: argparse.Namespace) -> launch.ProcessSpec | None:
  """Returns which of several processes this is; None if it is alone."""
  if arguments.run in _WITHOUT_DEVICES:
    return None
  process = launch.find(
    os.environ,
    coordinator=getattr(arguments, "coordinator", None),
    num_processes=getattr(arguments, "num_processes", None),
    process_id=getattr(arguments, "process_id", None),
  )
  if process is not None and arguments.run in _ALONE:
    raise launch.LaunchError(
      f"this is {process}, but this command runs in one process: start it on a "
      "single host, without the cluster's launcher; to ask what several hosts "
      "have trained, export it and give the folder as model.directory, with "
      "--base"
    )
  return process


def _run_together(
  arguments: argparse.Namespace, process: launch.ProcessSpec
) -> int:
  """Runs the command as one of several; see `process_group.joined`."""
  from distil_jax.distributed import process_group

  status = 1
  try:
    with process_group.joined(
      process, timeout=arguments.initialization_timeout
    ):
      return arguments.run(arguments)
  except process_group.Stopped as error:
    print(f"distil-jax: {process_group.label()}{error}", file=sys.stderr)
    return signals.EXIT_STATUS
  except KeyboardInterrupt:
    print(f"distil-jax: {process_group.label()}interrupted", file=sys.stderr)
    status = signals.EXIT_STATUS
  except (ValueError, RuntimeError, OSError) as error:
    if arguments.debug:
      traceback.print_exc()
    print(f"distil-jax: {process_group.label()}{error}", file=sys.stderr)
  # Anything else would let Python end in the usual way, which waits for the
  # other processes.
  except BaseException:
    traceback.print_exc()
  process_group.exit_if_failed(status)
  return status


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line; settings may stand before and after options."""
  parser = build_parser()
  arguments, rest = parser.parse_known_args(argv)
  if arguments.run is generate.run:
    # Like argparse, take a text with a space for a prompt and not an option.
    unknown = [t for t in rest if t.startswith("-") and " " not in t]
  else:
    unknown = [t for t in rest if t.startswith("-") or "=" not in t]
  if unknown:
    cure = ""
    if any(re.match(r"--\w+(\.\w+)+", t) for t in unknown):
      cure = "; a setting has no dashes: section.key=value"
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{cure}")
  arguments.overrides = [*arguments.overrides, *rest]
  return arguments


def build_parser() -> CommandParser:
  """Returns the parser of all commands."""
  parser = CommandParser(
    prog="distil-jax",
    description="Train language models from rich feedback.",
    example="distil-jax train configs/calculator/quickstart.yaml",
  )
  parser.add_argument(
    "--version", action="version", version=f"distil-jax {__version__}"
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for command in _COMMANDS:
    command.add_parser(commands)
  parser.command_names = list(commands.choices)
  return parser
