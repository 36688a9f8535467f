"""Mistral: as Llama, with a sliding window in every layer or in none."""

from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import base


def _read(settings: base.Settings) -> dict[str, Any]:
  # transformers reads no `layer_types` here.
  return base.read_layer_types({**settings, "layer_types": None}, (True,))


def _write(config: DecoderConfig) -> dict[str, Any]:
  # Written even if null: transformers would assume a window of 4096.
  return {"sliding_window": config.sliding_window}


FAMILY = base.Family(
  model_type="mistral",
  architecture="MistralForCausalLM",
  tensors={
    **base.ENDS,
    **base.ATTENTION,
    **base.MLP,
    **base.NORMS_BEFORE,
  },
  traits={"query_key_norm": "none"},
  fixed={"hidden_act": "silu"},
  read=_read,
  write=_write,
  defaults={"sliding_window": 4096, "rope_theta": 10000.0},
  window_pattern=(True,),
)
