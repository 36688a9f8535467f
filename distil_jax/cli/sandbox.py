"""The `sandbox` command."""

import argparse

from distil_jax import config as configs
from distil_jax.cli.options import add_command, positive


def add_parser(commands) -> None:
  text = "run the programs of other machines, see sandbox.kind=remote"
  command = add_command(commands, "sandbox", text)
  command.add_argument(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="where to listen; whoever can reach it can run programs here "
    "(default: this machine alone)",
  )
  command.add_argument(
    "--port", type=int, default=8765, metavar="N", help="(default: 8765)"
  )
  command.add_argument(
    "--workers",
    type=positive,
    metavar="N",
    help="programs at once (default: as many as there are cores)",
  )
  command.add_argument(
    "--python",
    metavar="PATH",
    help="the interpreter they run in (default: this one without its packages)",
  )
  command.add_argument(
    "--packages",
    metavar="FOLDER",
    help="packages that they may import, made by `pip install --target`",
  )
  command.add_argument(
    "--weak",
    action="store_true",
    help="do not keep them apart from this machine: they can read what you can",
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run, overrides=[])


def run(arguments: argparse.Namespace) -> int:
  from distil_jax.envs import sandbox
  from distil_jax.envs.sandbox import serving

  if arguments.overrides:
    raise configs.ConfigError(f"{arguments.overrides[0]} is no option here")
  with (
    sandbox.make(
      "weak" if arguments.weak else "bubblewrap",
      num_processes=arguments.workers,
      python=arguments.python,
      packages=arguments.packages,
    ) as box,
    serving.Server((arguments.host, arguments.port), box) as server,
  ):
    print(f"a sandbox listens at {server.url}; Ctrl-C ends it", flush=True)
    server.serve_forever()
  return 0
