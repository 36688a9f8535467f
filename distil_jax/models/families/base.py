"""Describes a family of models, and holds what most families have in common."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.hf_layout import Layout, Path

Settings = Mapping[str, Any]
Tensors = Mapping[Path, Layout]

_LAYER = "model.layers.{}."


def no_fields(settings: Settings) -> dict[str, Any]:
  """Returns no fields of `DecoderConfig`."""
  return {}


def no_settings(config: DecoderConfig) -> dict[str, Any]:
  """Returns no settings of `config.json`."""
  return {}


@dataclasses.dataclass(frozen=True)
class Family:
  """Describes how a family's models differ from each other's and are stored.

  Attributes:
    model_type: Names the family in `config.json`.
    architecture: Names it to transformers.
    tensors: Name and layout of every parameter that its models may have.
    traits: Fields of `DecoderConfig` that all its models have in common.
    fixed: Settings of `config.json` that would change the network, with the
      only value of each that is implemented.
    read: Returns the fields of `DecoderConfig` that depend on the settings,
      other than sizes and rope.
    write: Returns the settings that `read` understands.
    defaults: Settings that published files leave out.
    window_pattern: True for each layer with a sliding window, repeated over the
      layers of a new model; empty if the family has none.
    has_local_rope: True if layers with a window have wavelengths of their own,
      which are never scaled.
    local_rope_theta: Their base in published files that do not name it; None
      means that of the other layers.
    scales_embedding: True if embeddings are multiplied by D^0.5.
  """

  model_type: str
  architecture: str
  tensors: Tensors
  traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Settings = dataclasses.field(default_factory=dict)
  read: Callable[[Settings], dict[str, Any]] = no_fields
  write: Callable[[DecoderConfig], dict[str, Any]] = no_settings
  defaults: Settings = dataclasses.field(default_factory=dict)
  window_pattern: tuple[bool, ...] = ()
  has_local_rope: bool = False
  scales_embedding: bool = False
  local_rope_theta: float | None = None


ATTENTION: Tensors = {
  ("layers", "query"): Layout(_LAYER + "self_attn.q_proj.weight", 1),
  ("layers", "key"): Layout(_LAYER + "self_attn.k_proj.weight", 1),
  ("layers", "value"): Layout(_LAYER + "self_attn.v_proj.weight", 1),
  ("layers", "output"): Layout(_LAYER + "self_attn.o_proj.weight", 2),
}
ATTENTION_BIASES: Tensors = {
  ("layers", "query_bias"): Layout(
    _LAYER + "self_attn.q_proj.bias", is_flat=True
  ),
  ("layers", "key_bias"): Layout(
    _LAYER + "self_attn.k_proj.bias", is_flat=True
  ),
  ("layers", "value_bias"): Layout(
    _LAYER + "self_attn.v_proj.bias", is_flat=True
  ),
}
OUTPUT_BIAS: Tensors = {
  ("layers", "output_bias"): Layout(_LAYER + "self_attn.o_proj.bias"),
}
# A scale for each head's channels, or for those of all heads.
QUERY_KEY_NORMS: Tensors = {
  ("layers", "query_norm"): Layout(
    _LAYER + "self_attn.q_norm.weight", is_flat=True
  ),
  ("layers", "key_norm"): Layout(
    _LAYER + "self_attn.k_norm.weight", is_flat=True
  ),
}
MLP: Tensors = {
  ("layers", "gate"): Layout(_LAYER + "mlp.gate_proj.weight", 1),
  ("layers", "up"): Layout(_LAYER + "mlp.up_proj.weight", 1),
  ("layers", "down"): Layout(_LAYER + "mlp.down_proj.weight", 1),
}
MLP_BIASES: Tensors = {
  ("layers", "gate_bias"): Layout(_LAYER + "mlp.gate_proj.bias"),
  ("layers", "up_bias"): Layout(_LAYER + "mlp.up_proj.bias"),
  ("layers", "down_bias"): Layout(_LAYER + "mlp.down_proj.bias"),
}
EXPERTS: Tensors = {
  ("layers", "router"): Layout(_LAYER + "mlp.gate.weight", 1),
  ("layers", "expert_gate"): Layout(
    _LAYER + "mlp.experts.{}.gate_proj.weight", 1
  ),
  ("layers", "expert_up"): Layout(_LAYER + "mlp.experts.{}.up_proj.weight", 1),
  ("layers", "expert_down"): Layout(
    _LAYER + "mlp.experts.{}.down_proj.weight", 1
  ),
}
NORMS_BEFORE: Tensors = {
  ("layers", "attention_norm"): Layout(_LAYER + "input_layernorm.weight"),
  ("layers", "mlp_norm"): Layout(_LAYER + "post_attention_layernorm.weight"),
}
NORMS_AFTER: Tensors = {
  ("layers", "attention_post_norm"): Layout(
    _LAYER + "post_attention_layernorm.weight"
  ),
  ("layers", "mlp_post_norm"): Layout(
    _LAYER + "post_feedforward_layernorm.weight"
  ),
}
NORMS_AROUND: Tensors = {
  ("layers", "attention_norm"): Layout(_LAYER + "input_layernorm.weight"),
  ("layers", "mlp_norm"): Layout(_LAYER + "pre_feedforward_layernorm.weight"),
  **NORMS_AFTER,
}
EMBEDDING = ("embedding",)
UNEMBEDDING = ("unembedding",)
ENDS: Tensors = {
  EMBEDDING: Layout("model.embed_tokens.weight"),
  ("norm",): Layout("model.norm.weight"),
  UNEMBEDDING: Layout("lm_head.weight", 1),
}
OLMO_TENSORS: Tensors = {
  **ENDS,
  **ATTENTION,
  **QUERY_KEY_NORMS,
  **MLP,
  **NORMS_AFTER,
}
OLMO_TRAITS = {"query_key_norm": "all_heads", "norm_placement": "after"}
OLMO_FIXED: Settings = {"attention_bias": False, "hidden_act": "silu"}
QWEN3_TRAITS = {"query_key_norm": "head"}
QWEN3_FIXED: Settings = {
  "attention_bias": False,
  "hidden_act": "silu",
  "use_sliding_window": False,
}


def read_layer_types(
  settings: Settings, pattern: tuple[bool, ...]
) -> dict[str, Any]:
  """Returns the fields of sliding windows.

  Args:
    settings: `sliding_window` and, optionally, `layer_types`.
    pattern: Repeated over the layers if there are no `layer_types`.

  Raises:
    ValueError: A type of layer is not implemented, or the window is no size.
  """
  num_layers = settings["num_hidden_layers"]
  types = settings.get("layer_types")
  if types is None:
    kinds = tuple(pattern[i % len(pattern)] for i in range(num_layers))
  else:
    kinds = _window_kinds(types, num_layers)
  window = settings.get("sliding_window")
  if window is None or not any(kinds):
    return {}
  if type(window) is not int or window < 1:
    raise ValueError(
      f"sliding_window must be a positive integer, got {window!r}"
    )
  return {"sliding_window": window, "sliding_layers": kinds}


def _window_kinds(types: Any, num_layers: int) -> tuple[bool, ...]:
  known = ("full_attention", "sliding_attention")
  if not isinstance(types, list) or len(types) != num_layers:
    raise ValueError(
      f"layer_types must name {num_layers} layers (num_hidden_layers), got "
      f"{types!r}"
    )
  for kind in types:
    if kind not in known:
      raise ValueError(
        f"layer_types has {kind!r}, which is not supported; known: "
        f"{', '.join(known)}"
      )
  return tuple(kind == known[1] for kind in types)


def layer_types(config: DecoderConfig) -> list[str]:
  """Returns the `layer_types` of a network."""
  return [
    "full_attention" if config.window(i) is None else "sliding_attention"
    for i in range(config.num_layers)
  ]
