"""Describes a run by the numbers that its costs depend on."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Workload:
  """Holds the numbers of a run.

  Attributes:
    num_problems, group_size: P and G of a training step.
    prompt_length, completion_length: S and T.
    teacher_prompt_length: Prompt length of the teacher. 0 means no teacher.
    micro_batch_size: Sequences whose gradient is computed at once, all at the
      limits of lengths.
    tokens_per_micro_batch: Tokens of a micro-batch by length. None means that
      micro-batches are counted in sequences.
    num_slots: Completions that are sampled at the same time.
    cache_dtype: Type of keys and values in the KV cache.
    chunk_size: Positions whose logits are in memory at once. None means that
      the memory decides.
    num_kv_heads, remat, param_dtype, compute_dtype: Those of the network.
    mesh: Sizes of the mesh axes while training.
    rollout_mesh: Sizes of the mesh axes while sampling.
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
  tokens_per_micro_batch: int | None = None

  @property
  def num_sequences(self) -> int:
    """Returns B."""
    return self.num_problems * self.group_size
