"""The `serve` command."""

import argparse
import os
import pathlib

from distil_jax import config as configs
from distil_jax.cli.options import (
  OVERRIDES_HELP,
  add_command,
  add_common,
  add_step,
  positive,
  seed,
  whole,
)


def add_parser(commands) -> None:
  """Adds the command and its options."""
  text = "answer requests for completions and log-probabilities over HTTP"
  command = add_command(
    commands, "serve", text, "configs/calculator/quickstart.yaml --port 8000"
  )
  command.epilog = (
    "The server speaks OpenAI's API: GET /v1/models, /v1/models/NAME and "
    "/health, POST /v1/completions and /v1/chat/completions."
  )
  command.add_argument(
    "config",
    metavar="CONFIG_OR_MODEL",
    help="the settings of a run, a YAML file, whose checkpoint answers; "
    "or a model: a folder, OWNER/NAME of the Hub, or embedded:calculator",
  )
  for name, kind, default, metavar, help_text in _OPTIONS:
    command.add_argument(
      f"--{name}", type=kind, default=default, metavar=metavar, help=help_text
    )
  command.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="type of the weights of a model (default: float32); a run has its own",
  )
  source = command.add_mutually_exclusive_group()
  add_step(source)
  source.add_argument(
    "--base", action="store_true", help="serve a run's base model"
  )
  add_common(command, run, OVERRIDES_HELP)


def _port(text: str) -> int:
  return whole(text, 0, 65535)


_OPTIONS = (
  ("host", str, "127.0.0.1", "HOST", "address to bind (default: 127.0.0.1)"),
  ("port", _port, 8000, "PORT", "port; 0 takes a free one (default: 8000)"),
  (
    "model-name",
    str,
    None,
    "NAME",
    "name under which clients ask for it (default: CONFIG_OR_MODEL)",
  ),
  (
    "max-batch",
    positive,
    16,
    "N",
    "completions sampled, or sequences scored, at once (default: 16)",
  ),
  (
    "max-logprobs",
    positive,
    128,
    "K",
    "most probable tokens that a request may ask for (default: 128)",
  ),
  (
    "api-key-variable",
    str,
    None,
    "NAME",
    "environment variable with a key that requests must show",
  ),
  (
    "seed",
    seed,
    0,
    "S",
    "of requests without a seed of their own (default: 0)",
  ),
)


def run(arguments: argparse.Namespace) -> int:
  """Serves until it is interrupted; returns the exit status."""
  config = None
  if pathlib.Path(arguments.config).suffix in (".yaml", ".yml"):
    config = configs.load(arguments.config, arguments.overrides)
  api_key = _api_key(arguments.api_key_variable)
  _check(arguments, config)
  # These imports take seconds; a mistake in the arguments shows before them.
  from distil_jax.generation.serving.worker import Worker
  from distil_jax.training.logging.progress import Progress

  with Progress(None) as progress:
    policy, mesh, source = _load(arguments, config)
    progress.message(source)
    with Worker(
      policy,
      mesh=mesh,
      max_batch=arguments.max_batch,
      cache_dtype=config and config.rollout.cache_dtype,
      seed=arguments.seed,
    ) as worker:
      _serve(arguments, worker, api_key, progress.message)
  return 0


def _serve(arguments: argparse.Namespace, worker, api_key, message) -> None:
  """Answers requests until an interrupt, and then those under way."""
  import time

  from distil_jax.generation.serving.fields import Limits
  from distil_jax.generation.serving.http_server import Server
  from distil_jax.generation.serving.routes import Service

  tokenizer = worker.policy.tokenizer
  limits = Limits(
    model=arguments.model_name or arguments.config,
    vocab_size=tokenizer.vocab_size,
    max_length=worker.policy.config.max_positions,
    max_logprobs=min(arguments.max_logprobs, tokenizer.vocab_size),
  )
  service = Service(worker, tokenizer, limits, clock=time.time, api_key=api_key)
  with Server(arguments.host, arguments.port, service) as server:
    message(f"serving {limits.model} on {server.url}")
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      message("stopping: answering the requests under way")
      # Nobody accepts connections any more, and a client that makes one would
      # wait in vain; now it is refused.
      server.server_close()
      server.finish_requests()


def _load(arguments: argparse.Namespace, config: configs.Config | None):
  """Returns policy, mesh and a message that says where the policy is from."""
  import jax

  if config is None:
    from distil_jax.generation.policy import load_policy
    from distil_jax.training.setup import compilation_cache

    compilation_cache.enable(configs.CompilationConfig())
    policy = load_policy(arguments.config, arguments.dtype or "float32")
    return policy, None, f"model {arguments.config}"
  from distil_jax.cli import trained_policy
  from distil_jax.training.setup import meshes

  mesh = meshes.build_mesh(config)
  with jax.set_mesh(mesh):
    policy = trained_policy.base_policy(config, arguments.config, mesh)
    if arguments.base:
      return policy, mesh, f"base model {config.model.directory}"
    policy, source = trained_policy.saved_policy(config, policy, arguments.step)
  return policy, mesh, source


def _api_key(variable: str | None) -> str | None:
  """Returns the key that requests must show.

  Raises:
    ConfigError: The variable is not set, or empty.
  """
  if variable is None:
    return None
  key = os.environ.get(variable)
  if not key:
    raise configs.ConfigError(
      f"--api-key-variable={variable}: there is no such environment variable, "
      "or it is empty; set it, or leave the option out to let everybody in"
    )
  return key


def _check(
  arguments: argparse.Namespace, config: configs.Config | None
) -> None:
  """Refuses options that say nothing about what is served."""
  if config is None and arguments.overrides:
    raise configs.ConfigError(
      f"{arguments.overrides[0]} is a setting of a run, but {arguments.config} "
      "is a model; a run is a file that ends in .yaml"
    )
  for option in ("base", "step"):
    if config is None and getattr(arguments, option):
      raise configs.ConfigError(
        f"--{option} is for a run, but {arguments.config} is a model; leave it "
        "out"
      )
  if config is not None and arguments.dtype:
    raise configs.ConfigError(
      f"--dtype={arguments.dtype} is for a model; a run has "
      "model.param_dtype=bfloat16"
    )
