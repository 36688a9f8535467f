"""Builds the meshes for training and for sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from distil_jax.config import Config, ConfigError
from distil_jax.models import sharding
from distil_jax.models.kernels import sequence_attention


def build_mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """The mesh; refuses batches that it cannot cut evenly.

  Args:
    config: of the run.
    devices: None: all there are.

  Raises:
    ConfigError: with both numbers and the cure.
  """
  try:
    made = sharding.make_mesh(**config.mesh.model_dump(), devices=devices)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  except NotImplementedError as error:
    raise ConfigError(
      f"mesh does not suit how the chips are joined: {error}"
    ) from None
  learned = {
    f"optimizer.{name}": size
    for name in ("mini_batch_size", "micro_batch_size")
    if (size := getattr(config.optimizer, name))
  }
  _check_batches(sampled_sizes(config) | learned, made, "mesh")
  count, length = made.shape["context"], config.rollout.max_completion_length
  if length % count:
    raise ConfigError(
      f"rollout.max_completion_length={length} is not a multiple of "
      f"mesh.context={count}, which cuts completions into equal parts"
    )
  return made


def build_rollout_mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh | None:
  """Where to sample; None: where to train.

  Args:
    config, devices: as for `mesh`.

  Raises:
    ConfigError: it does not fit the devices or the batches.
  """
  if config.rollout.mesh is None:
    trained = build_mesh(config, devices)
    if trained.shape["context"] == 1:
      return None
    _check_batches(
      sampled_sizes(config), trained, "mesh", ("data", "fsdp", "context")
    )
    return sharding.without_context(trained)
  if config.rollout.mesh.context != 1:
    raise ConfigError(
      f"rollout.mesh.context={config.rollout.mesh.context}: sampling makes one "
      "token after the other and cuts no sequence; use rollout.mesh.fsdp"
    )
  try:
    sizes = config.rollout.mesh.model_dump()
    made = sharding.make_mesh(**sizes, devices=devices)
  except (ValueError, NotImplementedError) as error:
    raise ConfigError(f"rollout.mesh: {error}") from None
  _check_batches(sampled_sizes(config), made, "rollout.mesh")
  return made


def sampled_sizes(config: Config) -> dict[str, int]:
  """Problems of each batch that is sampled."""
  sizes = {
    "rollout.num_problems": config.rollout.num_problems,
    "evaluation.num_problems": config.evaluation.num_problems,
  }
  if config.teacher.guard:
    sizes["teacher.guard.num_problems"] = config.teacher.guard.num_problems
  return sizes


def _check_batches(
  sizes: Mapping[str, int],
  made: jax.sharding.Mesh,
  section: str,
  axes: Sequence[str] = ("data", "fsdp"),
) -> None:
  multiple = sharding.batch_size_multiple(made, axes)
  named = ", ".join(f"{section}.{axis}={made.shape[axis]}" for axis in axes)
  if multiple % jax.process_count():
    raise ConfigError(
      f"{named} cut a batch into {multiple} parts, not a multiple of the "
      f"{jax.process_count()} processes, each of which has problems of its "
      f"own; use less of {section}.tensor or {section}.context"
    )
  for name, size in sizes.items():
    if size % multiple:
      raise ConfigError(
        f"{name}={size} is not a multiple of {multiple}, the devices along "
        f"{named}; choose one that is"
      )


def check_attention(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Refuses an attention that does not run on the mesh.

  Raises:
    ConfigError: see `policy`.
  """
  platform = mesh.devices.flat[0].platform
  try:
    sequence_attention.check_platform(config.model.attention, platform)
  except ValueError as error:
    raise ConfigError(f"model.{error}") from None
