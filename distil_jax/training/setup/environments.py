"""Builds the environment of a run.

Environments are registered in `envs.ENVIRONMENTS`.
"""

import functools

from distil_jax import envs
from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.envs import base, mixture
from distil_jax.training.setup.sandboxes import build_sandbox


def build_environment(config: Config) -> base.Environment:
  """Builds the environment that a config names; of a mixture, all of them.

  Raises:
    ConfigError: This machine cannot run its programs in a sandbox.
    ValueError: The environment cannot be made.
  """
  make_sandbox = functools.partial(build_sandbox, config)
  built = {
    name: envs.build_environment(section.environment, make_sandbox)
    for name, section in config.data_sets.items()
  }
  if not config.mixture:
    return built[""]
  for name, environment in built.items():
    if base.max_turns(environment) > 1:
      raise ConfigError(
        f"mixture.{name}.environment speaks between the student's turns, which "
        "no environment of a mixture can; let it have one turn, or train on it "
        "alone"
      )
  return mixture.Mixture(built)
