"""Config section of the data."""

from typing import Literal

import pydantic

from distil_jax.config.base import Positive, Section, Seed


class DataConfig(Section):
  """The problems: files, or `generated` if the environment makes its own.

  `fields` maps our names of fields to those of the file, for example
  `{prompt: question, solution: answer}`.
  """

  train: str = "generated"
  evaluation: str = "generated"
  fields: dict[str, str] = pydantic.Field(default={})
  malformed_rows: Literal["error", "skip"] = "error"
  long_prompts: Literal["error", "drop"] = "error"
  num_train: Positive | None = None
  num_evaluation: Positive | None = None
  num_epochs: Positive | None = None
  seed: Seed = 0
