"""Builds the policy."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.model import CreateModelConfig
from distil_jax.config.schema import Config
from distil_jax.data import problems as data_problems
from distil_jax.data import tokenizer as tokenizers
from distil_jax.distributed import collectives
from distil_jax.envs.base import Environment
from distil_jax.generation.policy import Policy, load_policy
from distil_jax.models import decoder, hf_directory, lora
from distil_jax.models import decoder_config as models_config
from distil_jax.models.families import new_fields
from distil_jax.training.logging import progress
from distil_jax.training.setup import stored_adapters
from distil_jax.training.setup.meshes import check_attention
from distil_jax.training.setup.model_directory import (
  base_digest,
  model_directory,
)
from distil_jax.training.setup.records import record_of
from distil_jax.types import Problem

# A new tokenizer is trained on at most this many texts.
_NUM_TOKENIZER_TEXTS = 20_000


def build_policy(
  config: Config,
  environment: Environment,
  problems: data_problems.Problems,
  mesh: jax.sharding.Mesh,
) -> Policy:
  """Loads the policy, after creating it if `model.create` asks for it.

  Args:
    config: the run's settings.
    environment: makes the texts that a new tokenizer is trained on.
    problems: the run's problems, for the same texts.
    mesh: where the parameters go.

  Raises:
    ConfigError: the model has other sizes than `model.create`, fewer positions
      than a sequence has tokens, or fewer tokens than a top-k list is long; or
      `model.attention` does not run on the mesh.
  """
  directory = model_directory(config)
  if config.model.create and not (directory / hf_directory.CONFIG).is_file():
    _create(config, config.model.create, environment, problems.train)
  check_attention(config, mesh)
  is_shown = jax.process_index() == 0
  with progress.loading("loading weights", is_shown=is_shown) as report:
    loaded = load_policy(
      directory,
      config.model.param_dtype,
      compute_dtype=config.model.compute_dtype,
      remat=config.model.remat,
      attention=config.model.attention,
      mesh=mesh,
      chat_template_kwargs=config.model.chat_template_kwargs,
      report=report,
    )
  check_network(config, loaded.config)
  return _with_adapters(config, loaded, mesh)


def with_lora(
  config: Config, network: models_config.DecoderConfig
) -> models_config.DecoderConfig:
  """Returns the network with the adapters that the run asks for.

  Raises:
    ConfigError: the network has no such matrix.
  """
  section = config.model.lora
  if section is None:
    return network
  targets = tuple(lora.TARGETS[name] for name in section.targets)
  if network.num_experts and set(lora.MLP) & set(targets):
    raise ConfigError(
      f"model.lora.targets={list(section.targets)} has matrices of an MLP, but "
      f"a {network.family} has experts, which have no adapters; use "
      "[q_proj, k_proj, v_proj, o_proj]"
    )
  alpha = 2 * section.rank if section.alpha is None else section.alpha
  return dataclasses.replace(
    network, lora=models_config.LoRA(section.rank, alpha, targets)
  )


def _with_adapters(
  config: Config, policy: Policy, mesh: jax.sharding.Mesh
) -> Policy:
  """Returns the policy with the adapters that the run begins with, if any."""
  network = with_lora(config, policy.config)
  if network.lora is None:
    return policy
  base_digest(config)  # of the weights that have just been read
  graphdef, template = decoder.make(network)
  _, shapes = lora.split(template)
  shardings = decoder.shardings(mesh, shapes)
  if config.model.lora and config.model.lora.adapter is not None:
    adapters = stored_adapters.load_adapter(config, network, shapes, shardings)
  else:
    make = jax.jit(
      functools.partial(lora.init, shapes), out_shardings=shardings
    )
    adapters = make(jax.random.key(config.train.seed))
  return dataclasses.replace(
    policy,
    config=network,
    graphdef=graphdef,
    params=lora.join(policy.params, adapters),
  )


def check_network(config: Config, network: models_config.DecoderConfig) -> None:
  """Refuses a network that does not suit the run's settings.

  Raises:
    ConfigError: see `build_policy`.
  """
  create = config.model.create
  for name in type(create).model_fields if create else ():
    # A network does not show its seed, and the tokenizer of a new one may have
    # found fewer tokens than it was allowed.
    if name in ("seed", "vocab_size"):
      continue
    size = getattr(create, name)
    if getattr(network, name) != size:
      raise ConfigError(
        f"model.create.{name}={size}, but the model in "
        f"{config.model.directory}, made before, has {getattr(network, name)}; "
        "set another model.directory, or remove that one"
      )
  _check_positions(config, network)
  critique = getattr(config.environment, "critique", None)
  if critique and (
    critique.max_prompt_length + critique.max_length > network.max_positions
  ):
    raise ConfigError(
      f"critiques of {critique.max_length} tokens after prompts of "
      f"{critique.max_prompt_length} are longer than the "
      f"{network.max_positions} positions of the model in "
      f"{config.model.directory} (max_position_embeddings); lower "
      "environment.critique.max_prompt_length or max_length"
    )
  _check_lists(config, network.vocab_size)


def _check_positions(
  config: Config, network: models_config.DecoderConfig
) -> None:
  """Refuses sequences that are longer than the model's positions."""
  rollout = config.rollout
  evaluated = config.evaluation.max_completion_length or 0
  longest = max(rollout.max_completion_length, evaluated)
  sequences = [(rollout.max_prompt_length, longest)]
  # Another model that is the teacher reads the teacher's prompts itself, and no
  # teacher reads what is sampled to evaluate.
  if config.objective.needs_teacher and not config.teacher.is_other_model:
    sequences.append(
      (config.teacher.max_prompt_length, rollout.max_completion_length)
    )
  for prompt, completion in sequences:
    if prompt + completion > network.max_positions:
      raise ConfigError(
        f"prompts of {prompt} and completions of {completion} tokens are "
        f"longer than the {network.max_positions} positions of the model in "
        f"{config.model.directory} (max_position_embeddings); lower "
        "rollout.max_prompt_length, teacher.max_prompt_length or "
        "max_completion_length"
      )


def _check_lists(config: Config, vocab_size: int) -> None:
  """Refuses top-k lists that are longer than the vocabulary."""
  sizes = {"objective.top_k": getattr(config.objective, "top_k", None)}
  if config.objective.needs_teacher and config.teacher.access == "top_k":
    sizes["teacher.top_k"] = config.teacher.top_k
  for name, size in sizes.items():
    if size is not None and size > vocab_size:
      raise ConfigError(
        f"{name}={size} is more than the {vocab_size} tokens of the model in "
        f"{config.model.directory}; lower it"
      )


def new_network(
  create: CreateModelConfig, **others: Any
) -> models_config.DecoderConfig:
  """Returns sizes and traits of a new model.

  Args:
    create: The section.
    **others: Fields that it does not have; they win over the section's.
  """
  traits = new_fields(
    create.family,
    num_layers=create.num_layers,
    width=create.width,
    sliding_window=create.sliding_window,
  )
  return record_of(models_config.DecoderConfig, create, **{**traits, **others})


def _create(
  config: Config,
  create: CreateModelConfig,
  environment: Environment,
  problems: Mapping[str, Sequence[Problem]],
) -> None:
  """Creates a random model and trains its tokenizer on the training data."""
  if jax.process_index() == 0:
    texts = data_problems.tokenizer_texts(config, environment, problems)
    tokenizer = tokenizers.train(
      itertools.islice(texts, _NUM_TOKENIZER_TEXTS),
      vocab_size=create.vocab_size,
    )
    network = new_network(
      create,
      vocab_size=tokenizer.vocab_size,
      param_dtype=config.model.param_dtype,
    )
    graphdef, _ = decoder.make(network)
    params = decoder.init(network, jax.random.key(create.seed))
    made = Policy(network, graphdef, params, tokenizer)
    made.save(config.model.directory)
  # Behind this line every process finds the files.
  collectives.wait_for_all("the model is created")
