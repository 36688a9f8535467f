"""The base class and the number types of the schema's sections."""

from typing import Annotated, Literal

import pydantic

Positive = Annotated[int, pydantic.Field(gt=0, lt=2**31)]
NonNegative = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
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
