"""The `watch` command."""

import argparse
import pathlib
import sys

from distil_jax.cli.options import RUNS_HELP, add_command, whole


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "watch",
    "serve the page of report, which follows runs while they train",
    "runs/quickstart",
  )
  command.add_argument("runs", nargs="+", metavar="RUN", help=RUNS_HELP)
  command.add_argument(
    "--port",
    type=_port,
    default=8100,
    metavar="PORT",
    help="port on this machine; 0 takes a free one (default: 8100)",
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run, overrides=())


def run(arguments: argparse.Namespace) -> int:
  """Serves until it is interrupted; returns the exit status."""
  # These imports take a second; a mistake in the arguments shows before them.
  from distil_jax.analysis.report import page, page_server

  folders = [pathlib.Path(path) for path in arguments.runs]
  page.read_runs(folders)  # a wrong folder is told here, not in the browser
  with page_server.PageServer(folders, arguments.port) as server:
    names = " ".join(arguments.runs)
    print(
      f"{server.url} shows {names}; Ctrl-C ends it", file=sys.stderr, flush=True
    )
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      print("not served any more", file=sys.stderr)
  return 0


def _port(text: str) -> int:
  return whole(text, 0, 65535)
