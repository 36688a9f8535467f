"""Families of models: how each differs, and how its files are laid out."""

from collections.abc import Mapping
from typing import Any

from distil_jax.models.families import (
  gemma3,
  llama,
  mistral,
  olmo2,
  olmo3,
  qwen2,
  qwen3,
  qwen3_moe,
)
from distil_jax.models.families.base import Family

FAMILIES: Mapping[str, Family] = {
  module.FAMILY.model_type: module.FAMILY
  for module in (
    gemma3,
    llama,
    mistral,
    olmo2,
    olmo3,
    qwen2,
    qwen3,
    qwen3_moe,
  )
}


def new_fields(
  family: str, *, num_layers: int, width: int, sliding_window: int | None
) -> dict[str, Any]:
  """Returns the fields of `DecoderConfig` that a new model's family decides.

  Args:
    family: A key of `FAMILIES`.
    num_layers: Layers of the model.
    width: D.
    sliding_window: Window of the layers that have one in this family; None
      means that no layer has one.
  """
  found = FAMILIES[family]
  pattern = found.window_pattern
  fields = dict(found.traits)
  if sliding_window is not None and pattern:
    fields["sliding_layers"] = tuple(
      pattern[i % len(pattern)] for i in range(num_layers)
    )
  if found.has_local_rope and found.local_rope_theta is not None:
    fields["local_rope_theta"] = found.local_rope_theta
  if found.scales_embedding:
    fields["embedding_scale"] = width**0.5
  return fields
