"""`distil-jax`: argv to config to one of the conductors."""

import argparse
import logging
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Sequence

from distil_jax.cli import (
  compare,
  evaluate,
  export,
  generate,
  plan,
  sandbox,
  train,
)
from distil_jax.distributed import launch, signals

# In the order of the help page.
_COMMANDS = (train, evaluate, export, generate, plan, compare, sandbox)

_as_python_does = warnings.showwarning


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit status.

  Args:
    argv: its words; None: those of this process, which an interruption ends.
  """
  status = _status(argv)
  if argv is None and status == signals.EXIT_STATUS:
    signals.end_process()
  return status


def _status(argv: Sequence[str] | None) -> int:
  arguments = parse_arguments(argv)
  # What orbax has to say below an error is not for the user of a command.
  logging.getLogger("absl").setLevel(logging.ERROR)
  warnings.showwarning = _show_warning
  try:
    with signals.raised():
      place = _place(arguments)
      if place is None:
        return arguments.run(arguments)
      return _run_together(arguments, place)
  except KeyboardInterrupt:
    print("distil-jax: interrupted", file=sys.stderr)
    return signals.EXIT_STATUS
  except (ValueError, RuntimeError, OSError) as error:
    if arguments.debug:
      raise
    print(f"distil-jax: {error}", file=sys.stderr)
    return 1


def _show_warning(message, category, filename, *place, **more) -> None:
  """Of our own the words alone, and not where in the code they are said."""
  is_ours = pathlib.Path(filename).is_relative_to(
    pathlib.Path(__file__).parents[1]
  )
  if is_ours and issubclass(category, UserWarning):
    print(f"distil-jax: {message}", file=sys.stderr, flush=True)
  else:
    _as_python_does(message, category, filename, *place, **more)


def _place(arguments: argparse.Namespace) -> launch.ProcessSpec | None:
  """Of this process; None where it is alone."""
  if arguments.run is sandbox.run:
    return None
  place = launch.find(
    os.environ,
    coordinator=getattr(arguments, "coordinator", None),
    num_processes=getattr(arguments, "num_processes", None),
    process_id=getattr(arguments, "process_id", None),
  )
  if place is not None and arguments.run in (generate.run, compare.run):
    raise launch.LaunchError(
      f"this is {place}, but this command runs in one: start it on a single "
      "host, without the cluster's launcher; to ask what several hosts have "
      "trained, export it and name the folder with model.directory and --base"
    )
  return place


def _run_together(
  arguments: argparse.Namespace, place: launch.ProcessSpec
) -> int:
  """The command as one of several processes; see `processes.joined`."""
  from distil_jax.distributed import process_group

  status = 1
  try:
    with process_group.joined(place, timeout=arguments.initialization_timeout):
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
  except BaseException:
    traceback.print_exc()
  process_group.exit_if_failed(status)
  return status


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line; settings may stand before and after options."""
  parser = build_parser()
  arguments, rest = parser.parse_known_args(argv)
  if arguments.run is generate.run:
    # A text with a space is no option, for argparse neither.
    unknown = [t for t in rest if t.startswith("-") and " " not in t]
  else:
    unknown = [t for t in rest if t.startswith("-") or "=" not in t]
  if unknown:
    parser.error(f"unrecognized arguments: {' '.join(unknown)}")
  arguments.overrides += rest
  return arguments


def build_parser() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  parser = argparse.ArgumentParser(
    prog="distil-jax",
    description="Train language models from rich feedback.",
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for command in _COMMANDS:
    command.add_parser(commands)
  return parser
