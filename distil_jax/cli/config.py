"""The `config` command."""

import argparse
import json

import yaml

from distil_jax import config as configs
from distil_jax.cli.options import (
  CONFIG_HELP,
  OVERRIDES_HELP,
  add_command,
  add_common,
)


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "config",
    "explain settings, or print all of a config's",
    "--explain optimizer.learning_rate",
  )
  command.add_argument(
    "config",
    metavar="CONFIG",
    nargs="?",
    help=f"{CONFIG_HELP}; all of its settings are printed, defaults included",
  )
  what = command.add_mutually_exclusive_group()
  what.add_argument(
    "--explain",
    nargs="?",
    const="",
    metavar="KEY",
    help="describe a section or setting: what it does, type and default; "
    "without KEY, list the sections",
  )
  what.add_argument(
    "--schema",
    action="store_true",
    help="print the JSON schema of a config, for editors",
  )
  add_common(command, run, OVERRIDES_HELP)


def run(arguments: argparse.Namespace) -> int:
  """Prints what was asked for."""
  from distil_jax.config import describe

  if arguments.schema:
    print(json.dumps(describe.json_schema(), indent=1))
  elif arguments.explain is not None:
    print(describe.explain(arguments.explain or None))
  elif arguments.config is None:
    raise configs.ConfigError(
      "name a CONFIG, or ask with --explain or --schema; see distil-jax config "
      "--help"
    )
  else:
    config = configs.load(arguments.config, arguments.overrides)
    tree = config.model_dump(mode="json")
    print(yaml.safe_dump(tree, sort_keys=False), end="")
  return 0
