"""Config section of rollouts."""

from typing import Annotated

import pydantic

from distil_jax.config.base import DType, Positive, SamplingConfig, Section
from distil_jax.config.mesh import MeshConfig


class RefillConfig(Section):
  """Replaces groups from which nothing can be learned by further problems.

  Which groups these are follows from the objective: their rewards are all
  equal, if it learns from rewards alone; and no teacher's prompt would have a
  solution or feedback, or every weight of it is 0, if it has a teacher. As in
  DAPO (arXiv:2503.14476), but bounded.
  """

  max_rounds: Positive = 3
  """Rounds of further problems in a step, at most. Each has as many problems as
  groups are still to be replaced; what is left then stays in the batch."""


class RolloutConfig(SamplingConfig):
  """Settings of sampling by the student while it trains."""

  num_problems: Positive = 16
  """Problems in a step."""
  group_size: Positive = 8
  """Completions of each problem."""
  max_prompt_length: Positive = 128
  """Tokens of a prompt, at most."""
  max_completion_length: Positive = 128
  """Tokens of a completion, at most; then it is cut."""
  max_reply_length: Annotated[int, pydantic.Field(ge=16)] = 256
  """Tokens of what the environment says between two turns, at most; a longer
  one is cut and marked."""
  stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = ()
  """Strings that end a completion when its text contains one of them; the text
  of a special token means that token."""
  num_slots: Positive | None = None
  """Completions in flight at once, in training and evaluation; the others wait
  until one ends. null: all."""
  refill: RefillConfig | None = None
  """Sample further problems in place of groups without signal; null: keep
  them."""
  cache_dtype: DType | None = None
  """Dtype of keys and values; null: bfloat16 on accelerators, that of the
  activations on a CPU."""
  mesh: MeshConfig | None = None
  """The mesh for sampling, if another one than `mesh` is faster; null: the
  same."""
