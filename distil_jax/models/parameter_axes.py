"""Logical axes of the parameters of a decoder, by name."""

from collections.abc import Mapping

from distil_jax.models import sharding

PARAMETER_AXES: Mapping[str, sharding.LogicalAxes] = {
  "attention_norm": (None,),
  "query": ("embed", "heads", "head_size"),
  "key": ("embed", "kv_heads", "head_size"),
  "value": ("embed", "kv_heads", "head_size"),
  "query_bias": ("heads", "head_size"),
  "key_bias": ("kv_heads", "head_size"),
  "value_bias": ("kv_heads", "head_size"),
  "query_norm": (None,),
  "key_norm": (None,),
  "output": ("heads", "head_size", "embed"),
  "output_bias": (None,),
  "attention_post_norm": (None,),
  "mlp_norm": (None,),
  "gate": ("embed", "mlp"),
  "up": ("embed", "mlp"),
  "down": ("mlp", "embed"),
  "gate_bias": ("mlp",),
  "up_bias": ("mlp",),
  "down_bias": (None,),
  "router": ("embed", None),
  "expert_gate": ("experts", "embed", None),
  "expert_up": ("experts", "embed", None),
  "expert_down": ("experts", None, "embed"),
  "mlp_post_norm": (None,),
  "query_lora_a": ("embed", None),
  "query_lora_b": (None, "heads", "head_size"),
  "key_lora_a": ("embed", None),
  "key_lora_b": (None, "kv_heads", "head_size"),
  "value_lora_a": ("embed", None),
  "value_lora_b": (None, "kv_heads", "head_size"),
  "output_lora_a": ("heads", "head_size", None),
  "output_lora_b": (None, "embed"),
  "gate_lora_a": ("embed", None),
  "gate_lora_b": (None, "mlp"),
  "up_lora_a": ("embed", None),
  "up_lora_b": (None, "mlp"),
  "down_lora_a": ("mlp", None),
  "down_lora_b": (None, "embed"),
  "embedding": ("vocab", "embed"),
  "norm": (None,),
  "unembedding": ("embed", "vocab"),
}
# Axes of scales that act on all heads together, `[N, H]`.
_ALL_HEADS_AXES: Mapping[str, sharding.LogicalAxes] = {
  "query_norm": ("heads", "head_size"),
  "key_norm": ("kv_heads", "head_size"),
}


def parameter_axes(name: str, rank: int) -> sharding.LogicalAxes:
  """Returns the logical axes of a parameter of one layer, or outside them.

  Args:
    name: Name of the parameter.
    rank: Number of its axes, without that of the layers.
  """
  axes = PARAMETER_AXES[name]
  return axes if len(axes) == rank else _ALL_HEADS_AXES[name]
