"""The `check-teacher` command."""

import argparse
import os
import pathlib
import sys

from distil_jax import config as configs
from distil_jax.cli.options import (
  CONFIG_HELP,
  OVERRIDES_HELP,
  add_command,
  add_common,
  not_negative,
  positive,
)


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  text = "show and check what the teacher says of a few samples"
  command = add_command(
    commands,
    "check-teacher",
    text,
    "configs/calculator/quickstart.yaml --html teacher.html",
  )
  command.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
  command.add_argument(
    "--num-problems",
    type=positive,
    default=2,
    metavar="N",
    help="problems of the run's data that are sampled (default: 2)",
  )
  command.add_argument(
    "--num-answers",
    type=not_negative,
    default=32,
    metavar="N",
    help="held-out samples on which student and teacher are compared; "
    "0 compares none (default: 32)",
  )
  command.add_argument(
    "--html", metavar="FILE", help="write the report as one HTML page too"
  )
  add_common(command, run, OVERRIDES_HELP)


def run(arguments: argparse.Namespace) -> int:
  """Prints samples and checks; returns 1 if a check failed."""
  config = configs.load(arguments.config, arguments.overrides)
  # These imports take seconds; a mistake in the config shows before them.
  import jax

  from distil_jax.analysis.teacher_check import (
    accuracy,
    checks,
    evidence,
    gather,
    page,
    report,
    samples,
  )
  from distil_jax.training import trainer
  from distil_jax.training.logging.progress import Progress

  gather.check_has_teacher(config)
  fewer = gather.fewer_problems(config, arguments.num_problems)
  config = configs.load(arguments.config, [*arguments.overrides, *fewer])
  loaded = trainer.Trainer(config)
  with Progress(None) as progress, jax.set_mesh(loaded.mesh):
    checked = gather.load(loaded, progress)
    gathered = gather.gather(checked)
    found = None
    if gathered.teacher_mask.any():
      with progress.stage("scoring the samples"):
        found = evidence.collect(checked, gathered)
    results = checks.all_checks(gathered, found)
    if arguments.num_answers and gathered.num_turns > 1:
      results.append(
        accuracy.not_measured("the teacher would answer in one turn")
      )
    elif arguments.num_answers and config.teacher.models:
      results.append(
        accuracy.not_measured(
          "held-out problems name none of the teachers "
          f"{', '.join(config.teacher.models)}; check each alone as "
          "teacher.model"
        )
      )
    elif arguments.num_answers:
      with progress.stage("asking student and teacher"):
        # Of a trust region the part that is not the student's.
        _, graphdef, params = evidence.networks(checked).teachers[0][0]
        answers = accuracy.measure(
          checked, (graphdef, params), arguments.num_answers
        )
      results.append(accuracy.check(answers))
  shown = samples.all_samples(
    gathered, found and found.tokens, found and found.signal
  )
  colours = report.has_colours(sys.stdout, os.environ)
  print(report.to_text(shown, results, colours=colours))
  if arguments.html:
    title = f"Teacher of {config.name}, step {checked.step}"
    written = page.to_page(title, shown, results)
    pathlib.Path(arguments.html).write_text(written, encoding="utf-8")
  return 1 if checks.failures(results) else 0
