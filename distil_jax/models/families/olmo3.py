"""OLMo 3: OLMo 2 with sliding windows in three of four layers.

A scaling of the rotary embedding applies to the layers without a window alone.
"""

from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import base

_PATTERN = (True, True, True, False)


def _read(settings: base.Settings) -> dict[str, Any]:
  return base.read_layer_types(settings, _PATTERN)


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    "sliding_window": config.sliding_window,
    "layer_types": base.layer_types(config),
  }


FAMILY = base.Family(
  model_type="olmo3",
  architecture="Olmo3ForCausalLM",
  tensors=base.OLMO_TENSORS,
  traits=base.OLMO_TRAITS,
  fixed=base.OLMO_FIXED,
  read=_read,
  write=_write,
  defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096},
  window_pattern=_PATTERN,
  has_local_rope=True,
)
