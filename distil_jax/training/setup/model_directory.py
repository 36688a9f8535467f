"""Finds the folders of the run's models."""

import pathlib

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.generation.policy_directory import resolve_directory
from distil_jax.models.hf_hub import HubError


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


def teacher_directory(
  config: Config, *, only_config: bool = False
) -> pathlib.Path | None:
  """Returns the folder of a teacher that is another model.

  It is downloaded if it is of the Hub. With several processes all must call
  this.

  Args:
    config: the run's settings.
    only_config: download `config.json` alone.

  Returns:
    The folder; None if the student's own network is the teacher, or the
    objective has no teacher.

  Raises:
    ConfigError: directory and revision do not go together.
    HubError: the model cannot be downloaded.
  """
  section = config.teacher.model
  if section is None or not config.objective.needs_teacher:
    return None
  try:
    return resolve_directory(
      section.directory,
      section.revision,
      only_config=only_config,
      section="teacher.model",
    )
  except HubError as error:
    raise HubError(f"teacher.model: {error}") from error
  except ValueError as error:
    raise ConfigError(str(error)) from error
