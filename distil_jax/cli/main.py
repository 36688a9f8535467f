"""`distil-jax`: argv to config to one of the conductors."""

import argparse
import difflib
import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from distil_jax import config as configs
from distil_jax.distributed import launch, signals

_as_python_does = warnings.showwarning
_CONFIG_HELP = "a YAML file; see configs/"
_OVERRIDES_HELP = "settings, for example optimizer.learning_rate=1e-4"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit status.

  Args:
    argv: its words; None: those of this process, which an interruption ends.
  """
  status = _status(argv)
  if argv is None and status == signals.EXIT_STATUS:
    signals.end()
  return status


def _status(argv: Sequence[str] | None) -> int:
  arguments = _arguments(argv)
  # What orbax has to say below an error is not for the user of a command.
  logging.getLogger("absl").setLevel(logging.ERROR)
  warnings.showwarning = _show_warning
  try:
    with signals.obeyed():
      place = _place(arguments)
      if place is None:
        return arguments.run(arguments)
      return _run_together(arguments, place)
  except KeyboardInterrupt:
    print("distil-jax: interrupted", file=sys.stderr)
    return signals.EXIT_STATUS
  except (ValueError, RuntimeError, OSError) as error:
    if arguments.debug:
      raise
    print(f"distil-jax: {error}", file=sys.stderr)
    return 1


def _show_warning(message, category, filename, *place, **more) -> None:
  """Of our own the words alone, and not where in the code they are said."""
  is_ours = pathlib.Path(filename).is_relative_to(pathlib.Path(__file__).parent)
  if is_ours and issubclass(category, UserWarning):
    print(f"distil-jax: {message}", file=sys.stderr, flush=True)
  else:
    _as_python_does(message, category, filename, *place, **more)


def _place(arguments: argparse.Namespace) -> launch.Place | None:
  """Of this process; None where it is alone."""
  if arguments.run is _sandbox:
    return None
  place = launch.find(
    os.environ,
    coordinator=getattr(arguments, "coordinator", None),
    num_processes=getattr(arguments, "num_processes", None),
    process_id=getattr(arguments, "process_id", None),
  )
  if place is not None and arguments.run in (_generate, _compare):
    raise launch.LaunchError(
      f"this is {place}, but this command runs in one: start it on a single "
      "host, without the cluster's launcher; to ask what several hosts have "
      "trained, export it and name the folder with model.directory and --base"
    )
  return place


def _run_together(arguments: argparse.Namespace, place: launch.Place) -> int:
  """The command as one of several processes; see `processes.joined`."""
  from distil_jax.distributed import process_group

  status = 1
  try:
    with process_group.joined(place, timeout=arguments.initialization_timeout):
      return arguments.run(arguments)
  except process_group.Stopped as error:
    print(f"distil-jax: {process_group.label()}{error}", file=sys.stderr)
    return signals.EXIT_STATUS
  except KeyboardInterrupt:
    print(f"distil-jax: {process_group.label()}interrupted", file=sys.stderr)
    status = signals.EXIT_STATUS
  except (ValueError, RuntimeError, OSError) as error:
    if arguments.debug:
      traceback.print_exc()
    print(f"distil-jax: {process_group.label()}{error}", file=sys.stderr)
  except BaseException:
    traceback.print_exc()
  process_group.exit_if_failed(status)
  return status


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line; settings may stand before and after options."""
  parser = _parser()
  arguments, rest = parser.parse_known_args(argv)
  if arguments.run is _generate:
    # A text with a space is no option, for argparse neither.
    unknown = [t for t in rest if t.startswith("-") and " " not in t]
  else:
    unknown = [t for t in rest if t.startswith("-") or "=" not in t]
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
    _add_launch(command)
    _add_common(command, run, _OVERRIDES_HELP)
  _add_generate(commands)
  _add_plan(commands)
  _add_compare(commands)
  _add_sandbox(commands)
  return parser


def _command(commands, name: str, text: str) -> argparse.ArgumentParser:
  # Abbreviated, an option that is not in the help could be meant.
  return commands.add_parser(
    name, help=text, description=text, allow_abbrev=False
  )


def _add_common(
  command: argparse.ArgumentParser,
  run: Callable[[argparse.Namespace], int],
  overrides: str,
  metavar: str = "key=value",
) -> None:
  """What every command ends with."""
  command.add_argument("overrides", nargs="*", metavar=metavar, help=overrides)
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run)


def _add_launch(command: argparse.ArgumentParser) -> None:
  group = command.add_argument_group(
    "several hosts",
    "The same command on every host; see docs/hosts.md. On TPU pods and in "
    "steps of Slurm nothing need be said.",
  )
  group.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="of process 0, as the others reach it (JAX_COORDINATOR_ADDRESS)",
  )
  group.add_argument(
    "--num-processes",
    type=_positive,
    metavar="N",
    help="of all hosts; 1 runs on this one alone (JAX_NUM_PROCESSES)",
  )
  group.add_argument(
    "--process-id",
    type=_seed,
    metavar="I",
    help="which one this is, from 0 (JAX_PROCESS_ID)",
  )
  group.add_argument(
    "--initialization-timeout",
    type=_positive,
    default=60,
    metavar="SECONDS",
    help="until all processes must have come (default: 60)",
  )


def _add_generate(commands) -> None:
  command = _command(commands, "generate", "ask the last checkpoint")
  command.epilog = (
    "What is not said is as the config evaluates: sections evaluation and "
    "rollout."
  )
  command.add_argument("config", metavar="CONFIG", help=_CONFIG_HELP)
  for name, kind, metavar, text in _GENERATE_OPTIONS:
    command.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
  command.add_argument(
    "--stop",
    action="append",
    metavar="STRING",
    help="ends a completion that contains it; may be repeated",
  )
  command.add_argument(
    "--base", action="store_true", help="ask the base model, not a checkpoint"
  )
  command.add_argument(
    "--json", action="store_true", help="print one JSON object a line"
  )
  command.set_defaults(num_samples=1, seed=0)
  _add_common(
    command,
    _generate,
    "prompts, each a user's message; and settings, which begin with the name "
    "of a section: evaluation.temperature=0 is a setting, x=0 a prompt",
    metavar="PROMPT or key=value",
  )


def _is_setting(text: str) -> bool:
  """Whether a word is a setting rather than a prompt.

  A section that is almost right counts, so that nobody's setting is asked.
  """
  key, equals, _ = text.partition("=")
  if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
    return False
  known = configs.Config.model_fields
  section, dot, _ = key.partition(".")
  near = difflib.get_close_matches(section, known, n=1) if dot else []
  return section in known or bool(near)


def _positive(text: str) -> int:
  return _whole(text, 1, 2**31 - 1)


def _seed(text: str) -> int:
  return _whole(text, 0, 2**32 - 1)


def _whole(text: str, least: int, most: int) -> int:
  if not re.fullmatch(r"-?[0-9]{1,12}", text) or not least <= int(text) <= most:
    raise argparse.ArgumentTypeError(
      f"must be a whole number from {least} to {most}, got {text!r}"
    )
  return int(text)


_GENERATE_OPTIONS = (
  (
    "file",
    str,
    "FILE",
    "more prompts: .txt has one a line; .jsonl in each line an object with "
    "prompt, a string, or messages; - is the standard input, one a line",
  ),
  ("num-samples", _positive, "N", "completions of each prompt (default: 1)"),
  ("max-tokens", _positive, "T", "of a completion"),
  ("temperature", float, "X", "0 takes the most probable token"),
  ("top-k", _positive, "K", "sample among the K most probable tokens"),
  ("top-p", float, "P", "among the most probable that reach this mass"),
  (
    "min-p",
    float,
    "P",
    "among those at least so probable as this share of the most probable",
  ),
  ("seed", _seed, "S", "another one gives other samples (default: 0)"),
)


def _add_plan(commands) -> None:
  text = "what a run takes on hardware that need not be here"
  command = _command(commands, "plan", text)
  command.add_argument("config", metavar="CONFIG", help=_CONFIG_HELP)
  command.add_argument(
    "--topology",
    metavar="NAME",
    help="TPU chips as v5p:2x2x2 or v5p-16 (default: the devices at hand)",
  )
  command.add_argument(
    "--num-params-from",
    metavar="FILE",
    help="a config.json with the sizes of the network (default: the model's)",
  )
  command.add_argument(
    "--search",
    action="store_true",
    help="try meshes and micro-batches, and rank those that fit",
  )
  command.add_argument(
    "--tries",
    type=_positive,
    default=6,
    metavar="N",
    help="of a search: compile so many (default: 6)",
  )
  command.add_argument(
    "--json", action="store_true", help="print one JSON object"
  )
  _add_common(command, _plan, _OVERRIDES_HELP)


def _add_sandbox(commands) -> None:
  text = "run the programs of other machines, see sandbox.kind=remote"
  command = _command(commands, "sandbox", text)
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
    type=_positive,
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
  command.set_defaults(run=_sandbox, overrides=[])


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
  from distil_jax.training import run_checks, trainer
  from distil_jax.training.logging import run_folder

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  run_checks.check_same_command("train", config)
  summary = trainer.Learner(config).train()
  if summary:
    print(run_folder.comparison_table(summary["before"], summary["after"]))
    print(f"\n{config.run_directory}: metrics, samples, plot, checkpoints")
  return 0


def _evaluate(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  import jax

  from distil_jax.training import run_checks, trainer
  from distil_jax.training.logging import run_folder
  from distil_jax.training.logging.progress import Progress

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  run_checks.check_same_command("evaluate", config)
  judge = trainer.Learner(config)
  is_shown = jax.process_index() == 0
  progress = Progress(None, is_shown=is_shown)
  with jax.set_mesh(judge.mesh), progress:
    step, params = judge.trained_params()
    if step == 0:
      progress.message(f"no checkpoint in {config.run_directory}: base model")
    values = judge.evaluate(params, progress, f"evaluating step {step}")
  if is_shown:
    print(f"{config.run_directory}, step {step}")
    print(run_folder.evaluation_table(values))
  return 0


def _sandbox(arguments: argparse.Namespace) -> int:
  from distil_jax.envs import sandbox
  from distil_jax.envs.sandbox import serving

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

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


def _compare(arguments: argparse.Namespace) -> int:
  from distil_jax.analysis.comparison import command
  from distil_jax.analysis.comparison.settings import Comparison

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

  pass

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

  from distil_jax.training import run_checks, trainer

  if "=" in arguments.directory:
    raise configs.ConfigError(
      f"DIRECTORY comes before the settings, got {arguments.directory!r}"
    )
  command = f"export to {arguments.directory}"
  run_checks.check_same_command(command, config)
  owner = trainer.Learner(config)
  with jax.set_mesh(owner.mesh):
    step, params = owner.trained_params()
    dataclasses.replace(owner.policy, params=params).save(arguments.directory)
  if jax.process_index() == 0:
    print(f"step {step} of {config.run_directory} -> {arguments.directory}")
  return 0


def _generate(arguments: argparse.Namespace) -> int:
  words = arguments.overrides
  settings = [word for word in words if _is_setting(word)]
  config = configs.load(arguments.config, settings)
  import dataclasses

  import jax

  from distil_jax.cli import prompt_files
  from distil_jax.training import checkpoints
  from distil_jax.training.logging.progress import Progress
  from distil_jax.training.setup import steps as setup_step
  from distil_jax.types import StopReason

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  asked = prompt_files.conversations(
    [word for word in words if word not in settings], arguments.file
  )
  sampling = _sampling(arguments, config)
  mesh = setup_step.mesh(config)
  with jax.set_mesh(mesh), Progress(None) as progress:
    policy = _existing_policy(arguments, config, mesh)
    prompt_files.check_prompts(policy, asked, sampling["max_completion_length"])
    who = f"base model {config.model.directory}"
    if not arguments.base:
      step, params = checkpoints.last_params(
        config.run_directory / "checkpoints", policy.params
      )
      policy = dataclasses.replace(policy, params=params)
      run = config.run_directory
      who = (
        f"no checkpoint in {run}: {who}"
        if step is None
        else f"step {step} of {run}"
      )
    progress.message(who)
    report = progress.sampling(len(asked) * arguments.num_samples)
    with progress.stage("answering"):
      found = prompt_files.answers(
        policy,
        asked,
        jax.random.key(arguments.seed),
        report=report,
        **sampling,
      )
    num_cut_off = sum(a.stop_reason == StopReason.LENGTH for a in found)
    if num_cut_off:
      progress.message(
        f"{num_cut_off} of {len(found)} cut off after "
        f"{sampling['max_completion_length']} tokens; see --max-tokens"
      )
  write = prompt_files.to_json if arguments.json else prompt_files.to_text
  print(write(found))
  return 0


def _plan(arguments: argparse.Namespace) -> int:
  config = configs.load(arguments.config, arguments.overrides)
  from distil_jax.planning import hardware as planning_hardware
  from distil_jax.planning import mesh_search, planner, report
  from distil_jax.training.logging.progress import Progress

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  hardware = planning_hardware.hardware(arguments.topology)
  network = planner.network(config, arguments.num_params_from)
  with Progress(None) as progress:
    if arguments.search:
      found = mesh_search.search(
        config, hardware, network, progress, tries=arguments.tries
      )
      write = report.trials_to_json if arguments.json else report.trials_to_text
      print(write(found))
    else:
      planned = planner.Planner(config, hardware, network, progress).plan()
      print((report.to_json if arguments.json else report.to_text)(planned))
  return 0


def _sampling(
  arguments: argparse.Namespace, config: configs.Config
) -> dict[str, Any]:
  """How to sample: as the config evaluates, but for what is said."""
  from distil_jax.generation import engine

  names = ("temperature", "top_k", "top_p", "min_p")
  choice = {name: getattr(config.evaluation, name) for name in names}
  said = {name: getattr(arguments, name) for name in names}
  choice |= {name: value for name, value in said.items() if value is not None}
  engine.choice(**choice)  # refuses now, and not when the model is loaded
  if arguments.stop and not all(arguments.stop):
    raise configs.ConfigError("--stop needs a string that is not empty")
  return {
    **choice,
    "group_size": arguments.num_samples,
    "max_completion_length": arguments.max_tokens
    or config.evaluation.max_completion_length
    or config.rollout.max_completion_length,
    "stop": arguments.stop or config.rollout.stop,
    "num_slots": config.rollout.num_slots,
    "cache_dtype": config.rollout.cache_dtype,
  }


def _existing_policy(
  arguments: argparse.Namespace, config: configs.Config, mesh
):
  """The base model; never makes one, for which it would need the data."""
  from distil_jax.data import problems
  from distil_jax.generation.policy import resolve_directory
  from distil_jax.models import hf_weights
  from distil_jax.training.setup import steps as setup_step

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  pass
  pass

  directory = resolve_directory(config.model.directory)
  if config.model.create and not (directory / hf_weights.CONFIG).is_file():
    raise configs.ConfigError(
      f"there is no model in {directory} yet: model.create makes one when the "
      f"run begins; distil-jax train {arguments.config}"
    )
  none = problems.Problems(train=(), evaluation=(), num_skipped=0)
  return setup_step.policy(config, setup_step.environment(config), none, mesh)
