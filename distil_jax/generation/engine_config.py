"""Settings of the engine."""

import dataclasses

import jax

from distil_jax.models import decoder_config


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Holds how an engine uses the devices.

  None of these settings changes what is sampled, except for the rounding of
  `cache_dtype`.

  Attributes:
    num_slots: Samples in flight at once; None means all that are requested.
    cache_dtype: Type of keys and values; None means bfloat16 on accelerators
      and the type of the activations on a CPU.
    mesh: Mesh on which to sample. Parameters on another mesh of the same
      devices are moved to it at each call. None means the mesh in use.

  Raises:
    ValueError: Names the setting, its value and what it may be.
  """

  num_slots: int | None = None
  cache_dtype: str | None = None
  mesh: jax.sharding.Mesh | None = None

  def __post_init__(self):
    if self.num_slots is not None and self.num_slots < 1:
      raise ValueError(f"num_slots={self.num_slots} must be positive")
    if self.cache_dtype is not None:
      name = decoder_config.float_name("cache_dtype", self.cache_dtype)
      object.__setattr__(self, "cache_dtype", name)
