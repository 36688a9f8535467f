"""One decode step of all slots."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import layout

from distil_jax.generation import token_buffer
from distil_jax.generation.sampler_state import (
  SamplerState,
  Slots,
  assign_prompts,
  group_size_of,
  requests_of_rows,
)
from distil_jax.models import cached_forward, layers, sharding
from distil_jax.ops import fused_linear, token_sampling, vocabulary
from distil_jax.types import StopReason

# Tokens of the vocabulary in one block of the logits.
_LOGITS_BLOCK = 256


def admit_rows(state: SamplerState) -> SamplerState:
  """Gives the rows that wait to the slots that are free."""
  slots, requests = state.slots, state.requests
  num_rows, group_size = state.num_rows, group_size_of(state)
  is_free = ~slots.is_alive
  # The i-th free slot takes the i-th row that waits, if there are so many.
  order = jnp.cumsum(is_free, axis=1, dtype=jnp.int32) - 1
  rows = state.next_row[:, None] + order
  is_new = is_free & (rows < num_rows)

  def admit():
    # Prompts are dropped from memory only when no row waits, so a waiting row's
    # problem is also the index of its prompt.
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

  # Most steps admit nobody, and skip the work of assigning prompts.
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


def decode_step(
  weights: cached_forward.Weights,
  state: SamplerState,
  *,
  graphdef: nnx.GraphDef,
  eos_ids: tuple[int, ...],
) -> tuple[SamplerState, token_buffer.TokenBuffer]:
  """Samples one token for every slot.

  Args:
    weights: From `cached_forward.by_layer`.
    state: A rollout that is under way.
    graphdef: From `decoder.make`.
    eos_ids: Tokens that end a completion.

  Returns:
    The state after the step, whose completions are yet to be written, and the
    entry of the step for the token buffer, of shape `[D, W]` each.
  """
  slots = state.slots
  hidden, kv_cache = cached_forward.decode(
    graphdef,
    weights,
    slots.ids,
    slots.lengths,
    slots.prompt_index,
    state.in_flight,
    state.prompts,
    state.kv_cache,
  )
  # A token's randomness depends on its row's key and its position alone, so it
  # does not matter which slot samples it or when.
  ids, log_probs, behavior_log_probs = token_sampling.choose(
    _logits(weights, hidden, cached_forward.num_tokens(graphdef, weights)),
    jax.vmap(jax.vmap(_uniform))(slots.keys, slots.lengths),
    slots.sampling,
    num_vocab_shards=sharding.num_shards("vocab"),
  )
  is_end = jnp.isin(ids, jnp.asarray(eos_ids, jnp.int32))
  lengths = slots.lengths + 1
  is_full = lengths >= slots.max_lengths
  # LENGTH also stands for rows that go on. Only the reason at a row's last
  # token is kept, and that token ended the row by EOS or by its length.
  entry = token_buffer.TokenBuffer(
    # Slots without a row are computed too; their entries are marked as empty.
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


def _logits(
  weights: cached_forward.Weights, hidden: jax.Array, num_tokens: int | None
) -> jax.Array:
  """Returns the logits of the next token of each sample.

  Args:
    weights: From `cached_forward.by_layer`.
    hidden: Shape `[D, W, D']`.
    num_tokens: See `DecoderConfig`.

  Returns:
    float32, −inf where an entry stands for no token. Shape `[D, W, V]`.
  """
  rows = hidden.shape[:-1]
  embedding = weights["embedding"]
  vocab_size = embedding.shape[0]
  block = _LOGITS_BLOCK * sharding.num_shards("vocab")
  if "unembedding" in weights or vocab_size % block:
    logits = fused_linear.logits(hidden, layers.unembedding(weights))
    return vocabulary.only_tokens(logits, num_tokens)
  # A tied embedding is read block by block in the layout that it has: a product
  # that transposes it is slower by a quarter on a CPU.
  blocks = embedding.reshape(-1, _LOGITS_BLOCK, embedding.shape[-1])
  products = jnp.einsum(
    "dwe,nve->ndwv", hidden, blocks, preferred_element_type=jnp.float32
  )
  logits = jnp.moveaxis(products, 0, 2).reshape(*rows, vocab_size)
  logits = vocabulary.only_tokens(logits, num_tokens)
  # Transpose the logits once. Otherwise XLA would do so again for each pass
  # over them, which takes a seventh of a step.
  in_order = layout.Layout(tuple(range(logits.ndim)))
  return layout.with_layout_constraint(logits, in_order)


def _uniform(key, position):
  return jax.random.uniform(
    jax.random.fold_in(key, position), dtype=jnp.float32
  )
