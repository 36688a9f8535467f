"""The base class and the number types of the schema's sections."""

import json
import os
from typing import Annotated, Any, Literal

import pydantic


def _no_bool(value: Any) -> Any:
  if isinstance(value, bool):
    raise ValueError("must be a whole number")  # `true` would count as 1
  return value


def _expanded(value: str) -> str:
  return os.path.expandvars(os.path.expanduser(value))


_NoBool = pydantic.BeforeValidator(_no_bool)
Positive = Annotated[int, _NoBool, pydantic.Field(gt=0, lt=2**31)]
NonNegative = Annotated[int, _NoBool, pydantic.Field(ge=0, lt=2**31)]
Seed = Annotated[int, _NoBool, pydantic.Field(ge=0, lt=2**32)]
# `~` and `$HOME` are as in a shell, which leaves them alone behind an equals
# sign.
PathText = Annotated[str, pydantic.AfterValidator(_expanded)]
Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]  # both ends included
Weight = Annotated[float, pydantic.Field(ge=0)]
Above = Annotated[float, pydantic.Field(gt=0)]
DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
  """The error of a setting that cannot be used; it names key and cure."""


class Section(pydantic.BaseModel):
  """A frozen group of settings; a string below a field describes it."""

  model_config = pydantic.ConfigDict(
    frozen=True,
    extra="forbid",
    validate_default=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
  )

  # A section is a static argument of compiled programs, and pydantic's own hash
  # fails for a section that holds a dictionary.
  def __hash__(self) -> int:
    fields = self.model_dump(mode="json")
    return hash((type(self), json.dumps(fields, sort_keys=True)))


class SamplingConfig(Section):
  """Settings of drawing a token from the distribution of the next one."""

  temperature: Annotated[float, pydantic.Field(ge=0)] = 1.0
  """Logits are divided by it; 0 takes the most probable token."""
  top_k: Positive | None = None
  """Sample only the k most probable tokens; null: all."""
  top_p: Fraction | None = None
  """Sample only the most probable tokens that together reach this probability;
  null: all."""
  min_p: Fraction | None = None
  """Sample only tokens at least this share as probable as the most probable."""

  @pydantic.field_validator("temperature")
  @classmethod
  def _temperature(cls, value: float) -> float:
    # Logits divided by less overflow, so that the sampler would draw token 0.
    if 0 < value < 1e-6:
      raise ValueError("must be 0 (the most probable token) or at least 1e-6")
    return value
