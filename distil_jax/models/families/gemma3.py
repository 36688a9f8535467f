"""Gemma 3, text: norms on both sides, a scaled embedding, two ropes.

Five of six layers have a sliding window, and wavelengths of their own.
"""

from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import base

_PATTERN = (True,) * 5 + (False,)


def _read(settings: base.Settings) -> dict[str, Any]:
  period = settings.get("sliding_window_pattern", len(_PATTERN))
  if type(period) is not int or period < 1:
    raise ValueError(
      f"sliding_window_pattern must be a positive integer, got {period!r}"
    )
  pattern = (True,) * (period - 1) + (False,)
  scalar = settings["query_pre_attn_scalar"]
  return {
    **base.read_layer_types(settings, pattern),
    # None means the same, and is what other families have.
    "attention_scale": None if scalar == settings["head_dim"] else scalar**-0.5,
    "embedding_scale": settings["hidden_size"] ** 0.5,
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  # A number such as 256 comes back as itself, not as 256.00000000000006.
  scalar = round(config.logit_scale**-2, 6)
  return {
    "sliding_window": config.sliding_window,
    "layer_types": base.layer_types(config),
    "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
  }


FAMILY = base.Family(
  model_type="gemma3_text",
  architecture="Gemma3ForCausalLM",
  tensors={
    **base.ENDS,
    **base.ATTENTION,
    **base.QUERY_KEY_NORMS,
    **base.MLP,
    **base.NORMS_AROUND,
  },
  traits={
    "query_key_norm": "head",
    "norm_placement": "both",
    "norm_adds_one": True,
    "activation": "gelu_tanh",
  },
  fixed={
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
  },
  read=_read,
  write=_write,
  # Values that transformers assumes.
  defaults={
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "head_dim": 256,
    "rope_theta": 1e6,
  },
  window_pattern=_PATTERN,
  has_local_rope=True,
  scales_embedding=True,
  local_rope_theta=1e4,
)
