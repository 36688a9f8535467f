"""Reads and writes the rope settings of Hugging Face's `config.json`.

Files have three forms: `rope_theta` with `rope_scaling`, `rope_parameters`, and
`rope_parameters` for each type of layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distil_jax.models.decoder_config import DecoderConfig, RopeScaling
from distil_jax.models.rope import yarn_attention_factor

_KINDS = ("default", "linear", "llama3", "yarn")
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
# Settings of the file, and the fields of `RopeScaling` that they are.
_NAMES = {
  "factor": "factor",
  "original_max_position_embeddings": "original_max_positions",
  "low_freq_factor": "low_freq_factor",
  "high_freq_factor": "high_freq_factor",
  "beta_fast": "beta_fast",
  "beta_slow": "beta_slow",
  "attention_factor": "attention_factor",
  "truncate": "truncate",
}
_SETTINGS_OF = {
  "linear": ("factor",),
  "llama3": (
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
  ),
  "yarn": (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "truncate",
  ),
}


def read(
  settings: Mapping[str, Any],
  *,
  has_local_rope: bool,
  local_rope_theta: float | None,
) -> dict[str, Any]:
  """Returns the fields of `DecoderConfig` that describe the rope.

  Args:
    settings: The file's, with the family's defaults.
    has_local_rope: True if layers with a window have a rope of their own.
    local_rope_theta: Its base if the file does not name it; None means that of
      the other layers.

  Raises:
    ValueError: A kind of rope is not implemented, or a setting is missing.
  """
  parameters = settings.get("rope_parameters") or {}
  nested = {
    key: value
    for key, value in parameters.items()
    if isinstance(value, Mapping)
  }
  shared = nested.get(_GLOBAL, {}) if nested else parameters
  scaling = settings.get("rope_scaling") or shared
  theta = shared.get("rope_theta", settings.get("rope_theta"))
  if theta is None:
    raise ValueError("config.json lacks 'rope_theta'")
  fields = {
    "rope_theta": _base(theta),
    "rope_scaling": _read_scaling(scaling, settings),
  }
  if has_local_rope:
    local = nested.get(_LOCAL, {})
    if _kind(local) != "default":
      raise ValueError(
        f"rope_type={_kind(local)!r} of {_LOCAL} is not supported; only "
        "'default' (unscaled) is"
      )
    default = local_rope_theta or theta
    local_theta = settings.get("rope_local_base_freq", default)
    fields["local_rope_theta"] = _base(local.get("rope_theta", local_theta))
  return fields


def _base(theta: Any) -> float:
  """Returns the base of the wavelengths, which must be a positive number."""
  is_number = isinstance(theta, int | float) and not isinstance(theta, bool)
  if not is_number or theta <= 0:
    raise ValueError(f"rope_theta must be a positive number, got {theta!r}")
  return float(theta)


def _kind(scaling: Mapping[str, Any]) -> Any:
  """Returns the kind of rope, which older files call `type`."""
  return scaling.get("rope_type") or scaling.get("type") or "default"


def _read_scaling(
  scaling: Mapping[str, Any], settings: Mapping[str, Any]
) -> RopeScaling | None:
  kind = _kind(scaling)
  if kind not in _KINDS:
    raise ValueError(
      f"rope_type={kind!r} is not supported; known: {', '.join(_KINDS)}"
    )
  if scaling.get("partial_rotary_factor", 1) != 1:
    raise ValueError(
      f"partial_rotary_factor={scaling['partial_rotary_factor']!r} is not "
      "supported; only 1 is"
    )
  if kind == "default":
    return None
  values = {
    name: scaling[name]
    for name in _SETTINGS_OF[kind]
    if scaling.get(name) is not None
  }
  if "original_max_position_embeddings" in _SETTINGS_OF[kind]:
    values.setdefault(
      "original_max_position_embeddings", settings["max_position_embeddings"]
    )
  if kind == "yarn":
    values.setdefault(
      "factor",
      settings["max_position_embeddings"]
      / values["original_max_position_embeddings"],
    )
  _check(kind, values)
  if kind == "yarn":
    values.setdefault(
      "attention_factor",
      yarn_attention_factor(
        values["factor"], scaling.get("mscale"), scaling.get("mscale_all_dim")
      ),
    )
  return RopeScaling(
    kind, **{_NAMES[name]: value for name, value in values.items()}
  )


def _check(kind: str, values: Mapping[str, Any]) -> None:
  """Refuses a scaling with missing or wrong settings."""
  required = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
  }[kind]
  for name in required:
    if name not in values:
      raise ValueError(f"rope_type={kind!r} needs {name!r} in rope_scaling")
  for name, value in values.items():
    if name == "truncate":
      continue
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value <= 0:
      raise ValueError(
        f"rope_scaling.{name} must be a positive number, got {value!r}"
      )
  if (
    kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]
  ):
    raise ValueError(
      f"rope_scaling.high_freq_factor={values['high_freq_factor']!r} must be "
      f"above low_freq_factor={values['low_freq_factor']!r}"
    )


def write(config: DecoderConfig) -> dict[str, Any]:
  """Returns the settings that every version of transformers reads."""
  settings: dict[str, Any] = {"rope_theta": config.rope_theta}
  scaling = {"rope_type": "default"}
  if config.rope_scaling is not None:
    kind = config.rope_scaling.kind
    fields = dataclasses.asdict(config.rope_scaling)
    scaling = {"rope_type": kind} | {
      name: fields[_NAMES[name]] for name in _SETTINGS_OF[kind]
    }
    settings["rope_scaling"] = scaling
  if config.local_rope_theta is not None:
    settings["rope_local_base_freq"] = config.local_rope_theta
    # Newer versions read this form alone where the types of layers differ.
    settings["rope_parameters"] = {
      _GLOBAL: {**scaling, "rope_theta": config.rope_theta},
      _LOCAL: {"rope_type": "default", "rope_theta": config.local_rope_theta},
    }
  return settings
