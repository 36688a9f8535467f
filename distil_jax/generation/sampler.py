"""Sampling completions: prompts are read once, then tokens are chosen.

What is asked for is a number of rows, G for each problem; what is computed at
once is a number of slots. A slot whose completion has ended takes the next row
that waits, on the device and in the same step. `generate` is the whole of it in
one program; the functions that it is made of let a host stop in between, look,
and make room (`engine`).

A completion depends on its key, its prompt, its settings and the parameters
alone: not on the slot, on who is beside it or on when it is taken up.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.generation import token_buffer
from distil_jax.generation.decode_step import (
  admit_rows,
  assign_prompts,
  decode_step,
)
from distil_jax.generation.prefill import prefill
from distil_jax.generation.sampler_state import (
  SamplerState,
  constrain,
  group_size_of,
)
from distil_jax.models import decoder, decoding, kv_cache, sharding
from distil_jax.ops import sampling
from distil_jax.types import Rollout, StopReason

# Tokens that slots choose before what they chose is sorted in.
BUFFER_STEPS = 128


def generate(
  params: decoder.Params,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  max_completion_length: int,
  eos_ids: tuple[int, ...],
  pad_id: int,
  choice: sampling.Choice | None = None,
  cache_dtype: Any = None,
) -> Rollout:
  """Samples G completions of each prompt, all at once, in one program.

  Pure; it may stand inside another compiled function. Runs as long as the
  longest completion; see `engine` for more rows than slots.

  Args:
    params: the student's parameters.
    prompt_ids: left-padded, at least one token each. Shape `[P, S]`.
    prompt_mask: shape `[P, S]`.
    keys: from `sample_keys`. Shape `[P, G]`.
    graphdef: from `qwen3.make`.
    max_completion_length: T.
    eos_ids: any of them ends a completion, and is its last token.
    pad_id: what stands after the end.
    choice: how tokens are chosen; scalars, or shape `[P, G]`. None: as the
      policy says, at temperature 1.
    cache_dtype: of keys and values; None for that of the activations.

  Returns:
    the rollout; members of a group stand in a row.
  """
  weights = decoding.by_layer(graphdef, params)
  state = prefill(
    weights,
    prompt_ids,
    prompt_mask,
    keys,
    choice or sampling.Choice(),
    max_completion_length,
    graphdef=graphdef,
    num_slots=keys.size,
    cache_length=max_completion_length,
    max_completion_length=max_completion_length,
    cache_dtype=cache_dtype,
  )
  state = advance(
    weights,
    state,
    graphdef=graphdef,
    eos_ids=eos_ids,
    buffer_length=max_completion_length,
  )
  return finish(state, prompt_ids, prompt_mask, pad_id=pad_id)


def advance(
  weights: decoding.Weights,
  state: SamplerState,
  num_steps: Any = None,
  shrink_at: Any = 0,
  *,
  graphdef: nnx.GraphDef,
  eos_ids: tuple[int, ...],
  buffer_length: int = BUFFER_STEPS,
) -> SamplerState:
  """Chooses tokens until all rows are done, or the host has to look.

  Args:
    weights: from `decoding.by_layer`.
    state: donate it.
    num_steps: at most so many tokens for each slot; None: `buffer_length`.
    shrink_at: stops when nothing waits and no part has more slots at work.
    graphdef: from `qwen3.make`.
    eos_ids: any of them ends a completion.
    buffer_length: C, more steps are not taken.

  Returns:
    the state, where all rows are done, or so many steps are taken, or the
    longest completion in flight fills its ring, or it can shrink.
  """
  first = state.num_steps
  cache_length = state.kv_cache.cache.keys[0].shape[2]
  limit = buffer_length
  if num_steps is not None:
    limit = jnp.minimum(num_steps, limit)

  def goes_on(carry):
    state, _ = carry
    num_alive, num_waiting = (
      jnp.max(state.num_alive),
      jnp.max(state.num_waiting),
    )
    is_running = (num_alive > shrink_at) | (num_waiting > 0)
    has_room = state.longest < cache_length
    return is_running & has_room & (state.num_steps - first < limit)

  def step(carry):
    state, buffer = carry
    state, entry = decode_step(
      weights, admit_rows(state), graphdef=graphdef, eos_ids=eos_ids
    )
    t = state.num_steps - first - 1
    buffer = jax.tree.map(
      lambda book, x: jax.lax.dynamic_update_index_in_dim(book, x, t, 0),
      buffer,
      entry,
    )
    return state, buffer

  blank = token_buffer.blank(
    buffer_length, *state.slots.rows.shape, num_rows=state.num_rows
  )
  state, buffer = jax.lax.while_loop(goes_on, step, (state, blank))
  completions = token_buffer.write_back(state.completions, buffer)
  return constrain(dataclasses.replace(state, completions=completions))


def resize(
  state: SamplerState, *, width: int, cache_length: int
) -> SamplerState:
  """Fewer slots, or longer rings.

  Fewer slots only where no row waits and no part has more at work; prompts
  that nobody reads any longer are let go of then.

  Args:
    state: under way.
    width: slots of each part from now on.
    cache_length: tokens that can be looked back at.
  """
  slots = state.slots
  # Those at work come first, in the order in which they stand.
  order = jnp.argsort(~slots.is_alive, axis=1, stable=True)[:, :width]
  is_shrinking = width < slots.rows.shape[1]
  kept = jax.tree.map(
    lambda x: jax.vmap(lambda x, order: x[order])(x, order), slots
  )
  prompts = state.prompts
  num_prompts = prompts.lengths.shape[1]
  if is_shrinking and width < num_prompts:
    # A prompt for each slot; several of them may be the same.
    prompts = kv_cache.keep_prompts(prompts, kept.prompt_index)
    first = kept.prompt_index[:, :, None] == kept.prompt_index[:, None, :]
    kept = dataclasses.replace(
      kept, prompt_index=jnp.argmax(first, axis=2).astype(jnp.int32)
    )
  group_size = group_size_of(state)
  return constrain(
    dataclasses.replace(
      state,
      slots=kept,
      in_flight=assign_prompts(kept, prompts, group_size=group_size),
      prompts=prompts,
      kv_cache=kv_cache.resize_cache(state.kv_cache, order, cache_length),
    )
  )


def stop(state: SamplerState, lengths: jax.Array) -> SamplerState:
  """Ends rows at what the host found in their text.

  Args:
    state: donate it.
    lengths: tokens that the row keeps; negative where nothing was found.
      Shape `[D, N]`.
  """
  is_found = lengths >= 0
  completions = state.completions
  completions = dataclasses.replace(
    completions,
    lengths=jnp.where(is_found, lengths, completions.lengths),
    stop_reasons=jnp.where(
      is_found, StopReason.STOP_STRING, completions.stop_reasons
    ),
  )
  slots = state.slots
  is_stopped = jnp.take_along_axis(is_found, slots.rows, axis=1)
  slots = dataclasses.replace(slots, is_alive=slots.is_alive & ~is_stopped)
  return constrain(
    dataclasses.replace(state, completions=completions, slots=slots)
  )


def finish(
  state: SamplerState,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  *,
  pad_id: int,
) -> Rollout:
  """What has been sampled, as the rest of the package knows it."""
  found = state.completions
  length = found.ids.shape[-1]
  counts = jnp.arange(length)[None, None] < found.lengths[..., None]

  def flat(x):
    x = x.reshape(-1, *x.shape[2:])
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

  return Rollout(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    completion_ids=flat(jnp.where(counts, found.ids, pad_id)),
    completion_mask=flat(counts.astype(jnp.int32)),
    log_probs=flat(jnp.where(counts, found.log_probs, 0.0)),
    behavior_log_probs=flat(jnp.where(counts, found.behavior_log_probs, 0.0)),
    stop_reasons=flat(found.stop_reasons),
  )
