"""Config sections of mesh, sampling and rollouts."""

from typing import Annotated

import pydantic

from distil_jax.config.base import DType, Positive, SamplingConfig, Section


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


class RolloutConfig(SamplingConfig):
  """Settings of sampling by the student while it trains."""

  num_problems: Positive = 16
  """Problems in a step."""
  group_size: Positive = 8
  """Completions of each problem."""
  max_prompt_length: Positive = 128
  """Tokens of a prompt, at most."""
  max_completion_length: Positive = 128
  """Tokens of a completion, at most; then it is cut."""
  stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = ()
  """Strings that end a completion when its text contains one of them."""
  num_slots: Positive | None = None
  """Completions in flight at once, in training and evaluation; the others wait
  until one ends. null: all."""
  cache_dtype: DType | None = None
  """Dtype of keys and values; null: bfloat16 on accelerators, that of the
  activations on a CPU."""
  mesh: MeshConfig | None = None
  """The mesh for sampling, if another one than `mesh` is faster; null: the
  same."""
