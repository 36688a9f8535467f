"""The `compare` command."""

import argparse

from distil_jax import config as configs
from distil_jax.cli.options import add_command, add_common


def add_parser(commands) -> None:
  text = "objectives against each other on small families of problems"
  command = add_command(commands, "compare", text)
  command.add_argument(
    "config", metavar="CONFIG", help="a YAML file; see configs/comparison/"
  )
  for name in ("family", "arm"):
    command.add_argument(
      f"--{name}",
      action="append",
      default=[],
      help=f"only this {name}; may be repeated",
    )
  command.add_argument(
    "--report",
    action="store_true",
    help="run nothing; write the report of the trials that are there",
  )
  command.add_argument(
    "--gradients",
    action="store_true",
    help="run no trial; measure how well gradients are estimated at the base",
  )
  add_common(
    command,
    run,
    "settings, for example seeds=3 families.early.num_steps=200",
  )
  # For the processes that the command itself starts.
  command.add_argument(
    "--no-report", action="store_true", help=argparse.SUPPRESS
  )


def run(arguments: argparse.Namespace) -> int:
  from distil_jax.analysis.comparison import command
  from distil_jax.analysis.comparison.settings import Comparison

  for option in ("report", "gradients"):
    if getattr(arguments, option) and (arguments.family or arguments.arm):
      raise configs.ConfigError(
        f"--{option} is of all that the config names; leave --family and --arm "
        "away"
      )
  if arguments.report and arguments.gradients:
    raise configs.ConfigError(
      "--report and --gradients are two things to write; ask for one at a time"
    )
  comparison = configs.load_as(
    Comparison, arguments.config, arguments.overrides
  )
  for name, known in (
    ("family", comparison.families),
    ("arm", comparison.arms),
  ):
    for value in getattr(arguments, name):
      if value not in known:
        raise configs.ConfigError(
          f"--{name} {value} is not one of {sorted(known)}"
        )
  if arguments.report or arguments.gradients:
    write = command.write_report
    if arguments.gradients:
      write = command.write_gradients
    write(comparison)
    return 0
  command.run(
    comparison,
    [arguments.config, *arguments.overrides],
    families=list(dict.fromkeys(arguments.family)),
    arms=list(dict.fromkeys(arguments.arm)),
    reports=not arguments.no_report,
  )
  return 0
