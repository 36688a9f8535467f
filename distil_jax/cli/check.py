"""The `check` command."""

import argparse
import os
import shutil
import sys

from distil_jax import config as configs
from distil_jax.cli.options import (
  CONFIG_HELP,
  OVERRIDES_HELP,
  add_command,
  add_common,
)

_GIB = 2**30


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "check",
    "show what can be known of a run before its first step",
    "configs/calculator/quickstart.yaml",
  )
  command.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
  add_common(command, run, OVERRIDES_HELP)


def run(arguments: argparse.Namespace) -> int:
  """Prints a page of findings; returns 1 if the run would fail."""
  config = configs.load(arguments.config, arguments.overrides)
  # These imports take seconds; a mistake in the config shows before them.
  from distil_jax.analysis import run_check
  from distil_jax.analysis.teacher_check import report

  colours = report.has_colours(sys.stdout, os.environ)
  num_failed = 0
  for finding in (*run_check.RunCheck(config).all(), _memory(config)):
    print(report.finding_text(finding, colours=colours), flush=True)
    num_failed += finding.is_ok is False
  if num_failed:
    plural = "" if num_failed == 1 else "s"
    print(f"\n{num_failed} problem{plural} would stop the run")
    return 1
  print("\nnothing is in the way; next:")
  if config.objective.needs_teacher:
    print(
      f"  distil-jax check-teacher {arguments.config}  # does it know more?"
    )
  print(f"  distil-jax train {arguments.config}")
  return 0


def _memory(config: configs.Config):
  """Returns the bytes of the training state against memory and disk."""
  from distil_jax.analysis.teacher_check.records import Finding
  from distil_jax.planning import hardware, planner
  from distil_jax.training.logging.progress import Progress

  try:
    found = hardware.find_hardware(None)
    network = planner.load_network(config, None)
    parts = planner.Planner(config, found, network, Progress()).parts
  except (ValueError, RuntimeError, OSError) as error:
    return Finding("memory", str(error).splitlines(), False)
  state = sum(parts.values())
  lines = [
    f"state of training on each device: {state / _GIB:.3f} GiB ("
    + ", ".join(f"{name} {size / _GIB:.3f}" for name, size in parts.items())
    + "); activations and KV cache besides, see distil-jax plan"
  ]
  is_ok = True
  if found.chip is not None and state > found.chip.memory_bytes:
    is_ok = False
    lines.append(
      f"more than the {found.chip.memory_bytes / _GIB:.0f} GiB of a "
      f"{found.chip.name}; raise mesh.fsdp, or set model.lora"
    )
  kept = config.checkpoint.keep + config.checkpoint.keep_best + 1
  needed = state * len(found.devices) * kept
  place = config.run_directory.absolute()
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  lines.append(
    f"{kept} checkpoints take at most {needed / _GIB:.3f} GiB; "
    f"{free / _GIB:.1f} GiB are free in {place}"
  )
  if needed > free:
    is_ok = False
    lines.append(
      "make room, lower checkpoint.keep, or move train.run_directory"
    )
  return Finding("memory and disk", lines, is_ok)
