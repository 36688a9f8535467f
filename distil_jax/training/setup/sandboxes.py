"""Builds the sandbox that programs run in."""

import functools
import json

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.envs import sandbox


def build_sandbox(config: Config) -> sandbox.Sandbox:
  """Builds the sandbox; equal sections share one.

  Raises:
    ConfigError: This machine cannot isolate programs.
  """
  return _build_sandbox(config.sandbox.model_dump_json())


@functools.cache
def _build_sandbox(settings: str) -> sandbox.Sandbox:
  # The cache needs a hashable argument, so the section comes as text.
  try:
    return sandbox.make(**json.loads(settings))
  except sandbox.SandboxError as error:
    raise ConfigError(str(error)) from None
