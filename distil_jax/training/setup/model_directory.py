"""Finds the folders of the run's models."""

import functools
import pathlib

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.config.teacher import TeacherModelConfig
from distil_jax.generation.policy_directory import resolve_directory
from distil_jax.models import hf_directory
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


# Taken once in a process, when the weights are read: a later look might find
# another model.
_digest_of = functools.cache(hf_directory.digest)


def base_digest(config: Config) -> str | None:
  """Returns a hash of the frozen weights; None if the run has no adapters.

  With several processes all must call this.
  """
  if config.model.lora is None:
    return None
  return _digest_of(model_directory(config))


def check_same_base(config: Config, saved: str | None, where: str) -> None:
  """Refuses to join adapters with other weights than they were trained with.

  Args:
    config: the run's settings.
    saved: what the checkpoint says of the weights, from `base_digest`.
    where: names the checkpoint.

  Raises:
    ConfigError: `model.directory` holds other weights than before.
  """
  now = base_digest(config)
  if saved is None or now is None or saved == now:
    return
  raise ConfigError(
    f"{where} has adapters of a model with digest {saved}, but "
    f"model.directory={config.model.directory} now has {now}: its config or "
    "weights have changed; restore them (of the Hub, set model.revision to a "
    "commit), or set another train.run_directory"
  )


def teacher_directories(
  config: Config, *, only_config: bool = False
) -> dict[str, pathlib.Path]:
  """Returns the folders of teachers that are other models.

  They are downloaded if they are of the Hub. With several processes all must
  call this.

  Args:
    config: the run's settings.
    only_config: download `config.json` alone.

  Returns:
    Folders by the keys of `TeacherConfig.other_models`; empty if the student's
    own network is the only teacher, or the objective has no teacher.

  Raises:
    ConfigError: directory and revision do not go together.
    HubError: the model cannot be downloaded.
  """
  if not config.objective.needs_teacher:
    return {}
  return {
    key: _teacher_directory(key, section, only_config)
    for key, section in config.teacher.other_models.items()
  }


def _teacher_directory(
  key: str, section: TeacherModelConfig, only_config: bool
) -> pathlib.Path:
  try:
    return resolve_directory(
      section.directory,
      section.revision,
      only_config=only_config,
      section=key,
    )
  except HubError as error:
    raise HubError(f"{key}: {error}") from error
  except ValueError as error:
    raise ConfigError(str(error)) from error
