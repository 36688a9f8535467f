"""The `sandbox` command."""

import argparse

from distil_jax import config as configs
from distil_jax.cli.options import add_command, positive


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  text = "run programs for machines whose config has sandbox.kind=remote"
  command = add_command(commands, "sandbox", text, "--port 8080")
  command.add_argument(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="address to listen at; whoever reaches it can run programs here "
    "(default: 127.0.0.1, this machine alone)",
  )
  command.add_argument(
    "--port",
    type=int,
    default=8765,
    metavar="N",
    help="port to listen at (default: 8765)",
  )
  command.add_argument(
    "--workers",
    type=positive,
    metavar="N",
    help="number of programs at once (default: the number of cores)",
  )
  command.add_argument(
    "--python",
    metavar="PATH",
    help="interpreter of the programs (default: this one without packages)",
  )
  command.add_argument(
    "--packages",
    metavar="FOLDER",
    help="packages that they can import, made by `pip install --target`",
  )
  command.add_argument(
    "--weak",
    action="store_true",
    help="do not isolate programs from this machine: they can read what you "
    "can",
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run, overrides=[])


def run(arguments: argparse.Namespace) -> int:
  """Runs programs that other machines send, until it is interrupted."""
  from distil_jax.envs import sandbox
  from distil_jax.envs.sandbox import serving

  if arguments.overrides:
    raise configs.ConfigError(
      f"this command takes no settings, got {arguments.overrides[0]}"
    )
  with (
    sandbox.make(
      "weak" if arguments.weak else "bubblewrap",
      num_processes=arguments.workers,
      python=arguments.python,
      packages=arguments.packages,
    ) as programs,
    serving.Server((arguments.host, arguments.port), programs) as server,
  ):
    print(f"a sandbox listens at {server.url}; Ctrl-C ends it", flush=True)
    server.serve_forever()
  return 0
