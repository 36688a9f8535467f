"""Config section of the device mesh."""

import pydantic

from distil_jax.config.base import Section


class MeshConfig(Section):
  """Devices along each axis; one axis may be -1, which takes the rest."""

  data: int = 1
  """Copies of the parameters; each copy has its part of a batch."""
  fsdp: int = -1
  """Shards parameters, optimizer and teacher, and batches too."""
  context: int = 1
  """Shards the same, and also sequences along time when they are scored and
  learned from, for sequences too long for one device. Sampling treats it as
  more `fsdp`."""
  tensor: int = 1
  """Shards heads, MLP and vocabulary."""

  @pydantic.model_validator(mode="after")
  def _sizes(self):
    sizes = self.model_dump()
    for name, size in sizes.items():
      if size < 1 and size != -1:
        raise ValueError(f"{name}={size} must be positive, or -1 for the rest")
    if sum(size == -1 for size in sizes.values()) > 1:
      raise ValueError(f"only one axis may be -1, got {sizes}")
    return self
