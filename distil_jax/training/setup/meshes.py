"""Builds the meshes of devices for training and for sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.mesh import MeshConfig
from distil_jax.config.schema import Config
from distil_jax.models import sharding
from distil_jax.models.kernels import sequence_attention


def build_mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Builds the mesh for training; refuses batches that it cannot split evenly.

  Args:
    config: the run's settings.
    devices: None takes all devices.

  Raises:
    ConfigError: the mesh does not suit the devices, or a batch or a sequence
      cannot be split evenly.
  """
  try:
    mesh = _mesh(config.mesh, devices)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  except NotImplementedError as error:
    raise ConfigError(
      f"mesh does not suit how the chips are joined: {error}"
    ) from None
  # Sizes that are not set are those of the whole batch, which is checked.
  learned = {
    f"optimizer.{name}": size
    for name in ("mini_batch_size", "micro_batch_size")
    if (size := getattr(config.optimizer, name))
  }
  _check_batches(sampled_sizes(config) | learned, mesh, "mesh")
  count, length = mesh.shape["context"], config.rollout.max_completion_length
  if length % count:
    raise ConfigError(
      f"rollout.max_completion_length={length} is not a multiple of "
      f"mesh.context={count}, which splits completions into equal parts"
    )
  return mesh


def _mesh(section: MeshConfig, devices: Sequence[Any] | None):
  return sharding.make_mesh(
    data=section.data,
    fsdp=section.fsdp,
    context=section.context,
    tensor=section.tensor,
    devices=devices,
  )


def build_rollout_mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh | None:
  """Builds the mesh for sampling; None means that of training.

  Args:
    config: the run's settings.
    devices: None takes all devices.

  Raises:
    ConfigError: the mesh does not suit the devices or the batches.
  """
  if config.rollout.mesh is None:
    training_mesh = build_mesh(config, devices)
    # Decoding splits no sequence, so the devices along context take rows
    # instead.
    if training_mesh.shape["context"] == 1:
      return None
    _check_batches(
      sampled_sizes(config), training_mesh, "mesh", ("data", "fsdp", "context")
    )
    return sharding.without_context(training_mesh)
  if config.rollout.mesh.context != 1:
    raise ConfigError(
      f"rollout.mesh.context={config.rollout.mesh.context}: sampling makes one "
      "token after the other and splits no sequence; use rollout.mesh.fsdp"
    )
  try:
    mesh = _mesh(config.rollout.mesh, devices)
  except (ValueError, NotImplementedError) as error:
    raise ConfigError(f"rollout.mesh: {error}") from None
  _check_batches(sampled_sizes(config), mesh, "rollout.mesh")
  return mesh


def sampled_sizes(config: Config) -> dict[str, int]:
  """Returns the number of problems of each batch that is sampled."""
  sizes = {
    "rollout.num_problems": config.rollout.num_problems,
    "evaluation.num_problems": config.evaluation.num_problems,
  }
  if config.teacher.guard:
    sizes["teacher.guard.num_problems"] = config.teacher.guard.num_problems
  return sizes


def _check_batches(
  sizes: Mapping[str, int],
  mesh: jax.sharding.Mesh,
  section: str,
  axes: Sequence[str] = ("data", "fsdp"),
) -> None:
  """Refuses batches that do not split evenly over some axes of a mesh."""
  multiple = sharding.batch_size_multiple(mesh, axes)
  named = ", ".join(f"{section}.{axis}={mesh.shape[axis]}" for axis in axes)
  if multiple % jax.process_count():
    raise ConfigError(
      f"{named} split a batch into {multiple} parts, which is not a multiple "
      f"of the {jax.process_count()} processes, although each has problems of "
      f"its own; lower {section}.tensor or {section}.context"
    )
  for name, size in sizes.items():
    if size % multiple:
      raise ConfigError(
        f"{name}={size} is not a multiple of {multiple}, the devices along "
        f"{named}; choose a multiple"
      )


def check_attention(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Refuses an attention kernel that does not run on the mesh.

  Raises:
    ConfigError: `model.attention` needs other devices.
  """
  platform = mesh.devices.flat[0].platform
  try:
    sequence_attention.check_platform(config.model.attention, platform)
  except ValueError as error:
    raise ConfigError(f"model.{error}") from None
