"""Builds environments and the sandbox."""

import functools
import json
from typing import Any

from distil_jax.config import Config, ConfigError
from distil_jax.envs import Environment, make_environment, sandbox


def build_environment(config: Config) -> Environment:
  return _environment(config, config.environment)


def _environment(config: Config, section: Any) -> Environment:
  """Of a section, which may be inside another one."""
  if section.kind == "own":
    return make_environment(section.function, **section.settings)
  settings = section.model_dump(exclude={"kind", "critique"})
  if section.kind == "code":
    settings["box"] = build_sandbox(config)
  if settings.get("of"):
    settings["of"] = _environment(config, section.of)
  return make_environment(section.kind, **settings)


def build_sandbox(config: Config) -> sandbox.Sandbox:
  """Where programs run; one for all that run some.

  Raises:
    ConfigError: this machine cannot keep them apart.
  """
  return _box(config.sandbox.model_dump_json())


@functools.cache
def _box(settings: str) -> sandbox.Sandbox:
  """From the section as text, by which it is known again."""
  try:
    return sandbox.make(**json.loads(settings))
  except sandbox.SandboxError as error:
    raise ConfigError(str(error)) from None
