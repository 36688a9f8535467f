"""Builds the environment of a run.

Environments are registered in `envs.ENVIRONMENTS`.
"""

import functools

from distil_jax import envs
from distil_jax.config.schema import Config
from distil_jax.envs import base
from distil_jax.training.setup.sandboxes import build_sandbox


def build_environment(config: Config) -> base.Environment:
  """Builds the environment that a config names.

  Raises:
    ConfigError: This machine cannot run its programs in a sandbox.
    ValueError: The environment cannot be made.
  """
  make_sandbox = functools.partial(build_sandbox, config)
  return envs.build_environment(config.environment, make_sandbox)
