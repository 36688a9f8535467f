"""Reads and writes Hugging Face's `config.json`."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from distil_jax.models import hf_rope
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import FAMILIES, Family

_SIZES = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "intermediate_size",
  "max_position_embeddings",
  "num_experts",
  "num_experts_per_tok",
  "moe_intermediate_size",
)
_COUNTS = ("max_window_layers",)
_NUMBERS = (
  "rms_norm_eps",
  "rope_theta",
  "rope_local_base_freq",
  "query_pre_attn_scalar",
)
_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta")
_BOOLEANS = (
  "tie_word_embeddings",
  "attention_bias",
  "mlp_bias",
  "norm_topk_prob",
  "use_sliding_window",
)


def family_of(settings: Mapping[str, Any]) -> Family:
  """Returns the family that a `config.json` names.

  Raises:
    ValueError: It is not supported; names those that are.
  """
  kind = str(settings.get("model_type"))
  if kind not in FAMILIES:
    known = ", ".join(map(repr, FAMILIES))
    hint = ""
    if kind == "gemma3":
      hint = (
        "; 'gemma3' reads images too: take a text model such as gemma-3-1b-it"
      )
    raise ValueError(
      f"model_type={kind!r} is not supported; known: {known}{hint}"
    )
  return FAMILIES[kind]


def from_hugging_face(
  settings: Mapping[str, Any], **computing: Any
) -> DecoderConfig:
  """Reads a `config.json`.

  Args:
    settings: The parsed file.
    **computing: `param_dtype`, `compute_dtype`, `remat`, `attention`.

  Raises:
    ValueError: The architecture or a variant of it is not implemented.
  """
  family = family_of(settings)
  for key, value in family.fixed.items():
    # An absent list and an empty one mean the same.
    if (settings.get(key, value) or None) != (value or None):
      raise ValueError(
        f"{key}={settings[key]!r} is not supported; only {value!r} is"
      )
  _check_variants(settings)
  for key, value in settings.items():
    _check(key, value)
  settings = {**family.defaults, **settings}
  try:
    num_heads = settings["num_attention_heads"]
    fields = {
      "vocab_size": settings["vocab_size"],
      "width": settings["hidden_size"],
      "num_layers": settings["num_hidden_layers"],
      "num_heads": num_heads,
      "num_kv_heads": settings.get("num_key_value_heads") or num_heads,
      "head_size": settings.get("head_dim")
      or settings["hidden_size"] // num_heads,
      "mlp_size": settings["intermediate_size"],
      "tie_embeddings": settings.get("tie_word_embeddings", False),
      "max_positions": settings.get("max_position_embeddings", 32768),
      "norm_epsilon": settings.get("rms_norm_eps", 1e-6),
      **family.traits,
      **family.read(settings),
      **hf_rope.read(
        settings,
        has_local_rope=family.has_local_rope,
        local_rope_theta=family.local_rope_theta,
      ),
    }
  except KeyError as error:
    raise ValueError(f"config.json lacks {error.args[0]!r}") from None
  config = DecoderConfig(family=family.model_type, **fields, **computing)
  _check_together(config)
  return config


def _check_variants(settings: Mapping[str, Any]) -> None:
  """Refuses what no family implements, but files of all of them may have."""
  for key in ("quantization_config", "compression_config"):
    if settings.get(key) is not None:
      raise ValueError(
        f"{key}={settings[key]!r:.80}: quantized weights are not supported; "
        "take the model that they were made from"
      )
  rotated = settings.get("partial_rotary_factor")
  if rotated not in (None, 1):
    raise ValueError(
      f"partial_rotary_factor={rotated!r} is not supported; only 1 is"
    )


def _check(key: str, value: Any) -> None:
  """Refuses values of the wrong type; absent and optional ones pass."""
  if value is None and key in _OPTIONAL:
    return
  if key in _SIZES:
    is_right = type(value) is int and 0 < value < 2**31
    expected = "a positive integer of 31 bits"
  elif key in _COUNTS:
    is_right = type(value) is int and value >= 0
    expected = "a whole number"
  elif key in _NUMBERS:
    is_right = _is_number(value) and value > 0
    expected = "a positive number"
  elif key in _BOOLEANS:
    is_right = isinstance(value, bool)
    expected = "true or false"
  elif key in ("rope_parameters", "rope_scaling"):
    is_right = value is None or isinstance(value, Mapping)
    expected = "a JSON object"
  else:
    return
  if not is_right:
    raise ValueError(f"{key} must be {expected}, got {value!r}")


def _is_number(value: Any) -> TypeGuard[float]:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _check_together(config: DecoderConfig) -> None:
  """Refuses sizes that contradict each other."""
  if config.head_size % 2:
    raise ValueError(
      f"head_dim={config.head_size} is odd, but the rotary embedding turns "
      "pairs of channels"
    )
  if config.num_heads % config.num_kv_heads:
    raise ValueError(
      f"num_attention_heads={config.num_heads} is not a multiple of "
      f"num_key_value_heads={config.num_kv_heads}"
    )
  if config.num_experts_per_token > config.num_experts:
    raise ValueError(
      f"num_experts_per_tok={config.num_experts_per_token} is more than "
      f"num_experts={config.num_experts}"
    )


def to_hugging_face(
  config: DecoderConfig, *, eos_ids: tuple[int, ...], pad_id: int
) -> dict[str, Any]:
  """Returns the `config.json` with which transformers loads the network."""
  family = FAMILIES[config.family]
  return {
    "architectures": [family.architecture],
    "model_type": family.model_type,
    **family.fixed,
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_size,
    "intermediate_size": config.mlp_size,
    "tie_word_embeddings": config.tie_embeddings,
    **hf_rope.write(config),
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.norm_epsilon,
    **family.write(config),
    "eos_token_id": list(eos_ids),
    "pad_token_id": pad_id,
    "dtype": config.param_dtype,
  }
