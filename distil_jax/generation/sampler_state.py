"""State of the sampler between two decode steps.

Letters besides those of `types`: D parts of the batch with N rows and W slots
each. A row is one requested completion; a slot is a place in the batch of
decode steps, and works on one row after another.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.generation import token_buffer
from distil_jax.models import kv_cache as kv_caches
from distil_jax.models import sharding
from distil_jax.models.kv_cache import KVCache, PromptAssignment, PromptCache
from distil_jax.ops.token_sampling import SamplingArrays


@dataclasses.dataclass(frozen=True)
class SamplerSizes:
  """Holds the sizes of a sampler's arrays; static under jit.

  Attributes:
    num_slots: Slots of all parts together; at most P * G.
    cache_length: Tokens of a completion that the KV cache can hold.
    max_completion_length: T.
    cache_dtype: Type of keys and values; None means that of the activations.
  """

  num_slots: int
  cache_length: int
  max_completion_length: int
  cache_dtype: str | None = None


@struct.dataclass
class Requests:
  """Holds what is requested: N rows in each of D parts of the batch.

  Attributes:
    keys: Random key of each row. Shape `[D, N]`.
    last_ids: Last token of each prompt. Prefill reads the tokens before it,
      and the first decode step reads this one. Shape `[D, P / D]`.
    sampling: How each row's tokens are chosen. Shape `[D, N]` each.
    max_lengths: Most tokens of each row, at most T. Shape `[D, N]`.
  """

  keys: jax.Array
  last_ids: jax.Array
  sampling: SamplingArrays
  max_lengths: jax.Array


@struct.dataclass
class Slots:
  """Holds W samples in flight in each part. Shape `[D, W]` each.

  Attributes:
    rows: Row that the slot works on.
    prompt_index: Index of the row's prompt among the prompts in memory.
    lengths: Tokens sampled so far.
    ids: The newest token; at first the last one of the prompt.
    is_alive: True if the slot works on a row.
    keys, sampling, max_lengths: Of the slot's row, as in `Requests`.
  """

  rows: jax.Array
  prompt_index: jax.Array
  lengths: jax.Array
  ids: jax.Array
  is_alive: jax.Array
  keys: jax.Array
  sampling: SamplingArrays
  max_lengths: jax.Array


@struct.dataclass
class SamplerState:
  """Holds a rollout that is under way.

  Attributes:
    requests: What is requested.
    prompts: Keys and values of the prompts in memory.
    kv_cache: Keys and values of the samples in flight.
    slots: The samples in flight.
    in_flight: Which of them reads which prompt.
    completions: What has been sampled, of all rows.
    next_row: The first row that waits for a slot. Shape `[D]`.
    num_steps: Decode steps so far. Scalar.
  """

  requests: Requests
  prompts: PromptCache
  kv_cache: KVCache
  slots: Slots
  in_flight: PromptAssignment
  completions: token_buffer.Completions
  next_row: jax.Array
  num_steps: jax.Array

  @property
  def num_rows(self) -> int:
    """Number of rows of each part, N."""
    return self.requests.keys.shape[1]

  @property
  def num_waiting(self) -> jax.Array:
    """Rows that wait for a slot. Shape `[D]`."""
    return self.num_rows - self.next_row

  @property
  def num_alive(self) -> jax.Array:
    """Slots that work on a row. Shape `[D]`."""
    # With 64 bits enabled the sum would be int64, and a loop must keep its
    # types.
    return jnp.sum(self.slots.is_alive, axis=1, dtype=jnp.int32)

  @property
  def longest(self) -> jax.Array:
    """Tokens of the longest completion in flight. Scalar."""
    # Slots without a row go on counting, and must not make the KV cache grow.
    return jnp.max(jnp.where(self.slots.is_alive, self.slots.lengths, 0))

  @property
  def cache_length(self) -> int:
    """Tokens of a completion that the KV cache can hold."""
    return self.kv_cache.length


def group_size_of(state: SamplerState) -> int:
  """Returns G."""
  return state.num_rows // state.requests.last_ids.shape[1]


def requests_of_rows(requests: Requests, rows: jax.Array) -> dict[str, Any]:
  """Returns what is requested of some rows, as fields of `Slots`.

  Args:
    requests: Of all rows.
    rows: Rows of each part. Shape `[D, W]`.
  """

  def take(x):
    return jax.vmap(lambda x, rows: x[rows])(x, rows)

  return {
    "keys": take(requests.keys),
    "sampling": jax.tree.map(take, requests.sampling),
    "max_lengths": take(requests.max_lengths),
  }


def assign_prompts(
  slots: Slots, prompts: PromptCache, *, group_size: int
) -> PromptAssignment:
  """Returns which slot reads which prompt."""
  # A prompt is read by at most G samples, and by no more than there are slots.
  return kv_caches.assign_prompts(
    slots.prompt_index,
    slots.is_alive,
    num_prompts=prompts.lengths.shape[1],
    num_columns=min(group_size, slots.rows.shape[1]),
  )


def constrain(state: SamplerState) -> SamplerState:
  """Pins each part of the batch to the devices that hold its rows."""

  def by_part(x):
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

  return dataclasses.replace(
    state,
    requests=jax.tree.map(by_part, state.requests),
    slots=jax.tree.map(by_part, state.slots),
    in_flight=jax.tree.map(by_part, state.in_flight),
    completions=jax.tree.map(by_part, state.completions),
    next_row=by_part(state.next_row),
  )
