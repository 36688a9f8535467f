"""The `generate` command."""

import argparse
import difflib
import re

from distil_jax import config as configs
from distil_jax.cli.options import (
  CONFIG_HELP,
  add_command,
  add_common,
  add_step,
  positive,
  seed,
)


def add_parser(commands) -> None:
  """Adds the command and its options."""
  command = add_command(
    commands,
    "generate",
    "ask a checkpoint",
    "configs/calculator/quickstart.yaml 'Compute 3 + 4 * 2.'",
  )
  command.epilog = (
    "Settings that are not given are those of the config's sections "
    "evaluation and rollout."
  )
  command.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
  for name, kind, metavar, text in _GENERATE_OPTIONS:
    command.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
  command.add_argument(
    "--stop",
    action="append",
    metavar="STRING",
    help="ends a completion that contains it; may be repeated",
  )
  source = command.add_mutually_exclusive_group()
  add_step(source)
  source.add_argument(
    "--base", action="store_true", help="ask the base model, not a checkpoint"
  )
  command.add_argument(
    "--json", action="store_true", help="print one JSON object a line"
  )
  command.set_defaults(num_samples=1, seed=0)
  add_common(
    command,
    run,
    "prompts, each a user's message; and settings, which begin with the name "
    "of a section: evaluation.temperature=0 is a setting, x=0 a prompt",
    metavar="PROMPT or key=value",
  )


def _is_setting(text: str) -> bool:
  """Returns True if a word is a setting rather than a prompt.

  A misspelt section counts as one, so that a setting is not taken for a prompt.
  """
  key, equals, _ = text.partition("=")
  if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
    return False
  known = configs.Config.model_fields
  section, dot, _ = key.partition(".")
  near = difflib.get_close_matches(section, known, n=1) if dot else []
  return section in known or bool(near)


_GENERATE_OPTIONS = (
  (
    "file",
    str,
    "FILE",
    "file with more prompts: .txt with one a line; .jsonl with one object a "
    "line that has prompt (a string) or messages, and is judged if it has "
    "prompt and answer; - reads the standard input, one a line",
  ),
  ("num-samples", positive, "N", "completions of each prompt (default: 1)"),
  ("max-tokens", positive, "T", "most tokens of a completion"),
  ("temperature", float, "X", "0 takes the most probable token"),
  ("top-k", positive, "K", "sample among the K most probable tokens"),
  ("top-p", float, "P", "among the most probable that reach this mass"),
  (
    "min-p",
    float,
    "P",
    "among those whose probability is at least this share of the largest",
  ),
  ("seed", seed, "S", "another one gives other samples (default: 0)"),
)


def run(arguments: argparse.Namespace) -> int:
  """Prints completions of the prompts; returns the exit status."""
  words = arguments.overrides
  settings = [word for word in words if _is_setting(word)]
  config = configs.load(arguments.config, settings)
  # These imports take seconds; a mistake in the config shows before them.
  import jax

  from distil_jax.cli import prompt_files, trained_policy
  from distil_jax.generation.engine_config import EngineConfig
  from distil_jax.training.logging.progress import Progress
  from distil_jax.training.setup import environments, meshes, workers
  from distil_jax.types import StopReason

  environment = None
  if not config.mixture:  # nobody knows of which data set a row would be
    environment = environments.build_environment(config)
  prompts = prompt_files.prompts(
    [word for word in words if word not in settings],
    arguments.file,
    environment,
  )
  asked = [prompt.messages for prompt in prompts]
  # Made first: a bad setting is refused before the model is loaded.
  sampling = _sampling_params(arguments, config)
  mesh = meshes.build_mesh(config)
  with jax.set_mesh(mesh), Progress(None) as progress:
    policy = trained_policy.base_policy(config, arguments.config, mesh)
    prompt_files.check_prompts(policy, asked, sampling.max_tokens)
    if not arguments.base:
      policy, source = trained_policy.saved_policy(
        config, policy, arguments.step
      )
    else:
      source = f"base model {config.model.directory}"
    progress.message(source)
    report = progress.sampling(len(asked) * arguments.num_samples)
    with progress.stage("answering"):
      found = prompt_files.answers(
        policy,
        asked,
        jax.random.key(arguments.seed),
        sampling,
        group_size=arguments.num_samples,
        engine_config=EngineConfig(
          num_slots=config.rollout.num_slots,
          cache_dtype=config.rollout.cache_dtype,
        ),
        report=report,
      )
    if any(prompt.problem for prompt in prompts):
      assert environment is not None
      judges = workers.build_judge_pool(config, environment)
      with progress.stage("judging"):
        found = prompt_files.judged(found, prompts, judges)
    num_cut_off = sum(a.stop_reason == StopReason.LENGTH for a in found)
    if num_cut_off:
      progress.message(
        f"{num_cut_off} of {len(found)} cut off after "
        f"{sampling.max_tokens} tokens; see --max-tokens"
      )
  write = prompt_files.to_json if arguments.json else prompt_files.to_text
  print(write(found))
  return 0


def _sampling_params(arguments: argparse.Namespace, config: configs.Config):
  """Returns `SamplingParams`: the config's evaluation, with the options."""
  from distil_jax.generation.sampling_params import SamplingParams

  if arguments.stop and not all(arguments.stop):
    raise configs.ConfigError("--stop needs a string that is not empty")
  names = ("temperature", "top_k", "top_p", "min_p")
  settings = {name: getattr(config.evaluation, name) for name in names}
  given = {name: getattr(arguments, name) for name in names}
  settings |= {name: x for name, x in given.items() if x is not None}
  return SamplingParams(
    **settings,
    stop=arguments.stop or config.rollout.stop,
    max_tokens=arguments.max_tokens
    or config.evaluation.max_completion_length
    or config.rollout.max_completion_length,
  )
