"""Sizes of a Qwen3 decoder; reads and writes Hugging Face's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

# Settings of the format that would change the network, with the only value of
# each that is implemented.
_FIXED = {
  "attention_bias": False,
  "hidden_act": "silu",
  "use_sliding_window": False,
}
_SIZES = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "intermediate_size",
  "max_position_embeddings",
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Holds the sizes of the network and how it computes."""

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  mlp_size: int
  tie_embeddings: bool
  rope_theta: float
  max_positions: int = 32768
  norm_epsilon: float = 1e-6
  param_dtype: str = "float32"
  compute_dtype: str = "float32"
  remat: Literal["none", "layer"] = "layer"
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"


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
  kind = settings.get("model_type")
  if kind != "qwen3":
    raise ValueError(f"model_type={kind!r} is not supported; known: 'qwen3'")
  for key, value in _FIXED.items():
    if settings.get(key, value) != value:
      raise ValueError(
        f"{key}={settings[key]!r} is not supported; only {value!r} is"
      )
  for key, value in settings.items():
    _check(key, value)
  try:
    num_heads = settings["num_attention_heads"]
    return DecoderConfig(
      vocab_size=settings["vocab_size"],
      width=settings["hidden_size"],
      num_layers=settings["num_hidden_layers"],
      num_heads=num_heads,
      num_kv_heads=settings.get("num_key_value_heads") or num_heads,
      head_size=settings.get("head_dim")
      or settings["hidden_size"] // num_heads,
      mlp_size=settings["intermediate_size"],
      tie_embeddings=settings.get("tie_word_embeddings", False),
      rope_theta=_rope_theta(settings),
      max_positions=settings.get("max_position_embeddings", 32768),
      norm_epsilon=settings.get("rms_norm_eps", 1e-6),
      **computing,
    )
  except KeyError as error:
    raise ValueError(f"config.json lacks {error.args[0]!r}") from None


def _check(key: str, value: Any) -> None:
  """Refuses values of the wrong type; absent and optional ones pass."""
  if key in _SIZES:
    is_right = type(value) is int and value > 0
    is_right |= value is None and key in ("num_key_value_heads", "head_dim")
    expected = "a positive integer"
  elif key in ("rms_norm_eps", "rope_theta"):
    is_number = isinstance(value, int | float) and value > 0
    is_right = is_number or (value is None and key == "rope_theta")
    expected = "a positive number"
  elif key in ("rope_parameters", "rope_scaling"):
    is_right = value is None or isinstance(value, Mapping)
    expected = "a JSON object"
  else:
    return
  if not is_right:
    raise ValueError(f"{key} must be {expected}, got {value!r}")


def to_hugging_face(
  config: DecoderConfig, *, eos_ids: tuple[int, ...], pad_id: int
) -> dict[str, Any]:
  """Returns the `config.json` with which transformers loads the network."""
  return {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    **_FIXED,
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_size,
    "intermediate_size": config.mlp_size,
    "tie_word_embeddings": config.tie_embeddings,
    "rope_theta": config.rope_theta,
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.norm_epsilon,
    "eos_token_id": list(eos_ids),
    "pad_token_id": pad_id,
    "dtype": config.param_dtype,
  }


def _rope_theta(settings: Mapping[str, Any]) -> float:
  """Returns the base, which newer files have in `rope_parameters`."""
  parameters = settings.get("rope_parameters") or {}
  scaling = settings.get("rope_scaling") or parameters
  kind = scaling.get("rope_type", scaling.get("type", "default"))
  if kind != "default":
    raise ValueError(
      f"rope_type={kind!r} is not supported; only 'default' (unscaled) is"
    )
  theta = parameters.get("rope_theta", settings.get("rope_theta"))
  if theta is None:
    raise ValueError("config.json lacks 'rope_theta'")
  return float(theta)


def float_name(name: str, dtype: Any) -> str:
  """Returns the name of a floating-point type.

  Raises:
    ValueError: It is not one; names the setting.
  """
  try:
    found = jnp.dtype(dtype)
  except TypeError:
    found = None
  if found is None or not jnp.issubdtype(found, jnp.floating):
    raise ValueError(f"{name}={dtype!r} must be a type such as 'float32'")
  return found.name
