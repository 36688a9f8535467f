"""One decode step of all slots."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import layout

from distil_jax.generation import token_buffer
from distil_jax.generation.sampler_state import (
  Requests,
  SamplerState,
  Slots,
  group_size_of,
)
from distil_jax.models import decoder, decoding, kv_cache, sharding
from distil_jax.ops import fused_linear, sampling
from distil_jax.types import StopReason

# Tokens of the vocabulary whose logits stand together.
_LOGITS_BLOCK = 256


def admit_rows(state: SamplerState) -> SamplerState:
  """Gives the rows that wait to the slots that are free."""
  slots, requests = state.slots, state.requests
  num_rows, group_size = state.num_rows, group_size_of(state)
  is_free = ~slots.is_alive
  order = jnp.cumsum(is_free, axis=1, dtype=jnp.int32) - 1
  rows = state.next_row[:, None] + order
  is_new = is_free & (rows < num_rows)

  def admit():
    # Rows wait only while all prompts are in memory, in their order.
    kept_rows = jnp.where(is_new, rows, slots.rows)
    problems = kept_rows // group_size
    ids = jnp.take_along_axis(requests.last_ids, problems, axis=1)
    filled = Slots(
      rows=kept_rows,
      prompt_index=jnp.where(is_new, problems, slots.prompt_index),
      lengths=jnp.where(is_new, 0, slots.lengths),
      ids=jnp.where(is_new, ids, slots.ids),
      is_alive=slots.is_alive | is_new,
      **requests_of_rows(requests, kept_rows),
    )
    in_flight = assign_prompts(filled, state.prompts, group_size=group_size)
    return filled, in_flight

  slots, in_flight = jax.lax.cond(
    jnp.any(is_new), admit, lambda: (slots, state.in_flight)
  )
  return dataclasses.replace(
    state,
    slots=slots,
    in_flight=in_flight,
    next_row=state.next_row
    + jnp.sum(is_new, axis=1, dtype=state.next_row.dtype),
  )


def requests_of_rows(requests: Requests, rows: jax.Array) -> dict[str, Any]:
  """What is asked for in some rows of each part. Shape of `rows` each."""

  def of_slots(x):
    return jax.vmap(lambda x, rows: x[rows])(x, rows)

  return {
    "keys": of_slots(requests.keys),
    "choice": jax.tree.map(of_slots, requests.choice),
    "max_lengths": of_slots(requests.max_lengths),
  }


def assign_prompts(
  slots: Slots, prompts, *, group_size: int
) -> kv_cache.PromptAssignment:
  return kv_cache.assign_prompts(
    slots.prompt_index,
    slots.is_alive,
    num_prompts=prompts.lengths.shape[1],
    num_lanes=min(group_size, slots.rows.shape[1]),
  )


def decode_step(
  weights, state: SamplerState, *, graphdef, eos_ids
) -> tuple[SamplerState, token_buffer.TokenBuffer]:
  """One token for every slot at work, and what to write down of it."""
  slots = state.slots
  hidden, kv_cache = decoding.decode(
    graphdef,
    weights,
    slots.ids,
    slots.lengths,
    slots.prompt_index,
    state.in_flight,
    state.prompts,
    state.kv_cache,
  )
  ids, log_probs, behavior_log_probs = sampling.choose(
    _logits(weights, hidden),
    jax.vmap(jax.vmap(_uniform))(slots.keys, slots.lengths),
    slots.choice,
    num_vocab_shards=sharding.num_shards("vocab"),
  )
  is_end = jnp.isin(ids, jnp.asarray(eos_ids, jnp.int32))
  lengths = slots.lengths + 1
  is_full = lengths >= slots.max_lengths
  entry = token_buffer.TokenBuffer(
    rows=jnp.where(slots.is_alive, slots.rows, state.num_rows),
    positions=slots.lengths,
    ids=ids,
    log_probs=log_probs,
    behavior_log_probs=behavior_log_probs,
    stop_reasons=jnp.where(is_end, StopReason.EOS, StopReason.LENGTH).astype(
      jnp.int32
    ),
  )
  slots = dataclasses.replace(
    slots,
    ids=ids,
    lengths=lengths,
    is_alive=slots.is_alive & ~is_end & ~is_full,
  )
  state = dataclasses.replace(
    state, kv_cache=kv_cache, slots=slots, num_steps=state.num_steps + 1
  )
  return state, entry


def _logits(weights: decoding.Weights, hidden: jax.Array) -> jax.Array:
  """Of the next token of each sample.

  A tied embedding is read as it lies, block by block; a product that turns it
  round is slower by a quarter on a CPU.

  Args:
    weights: from `decoding.by_layer`.
    hidden: shape `[D, W, D']`.

  Returns:
    float32, shape `[D, W, V]`.
  """
  rows = hidden.shape[:-1]
  embedding = weights["embedding"]
  vocab_size = embedding.shape[0]
  block = _LOGITS_BLOCK * sharding.num_shards("vocab")
  if "unembedding" in weights or vocab_size % block:
    return fused_linear.logits(hidden, decoder.unembedding(weights))
  blocks = embedding.reshape(-1, _LOGITS_BLOCK, embedding.shape[-1])
  products = jnp.einsum(
    "dwe,nve->ndwv", hidden, blocks, preferred_element_type=jnp.float32
  )
  logits = jnp.moveaxis(products, 0, 2).reshape(*rows, vocab_size)
  # Turned round once, not again for each look at them (a seventh of a step).
  in_order = layout.Layout(tuple(range(logits.ndim)))
  return layout.with_layout_constraint(logits, in_order)


def _uniform(key, t):
  return jax.random.uniform(jax.random.fold_in(key, t), dtype=jnp.float32)
