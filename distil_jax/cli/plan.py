"""The `plan` command."""

import argparse

from distil_jax import config as configs
from distil_jax.cli.options import (
  CONFIG_HELP,
  OVERRIDES_HELP,
  add_command,
  add_common,
  positive,
)


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  text = "estimate memory and time of a run on hardware that need not be here"
  command = add_command(
    commands,
    "plan",
    text,
    "configs/science/qwen3_8b.yaml --topology v5p-16 "
    "--num-params-from configs/shapes/qwen3_8b.json",
  )
  command.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
  command.add_argument(
    "--topology",
    metavar="NAME",
    help="TPU chips, such as v5p:2x2x2 or v5p-16, or GPUs, such as 8xH100 "
    "(default: the devices of this machine)",
  )
  command.add_argument(
    "--num-params-from",
    metavar="FILE",
    help="a config.json with the sizes of the network (default: that of the "
    "config's model)",
  )
  command.add_argument(
    "--search",
    action="store_true",
    help="try meshes and micro-batches and rank those that fit",
  )
  command.add_argument(
    "--candidates",
    "--tries",
    dest="num_candidates",
    type=positive,
    default=6,
    metavar="N",
    help="number of candidates that a search compiles (default: 6)",
  )
  command.add_argument(
    "--json", action="store_true", help="print one JSON object"
  )
  add_common(command, run, OVERRIDES_HELP)


def run(arguments: argparse.Namespace) -> int:
  """Prints the estimate of one run, or the ranking of a search."""
  config = configs.load(arguments.config, arguments.overrides)
  # These imports take seconds; a mistake in the config shows before them.
  from distil_jax.planning import hardware as planning_hardware
  from distil_jax.planning import mesh_search, planner, report
  from distil_jax.training.logging.progress import Progress

  hardware = planning_hardware.find_hardware(arguments.topology)
  network = planner.load_network(config, arguments.num_params_from)
  with Progress(None) as progress:
    if arguments.search:

      def plan_training(candidate: configs.Config):
        planned = planner.Planner(candidate, hardware, network, progress)
        return planned.build_plan([planned.training_phase()])

      found = mesh_search.search(
        config,
        hardware,
        network,
        progress,
        num_candidates=arguments.num_candidates,
        plan_training=plan_training,
      )
      write = report.search_to_json if arguments.json else report.search_to_text
      print(write(found))
    else:
      planned = planner.Planner(config, hardware, network, progress).plan()
      print((report.to_json if arguments.json else report.to_text)(planned))
  return 0
