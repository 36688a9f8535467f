"""Loads the policy of a run, for commands that only ask it."""

import dataclasses

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import problems
from distil_jax.generation.policy import Policy
from distil_jax.models import hf_directory
from distil_jax.training import checkpoints
from distil_jax.training.setup import (
  compilation_cache,
  environments,
  policies,
  steps,
)
from distil_jax.training.setup.model_directory import model_directory


def base_policy(config: Config, path: str, mesh: jax.sharding.Mesh) -> Policy:
  """Loads the base model; never creates one, which would need the data.

  Args:
    config: The run.
    path: Its file, for the error.
    mesh: Where the parameters go.

  Raises:
    ConfigError: There is no model yet.
  """
  compilation_cache.enable(config.compilation)
  directory = model_directory(config)
  if config.model.create and not (directory / hf_directory.CONFIG).is_file():
    raise ConfigError(
      f"there is no model in {directory} yet: model.create makes one when the "
      f"run begins; distil-jax train {path}"
    )
  # The model exists, so no text is needed to train a tokenizer.
  none = problems.Problems(train={}, evaluation={}, num_skipped=0)
  return policies.build_policy(
    config, environments.build_environment(config), none, mesh
  )


def saved_policy(
  config: Config, policy: Policy, step: checkpoints.Step | None = None
) -> tuple[Policy, str]:
  """Returns the policy of a checkpoint of the run, and where it is from.

  Args:
    config: The run.
    policy: Its base model, which is returned if there is no checkpoint.
    step: The checkpoint's step; None takes the last.

  Raises:
    CheckpointError: No checkpoint can be read, or there is none of that step.
  """
  step, params = steps.trained_params(config, policy.params, step)
  policy = dataclasses.replace(policy, params=params)
  run = config.run_directory
  if step is None:
    return (
      policy,
      f"no checkpoint in {run}: base model {config.model.directory}",
    )
  return policy, f"step {step} of {run}"
