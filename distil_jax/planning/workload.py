"""A config in numbers."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a config says, in numbers.

  Attributes:
    num_problems, group_size: P and G of a training step.
    prompt_length, completion_length: S and T.
    teacher_prompt_length: S'; 0: there is no teacher.
    micro_batch_size: sequences whose gradient is computed at once.
    num_slots: completions in flight.
    cache_dtype: of keys and values.
    chunk_size: columns of time whose logits are there at once; None: by memory.
    num_kv_heads, remat, param_dtype, compute_dtype: of the network.
    mesh: sizes of its axes, while training.
    rollout_mesh: the same while sampling.
  """

  num_problems: int
  group_size: int
  prompt_length: int
  completion_length: int
  teacher_prompt_length: int
  micro_batch_size: int
  num_slots: int
  cache_dtype: str
  chunk_size: int | None
  num_kv_heads: int
  remat: str
  param_dtype: str
  compute_dtype: str
  mesh: Mapping[str, int]
  rollout_mesh: Mapping[str, int]

  @property
  def num_sequences(self) -> int:
    """B."""
    return self.num_problems * self.group_size
