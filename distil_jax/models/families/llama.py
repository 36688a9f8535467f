"""Llama 2 and 3, and models of their form such as SmolLM2."""

from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import base


def _read(settings: base.Settings) -> dict[str, Any]:
  has_bias = bool(settings.get("attention_bias", False))
  return {
    "query_key_value_bias": has_bias,
    "output_bias": has_bias,
    "mlp_bias": bool(settings.get("mlp_bias", False)),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}


FAMILY = base.Family(
  model_type="llama",
  architecture="LlamaForCausalLM",
  tensors={
    **base.ENDS,
    **base.ATTENTION,
    **base.ATTENTION_BIASES,
    **base.OUTPUT_BIAS,
    **base.MLP,
    **base.MLP_BIASES,
    **base.NORMS_BEFORE,
  },
  traits={"query_key_norm": "none"},
  fixed={"hidden_act": "silu"},
  read=_read,
  write=_write,
  # Files of Llama 2 do not name the base.
  defaults={"rope_theta": 10000.0},
)
