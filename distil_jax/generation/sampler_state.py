"""State of the sampler between two decode steps."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.generation import token_buffer
from distil_jax.models import sharding
from distil_jax.models.kv_cache import KVCache, PromptAssignment, PromptCache
from distil_jax.ops import sampling


@struct.dataclass
class Requests:
  """What is asked for, N rows in each of D parts of the batch.

  Attributes:
    keys: of each row's noise. Shape `[D, N]`.
    last_ids: the last token of each prompt, which the others are read before.
      Shape `[D, P / D]`.
    choice: how each row chooses its tokens. Shape `[D, N]` each.
    max_lengths: of each row's completion, at most T. Shape `[D, N]`.
  """

  keys: jax.Array
  last_ids: jax.Array
  choice: sampling.Choice
  max_lengths: jax.Array


@struct.dataclass
class Slots:
  """W samples in flight in each part. Shape `[D, W]` each.

  Attributes:
    rows: which row it works on.
    prompt_index: where among the prompts in memory its prompt is.
    lengths: tokens chosen so far.
    ids: the newest token: the prompt's last one at first.
    is_alive: whether it works on a row.
    keys, choice, max_lengths: of its row, as in `Requests`.
  """

  rows: jax.Array
  prompt_index: jax.Array
  lengths: jax.Array
  ids: jax.Array
  is_alive: jax.Array
  keys: jax.Array
  choice: sampling.Choice
  max_lengths: jax.Array


@struct.dataclass
class SamplerState:
  """A rollout that is under way.

  Attributes:
    requests: what is asked for.
    prompts: in memory.
    kv_cache: of the samples in flight.
    slots: the samples in flight.
    in_flight: which of them reads which prompt.
    completions: of all rows.
    next_row: the first row that waits. Shape `[D]`.
    num_steps: tokens chosen for each slot so far. Scalar.
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
    """N."""
    return self.requests.keys.shape[1]

  @property
  def num_waiting(self) -> jax.Array:
    """Rows that no slot has taken up yet. Shape `[D]`."""
    return self.num_rows - self.next_row

  @property
  def num_alive(self) -> jax.Array:
    """Slots at work. Shape `[D]`."""
    return jnp.sum(self.slots.is_alive, axis=1, dtype=jnp.int32)

  @property
  def longest(self) -> jax.Array:
    """Tokens of the longest completion in flight. Scalar."""
    return jnp.max(jnp.where(self.slots.is_alive, self.slots.lengths, 0))


def group_size_of(state: SamplerState) -> int:
  return state.num_rows // state.requests.last_ids.shape[1]


def constrain(state: SamplerState) -> SamplerState:
  """Each part of the batch where its rows are."""

  def place(x):
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

  return dataclasses.replace(
    state,
    requests=jax.tree.map(place, state.requests),
    slots=jax.tree.map(place, state.slots),
    in_flight=jax.tree.map(place, state.in_flight),
    completions=jax.tree.map(place, state.completions),
    next_row=place(state.next_row),
  )
