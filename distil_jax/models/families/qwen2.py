"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import base


def _read(settings: base.Settings) -> dict[str, Any]:
  if not settings.get("use_sliding_window", False):
    return {}
  # The first layers read everything, whatever the window is.
  first = settings.get("max_window_layers", 28)
  num_layers = settings["num_hidden_layers"]
  return base.read_layer_types(
    settings, tuple(i >= first for i in range(num_layers))
  )


def _write(config: DecoderConfig) -> dict[str, Any]:
  if config.sliding_window is None:
    return {"use_sliding_window": False}
  return {
    "use_sliding_window": True,
    "sliding_window": config.sliding_window,
    "max_window_layers": config.sliding_layers.index(True),
    "layer_types": base.layer_types(config),
  }


FAMILY = base.Family(
  model_type="qwen2",
  architecture="Qwen2ForCausalLM",
  tensors={
    **base.ENDS,
    **base.ATTENTION,
    **base.ATTENTION_BIASES,
    **base.MLP,
    **base.NORMS_BEFORE,
  },
  traits={"query_key_norm": "none", "query_key_value_bias": True},
  fixed={"hidden_act": "silu"},
  read=_read,
  write=_write,
  # What transformers assumes.
  defaults={"sliding_window": 4096},
)
