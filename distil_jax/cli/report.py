"""The `report` command."""

import argparse
import pathlib
import sys

from distil_jax.cli.options import RUNS_HELP, add_command


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "report",
    "write a page with curves and rollouts of one or several runs",
    "runs/quickstart --output report.html",
  )
  command.add_argument("runs", nargs="+", metavar="RUN", help=RUNS_HELP)
  command.add_argument(
    "--output",
    metavar="FILE",
    help="the page (default: report.html in the folder of a lone RUN, else in "
    "the current one)",
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run, overrides=())


def run(arguments: argparse.Namespace) -> int:
  """Writes the page; returns the exit status."""
  # These imports take a second; a mistake in the arguments shows before them.
  from distil_jax.analysis.report import page

  runs = page.read_runs(map(pathlib.Path, arguments.runs))
  output = pathlib.Path(arguments.output or _default(arguments.runs))
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_text(page.to_page(runs), encoding="utf-8")
  count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
  size = output.stat().st_size
  print(f"{output} shows {count} ({size / 1e6:.1f} MB)", file=sys.stderr)
  return 0


def _default(runs: list[str]) -> pathlib.Path:
  return pathlib.Path(runs[0] if len(runs) == 1 else ".") / "report.html"
