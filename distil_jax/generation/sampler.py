"""Samples completions: prefill once, then one decode step after another.

G completions of each problem are requested as rows. A number of slots is
computed at once. A slot whose completion has ended takes the next waiting row,
on the device and in the same step. `generate` is all of it in one program; the
functions that it consists of let a host stop in between, look at the state and
make room (`engine`).

A completion depends only on its key, its prompt, its sampling settings and the
parameters: not on its slot, on the rows beside it or on when it starts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.generation import token_buffer
from distil_jax.generation.decode_step import admit_rows, decode_step
from distil_jax.generation.prefill import prefill
from distil_jax.generation.sampler_state import (
  SamplerSizes,
  SamplerState,
  assign_prompts,
  constrain,
  group_size_of,
)
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import cached_forward, kv_cache, layers, sharding
from distil_jax.types import Rollout, StopReason

# Decode steps after which the token buffer is sorted into the rows.
BUFFER_STEPS = 128


def generate(
  params: layers.Params,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  sampling: SamplingParams,
  *,
  graphdef: nnx.GraphDef,
  eos_ids: tuple[int, ...],
  pad_id: int,
) -> Rollout:
  """Samples G completions of each prompt, all at once, in one program.

  Pure; it may be part of another compiled function. It runs as long as the
  longest completion. `engine` samples more rows than there are slots.

  Args:
    params: Parameters of the student.
    prompt_ids: Left-padded, at least one token each. Shape `[P, S]`.
    prompt_mask: 1 where the token counts. Shape `[P, S]`.
    keys: From `random_keys.sample_keys`. Shape `[P, G]`.
    sampling: How tokens are chosen and how many; static under jit.
    graphdef: From `decoder.make`.
    eos_ids: Each of them ends a completion, as its last token.
    pad_id: Fills the completions after their end.

  Returns:
    The rollout, with the completions of a problem next to each other.

  Raises:
    ValueError: There are stop strings, which only the host can find.
  """
  if sampling.stop:
    raise ValueError(
      f"stop={sampling.stop!r} cannot be found on the device; sample with an "
      "Engine, or without stop strings"
    )
  length = sampling.max_tokens
  weights = cached_forward.by_layer(graphdef, params)
  state = prefill(
    weights,
    prompt_ids,
    prompt_mask,
    keys,
    sampling.arrays(),
    length,
    graphdef=graphdef,
    sizes=SamplerSizes(
      num_slots=keys.size,
      # A program cannot let its cache grow, so it is as long as a completion
      # can be.
      cache_length=length,
      max_completion_length=length,
    ),
  )
  state = advance(
    weights,
    state,
    graphdef=graphdef,
    eos_ids=eos_ids,
    buffer_length=length,
  )
  return finish(state, prompt_ids, prompt_mask, pad_id=pad_id)


def advance(
  weights: cached_forward.Weights,
  state: SamplerState,
  num_steps: Any = None,
  shrink_at: Any = 0,
  *,
  graphdef: nnx.GraphDef,
  eos_ids: tuple[int, ...],
  buffer_length: int = BUFFER_STEPS,
) -> SamplerState:
  """Runs decode steps until all rows are done or the host has to decide.

  Args:
    weights: From `cached_forward.by_layer`.
    state: A rollout that is under way; donate it.
    num_steps: Most decode steps; None means `buffer_length`.
    shrink_at: Stop when no row waits and no part has more slots alive.
    graphdef: From `decoder.make`.
    eos_ids: Tokens that end a completion.
    buffer_length: C, an upper limit of `num_steps`.

  Returns:
    The state once all rows are done, or so many steps are taken, or the
    longest completion in flight fills the KV cache, or slots can be given up.
  """
  first_step = state.num_steps
  cache_length = state.cache_length
  limit = buffer_length
  if num_steps is not None:
    limit = jnp.minimum(num_steps, limit)

  def continues(carry):
    state, _ = carry
    # All parts run in one loop, which goes on for the one with most to do.
    num_alive, num_waiting = (
      jnp.max(state.num_alive),
      jnp.max(state.num_waiting),
    )
    is_running = (num_alive > shrink_at) | (num_waiting > 0)
    has_room = state.longest < cache_length
    return is_running & has_room & (state.num_steps - first_step < limit)

  def step(carry):
    state, buffer = carry
    # Rows are admitted before the step: a slot whose row has ended would
    # otherwise stand idle for a step.
    state, entry = decode_step(
      weights, admit_rows(state), graphdef=graphdef, eos_ids=eos_ids
    )
    t = state.num_steps - first_step - 1
    buffer = jax.tree.map(
      lambda entries, x: jax.lax.dynamic_update_index_in_dim(entries, x, t, 0),
      buffer,
      entry,
    )
    return state, buffer

  blank = token_buffer.blank(
    buffer_length, *state.slots.rows.shape, num_rows=state.num_rows
  )
  state, buffer = jax.lax.while_loop(continues, step, (state, blank))
  completions = token_buffer.write_back(state.completions, buffer)
  return constrain(dataclasses.replace(state, completions=completions))


def resize(
  state: SamplerState, *, width: int, cache_length: int
) -> SamplerState:
  """Returns the state with fewer slots or a longer KV cache.

  Slots can be given up only if no row waits and no part has more of them alive.
  Prompts that no slot reads any longer are dropped then.

  Args:
    state: A rollout that is under way.
    width: New number of slots of each part.
    cache_length: New number of tokens that the KV cache can hold.
  """
  slots = state.slots
  # The sort is stable: slots that are alive come first and keep their order.
  order = jnp.argsort(~slots.is_alive, axis=1, stable=True)[:, :width]
  is_shrinking = width < slots.rows.shape[1]
  kept = jax.tree.map(
    lambda x: jax.vmap(lambda x, order: x[order])(x, order), slots
  )
  prompts = state.prompts
  num_prompts = prompts.lengths.shape[1]
  if is_shrinking and width < num_prompts:
    # Keep one prompt for each slot. Several slots may have the same prompt:
    # then all of them point to its first copy, and the others are unused.
    prompts = kv_cache.keep_prompts(prompts, kept.prompt_index)
    same = kept.prompt_index[:, :, None] == kept.prompt_index[:, None, :]
    kept = dataclasses.replace(
      kept, prompt_index=jnp.argmax(same, axis=2).astype(jnp.int32)
    )
  # Slots and prompts have moved, so who reads which prompt is found again.
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
  """Ends the rows in whose text the host has found a stop string.

  Args:
    state: A rollout that is under way; donate it.
    lengths: Tokens that a row keeps; negative for rows that go on. Shape
      `[D, N]`.
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
  """Returns the completions of a finished state as a rollout."""
  completions = state.completions
  length = completions.ids.shape[-1]
  counts = jnp.arange(length)[None, None] < completions.lengths[..., None]

  def flat(x):
    x = x.reshape(-1, *x.shape[2:])
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

  # Tokens after the end may be left over from before a stop string was found.
  return Rollout(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    completion_ids=flat(jnp.where(counts, completions.ids, pad_id)),
    completion_mask=flat(counts.astype(jnp.int32)),
    log_probs=flat(jnp.where(counts, completions.log_probs, 0.0)),
    behavior_log_probs=flat(
      jnp.where(counts, completions.behavior_log_probs, 0.0)
    ),
    stop_reasons=flat(completions.stop_reasons),
  )
