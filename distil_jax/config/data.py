"""Config section of the data."""

from typing import Annotated, Literal

import pydantic

from distil_jax.config.base import PathText, Positive, Section, Seed

Text = Annotated[str, pydantic.Field(min_length=1)]


class HubDatasetConfig(Section):
  """A data set of the Hugging Face Hub; needs the extra `datasets`."""

  dataset: Text
  """Its name, such as `openai/gsm8k`, or a folder that `datasets` reads."""
  config: str | None = None
  """Its configuration (subset), such as `main`; null: the only one."""
  split: Text
  """Its split, such as `train` or `train[:500]`."""
  revision: str | None = None
  """Branch, tag or commit; null is `main`, which may change."""


File = Annotated[PathText, pydantic.Field(min_length=1)]
DataSource = File | tuple[File, ...] | HubDatasetConfig


class ExampleConfig(Section):
  """A question and a good answer to it."""

  prompt: Text
  """The question, written as the environment writes a problem's."""
  completion: Text
  """The answer."""


class DataConfig(Section):
  """The problems: files, or `generated` if the environment makes its own.

  A source is the path of a file, a folder or a pattern such as
  `data/train-*.parquet`; a list of these; or a data set of the Hub,
  `{dataset: openai/gsm8k, config: main, split: train}`. `fields` maps our names
  of fields to those of the rows, for example `{prompt: question, answer:
  reward_model.ground_truth}`, where a point leads into a nested field.
  """

  train: DataSource = "generated"
  """Problems for training."""
  evaluation: DataSource = "generated"
  """Held-out problems."""
  fields: dict[str, str] = pydantic.Field(default={})
  """Our field names, and what the file calls them."""
  examples: File | tuple[ExampleConfig, ...] = ()
  """Worked examples that student and teacher read before each problem, as
  earlier turns: a list of `{prompt: …, completion: …}`, or a file of such
  rows."""
  malformed_rows: Literal["error", "skip"] = "error"
  """Stop at a row that cannot be used, or skip and count such rows."""
  long_prompts: Literal["error", "drop"] = "error"
  """Stop at a prompt longer than `rollout.max_prompt_length`, or drop and count
  such rows."""
  long_solutions: Literal["error", "drop"] = "error"
  """The same for supervised runs: a solution that is longer, with its end
  token, than `rollout.max_completion_length`."""
  num_train: Positive | None = None
  """Use only so many rows, from the first; null: all."""
  num_evaluation: Positive | None = None
  """The same for held-out problems."""
  num_epochs: Positive | None = None
  """Stop after so many passes over the data, if `train.num_steps` does not end
  the run before; null: repeat without end."""
  seed: Seed = 0
  """Seed of the order of the problems."""

  @pydantic.field_validator("train", "evaluation")
  @classmethod
  def _source(cls, value: DataSource) -> DataSource:
    if isinstance(value, tuple) and (not value or "generated" in value):
      raise ValueError(
        "a list must name files, folders or patterns; write `generated` alone"
      )
    return value
