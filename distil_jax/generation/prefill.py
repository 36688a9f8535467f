"""Prefill: reads the prompts and makes the initial sampler state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.generation import token_buffer
from distil_jax.generation.sampler_state import (
  Requests,
  SamplerSizes,
  SamplerState,
  Slots,
  assign_prompts,
  constrain,
  requests_of_rows,
)
from distil_jax.models import cached_forward, kv_cache, sharding
from distil_jax.ops.token_sampling import SamplingArrays
from distil_jax.types import StopReason

# Tokens of prompts that are read at once, in each part of the batch. More would
# need more memory for activations and would not be faster.
_PREFILL_TOKENS = 16384


def prefill(
  weights: cached_forward.Weights,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  sampling: SamplingArrays,
  max_lengths: Any,
  *,
  graphdef: nnx.GraphDef,
  sizes: SamplerSizes,
) -> SamplerState:
  """Reads the prompts; no token is sampled yet.

  Args:
    weights: From `cached_forward.by_layer`.
    prompt_ids: Left-padded, at least one token each. Shape `[P, S]`.
    prompt_mask: 1 where the token counts. Shape `[P, S]`.
    keys: From `random_keys.sample_keys`. Shape `[P, G]`.
    sampling: How tokens are chosen; scalars, or arrays that broadcast to
      `[P, G]`.
    max_lengths: Most tokens of each row; a scalar, or shape `[P, G]`.
    graphdef: From `decoder.make`.
    sizes: Sizes of the state's arrays.

  Returns:
    A state in which all rows wait.
  """
  num_parts = _num_parts(keys.shape[0])
  max_length = sizes.max_completion_length

  def of_rows(x):
    rows = jnp.broadcast_to(x, keys.shape).reshape(num_parts, -1)
    return sharding.constrain(rows, "batch", None)

  prompts = _read_prompts(
    weights,
    prompt_ids,
    prompt_mask,
    graphdef=graphdef,
    num_parts=num_parts,
    dtype=sizes.cache_dtype,
  )
  # Rounded up, because every part has the same number of slots.
  width = -(-sizes.num_slots // num_parts)
  requests = Requests(
    keys=keys.reshape(num_parts, -1),
    # Left padding puts the last token of every prompt into the last column.
    last_ids=prompt_ids[:, -1].reshape(num_parts, -1),
    sampling=SamplingArrays(
      temperature=of_rows(jnp.asarray(sampling.temperature, jnp.float32)),
      top_k=of_rows(jnp.asarray(sampling.top_k, jnp.int32)),
      top_p=of_rows(jnp.asarray(sampling.top_p, jnp.float32)),
      min_p=of_rows(jnp.asarray(sampling.min_p, jnp.float32)),
    ),
    # The host does not see an array that is on the device already, so that it
    # is clipped here, not refused.
    max_lengths=of_rows(
      jnp.clip(jnp.asarray(max_lengths, jnp.int32), 1, max_length)
    ),
  )
  # No slot is alive: the first decode step admits the first rows.
  zeros = jnp.zeros((num_parts, width), jnp.int32)
  slots = Slots(
    rows=zeros,
    prompt_index=zeros,
    lengths=zeros,
    ids=zeros,
    is_alive=zeros.astype(bool),
    **requests_of_rows(requests, zeros),
  )
  rows_shape = (num_parts, keys.size // num_parts)
  tokens_shape = (*rows_shape, max_length)
  state = SamplerState(
    requests=requests,
    prompts=prompts,
    kv_cache=kv_cache.empty_cache(prompts, width, sizes.cache_length),
    slots=slots,
    in_flight=assign_prompts(slots, prompts, group_size=keys.shape[1]),
    completions=token_buffer.Completions(
      ids=jnp.zeros(tokens_shape, jnp.int32),
      log_probs=jnp.zeros(tokens_shape, jnp.float32),
      behavior_log_probs=jnp.zeros(tokens_shape, jnp.float32),
      lengths=jnp.zeros(rows_shape, jnp.int32),
      # Of an enum's member itself JAX makes a weak type, and the state after
      # the first steps, which has none, would need another program.
      stop_reasons=jnp.full(rows_shape, int(StopReason.LENGTH), jnp.int32),
    ),
    next_row=jnp.zeros(num_parts, jnp.int32),
    num_steps=jnp.int32(0),
  )
  return constrain(state)


def _num_parts(num_problems: int) -> int:
  """Returns the parts of the batch, each of which keeps to its own rows."""
  # Parts are equal rows of one array. If the problems do not divide, they are
  # one part, and all devices share it.
  num_shards = sharding.num_shards("batch")
  return num_shards if num_problems % num_shards == 0 else 1


def _read_prompts(weights, ids, mask, *, graphdef, num_parts, dtype):
  """Reads all but the last token of each prompt, some prompts at a time."""
  dtype = dtype or weights["embedding"].dtype
  if ids.shape[1] > 1:
    ids, mask = ids[:, :-1], mask[:, :-1]
  else:
    # A cache needs a column at least; this one does not count.
    mask = jnp.zeros_like(mask)

  def read(ids, mask):
    return cached_forward.prefill(
      graphdef, weights, ids, mask, num_parts=num_parts, dtype=dtype
    )

  size = ids.shape[0] // num_parts
  at_once = max(1, _PREFILL_TOKENS // ids.shape[1])
  # The number of chunks divides a part, because `map` needs equal chunks.
  count = next(
    n for n in range(1, size + 1) if size % n == 0 and size // n <= at_once
  )
  if count == 1:
    return read(ids, mask)

  # A chunk takes prompts from every part, so that all devices have work.
  def cut(x):
    parts = x.reshape(num_parts, count, -1, x.shape[-1])
    chunks = jnp.swapaxes(parts, 0, 1).reshape(count, -1, x.shape[-1])
    return sharding.constrain(chunks, None, "batch", None)

  def join(x):
    # A chunk holds prompts of all parts; here each part gets its own back.
    parts = x.reshape(count, num_parts, -1, *x.shape[2:])
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *x.shape[2:])

  # One chunk after another, so that only its activations are in memory.
  chunks = jax.lax.map(lambda chunk: read(*chunk), (cut(ids), cut(mask)))
  return dataclasses.replace(
    chunks,
    cache=jax.tree.map(join, chunks.cache),
    lengths=join(chunks.lengths.reshape(count, -1)).reshape(num_parts, -1),
  )
