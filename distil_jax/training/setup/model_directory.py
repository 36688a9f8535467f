"""Finds the folder of the run's model."""

import pathlib

from distil_jax.config.schema import Config
from distil_jax.generation.policy_directory import resolve_directory


def model_directory(
  config: Config, *, only_config: bool = False
) -> pathlib.Path:
  """Returns the folder of the run's model, downloaded if it is of the Hub.

  With `model.create` the folder need not exist yet. With several processes all
  must call this.

  Args:
    config: the run's settings.
    only_config: download `config.json` alone.

  Raises:
    ValueError: `model.directory` and `model.revision` do not go together.
    HubError: the model cannot be downloaded.
  """
  if config.model.create:
    return pathlib.Path(config.model.directory)
  return resolve_directory(
    config.model.directory, config.model.revision, only_config=only_config
  )
