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
  """A file of problems for training."""
  evaluation: str = "generated"
  """A file of held-out problems."""
  fields: dict[str, str] = pydantic.Field(default={})
  """Our field names, and what the file calls them."""
  malformed_rows: Literal["error", "skip"] = "error"
  """Stop at a row that cannot be used, or skip and count such rows."""
  long_prompts: Literal["error", "drop"] = "error"
  """Stop at a prompt longer than `rollout.max_prompt_length`, or drop and count
  such rows."""
  num_train: Positive | None = None
  """Use only so many rows, from the first; null: all."""
  num_evaluation: Positive | None = None
  """The same for held-out problems."""
  num_epochs: Positive | None = None
  """Stop after so many passes over the data; null: repeat without end."""
  seed: Seed = 0
  """Seed of the order of the problems."""
