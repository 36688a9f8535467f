"""`distil-jax`: argv to config to one of the conductors."""

import argparse
import logging
import sys
from collections.abc import Sequence

from distil_jax import config as configs
from distil_jax import interrupts

_CONFIG_HELP = "a YAML file; see configs/"
_OVERRIDES_HELP = "settings, for example optimizer.learning_rate=1e-4"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit status."""
  arguments = _arguments(argv)
  # What orbax has to say below an error is not for the user of a command.
  logging.getLogger("absl").setLevel(logging.ERROR)
  try:
    with interrupts.obeyed():
      return arguments.run(arguments)
  except KeyboardInterrupt:
    print("distil-jax: interrupted", file=sys.stderr)
    return interrupts.EXIT_STATUS
  except (ValueError, RuntimeError, OSError) as error:
    if arguments.debug:
      raise
    print(f"distil-jax: {error}", file=sys.stderr)
    return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line; settings may stand before and after options."""
  parser = _parser()
  arguments, rest = parser.parse_known_args(argv)
  unknown = [text for text in rest if text.startswith("-") or "=" not in text]
  if unknown:
    parser.error(f"unrecognized arguments: {' '.join(unknown)}")
  arguments.overrides += rest
  return arguments


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="distil-jax",
    description="Train language models from rich feedback.",
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for name, run, text in (
    ("train", _train, "train, or go on from the last checkpoint"),
    ("evaluate", _evaluate, "held-out accuracy of the last checkpoint"),
    ("export", _export, "write the last checkpoint as a Hugging Face folder"),
  ):
    command = _command(commands, name, text)
    command.add_argument("config", metavar="CONFIG", help=_CONFIG_HELP)
    if name == "export":
      command.add_argument("directory", metavar="DIRECTORY")
    _add_common(command, run, _OVERRIDES_HELP)
  _add_compare(commands)
  return parser


def _command(commands, name: str, text: str) -> argparse.ArgumentParser:
  # Abbreviated, an option that is not in the help could be meant.
  return commands.add_parser(
    name, help=text, description=text, allow_abbrev=False
  )


def _add_common(command: argparse.ArgumentParser, run, overrides: str) -> None:
  """What every command ends with."""
  command.add_argument(
    "overrides", nargs="*", metavar="key=value", help=overrides
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run)


def _add_compare(commands) -> None:
  text = "objectives against each other on small families of problems"
  command = _command(commands, "compare", text)
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
  _add_common(
    command,
    _compare,
    "settings, for example seeds=3 families.early.num_steps=200",
  )
  # For the processes that the command itself starts.
  command.add_argument(
    "--no-report", action="store_true", help=argparse.SUPPRESS
  )


def _train(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  # Heavy imports wait until the command line is known to be right.
  from distil_jax import learner
  from distil_jax.io import reports

  summary = learner.Learner(config).train()
  if summary:
    print(reports.comparison_table(summary["before"], summary["after"]))
    print(f"\n{config.run_directory}: metrics, samples, plot, checkpoints")
  return 0


def _evaluate(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  import jax

  from distil_jax import learner
  from distil_jax.io import reports
  from distil_jax.io.progress import Progress

  judge = learner.Learner(config)
  with jax.set_mesh(judge.mesh), Progress(None) as progress:
    step, params = judge.trained_params()
    if step == 0:
      progress.message(f"no checkpoint in {config.run_directory}: base model")
    values = judge.evaluate(params, progress, f"evaluating step {step}")
  print(f"{config.run_directory}, step {step}")
  print(reports.evaluation_table(values))
  return 0


def _compare(arguments: argparse.Namespace) -> int:
  from distil_jax.comparison import command
  from distil_jax.comparison.settings import Comparison

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


def _export(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  import dataclasses

  import jax

  from distil_jax import learner

  if "=" in arguments.directory:
    raise configs.ConfigError(
      f"DIRECTORY comes before the settings, got {arguments.directory!r}"
    )
  owner = learner.Learner(config)
  with jax.set_mesh(owner.mesh):
    step, params = owner.trained_params()
    dataclasses.replace(owner.policy, params=params).save(arguments.directory)
  print(f"step {step} of {config.run_directory} -> {arguments.directory}")
  return 0
