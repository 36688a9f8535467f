"""Builds inputs of programs that have shapes and shardings but no memory.

The devices of the mesh need not exist here. Programs that sample are traced
within `jax.set_mesh`. Building a training state is not, because optax creates
real arrays on the way.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from distil_jax.generation import sampler_state
from distil_jax.models import cached_forward, decoder, sharding
from distil_jax.ops import token_sampling
from distil_jax.planning import memory
from distil_jax.training import train_state as training_train_state
from distil_jax.types import TrainBatch


def params(shapes: decoder.Params, mesh: jax.sharding.Mesh) -> decoder.Params:
  """Returns parameters with their shardings for training.

  Raises:
    ValueError: The mesh does not shard a parameter evenly.
  """
  return _with_shardings(shapes, decoder.shardings(mesh, shapes))


def train_state(
  init: Callable[[decoder.Params], training_train_state.TrainState],
  shapes: decoder.Params,
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
) -> training_train_state.TrainState:
  """Returns the state of training that a function creates."""
  state = jax.eval_shape(init, shapes)
  return _with_shardings(
    state, training_train_state.state_shardings(state, mesh, optimizer)
  )


def batch(
  mesh: jax.sharding.Mesh,
  *,
  num_sequences: int,
  prompt_length: int,
  teacher_prompt_length: int,
  completion_length: int,
  has_tools: bool = False,
  num_turns: int = 1,
  list_size: int = 0,
  has_teachers: bool = False,
  has_taught_mask: bool = False,
) -> TrainBatch:
  """Returns the batch of a training step, with whole prompts of the teacher.

  Args:
    mesh: The mesh of the training step.
    num_sequences: B.
    prompt_length: S.
    teacher_prompt_length: Prompt length of the teacher. 0 means no teacher.
    completion_length: T.
    has_tools: True if completions contain the output of tools.
    num_turns: K, turns whose teachers have prompts of their own.
    list_size: C, of lists that come with the batch. 0 means none do.
    has_teachers: True if each sequence has one of several teachers.
    has_taught_mask: True if the teacher judges only some tokens.
  """
  by_row = sharding.sharding(mesh, "batch")

  def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    shape = (num_sequences, *shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=by_row)

  more = {}
  if has_taught_mask:
    more["taught_mask"] = rows(completion_length)
  if has_tools or num_turns > 1:
    more["student_mask"] = rows(completion_length)
  if num_turns > 1 and teacher_prompt_length:
    prompts = rows(num_turns - 1, teacher_prompt_length)
    more |= {
      "turn_numbers": rows(completion_length),
      "later_prompt_ids": prompts,
      "later_prompt_mask": prompts,
    }
  if list_size:
    shape = (completion_length, list_size)
    more |= {
      "teacher_candidate_ids": rows(*shape),
      "teacher_candidate_log_probs": rows(*shape, dtype=jnp.float32),
      "teacher_log_probs": rows(completion_length, dtype=jnp.float32),
    }
  return TrainBatch(
    **more,
    prompt_ids=rows(prompt_length),
    prompt_mask=rows(prompt_length),
    teacher_prompt_ids=rows(teacher_prompt_length),
    teacher_prompt_mask=rows(teacher_prompt_length),
    completion_ids=rows(completion_length),
    completion_mask=rows(completion_length),
    sample_mask=rows(),
    rewards=rows(dtype=jnp.float32),
    old_log_probs=rows(completion_length, dtype=jnp.float32),
    teacher_index=rows() if has_teachers else None,
  )


def weights(
  graphdef: nnx.GraphDef, shapes: decoder.Params, mesh: jax.sharding.Mesh
) -> cached_forward.Weights:
  """Returns the parameters in the layout that the sampler uses."""
  found = jax.eval_shape(lambda p: cached_forward.by_layer(graphdef, p), shapes)
  return _with_shardings(found, cached_forward.shardings(mesh, found))


def prompts(
  mesh: jax.sharding.Mesh,
  *,
  num_problems: int,
  group_size: int,
  prompt_length: int,
) -> tuple[Any, ...]:
  """Returns the positional arguments of `prefill.prefill` after weights."""
  by_row = sharding.sharding(mesh, "batch")
  everywhere = sharding.sharding(mesh)
  ids = jax.ShapeDtypeStruct(
    (num_problems, prompt_length), jnp.int32, sharding=by_row
  )
  # The dtype of keys depends on the generator in use, so it is taken from one.
  keys = jax.eval_shape(
    lambda: jax.random.split(jax.random.key(0), (num_problems, group_size))
  )
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=by_row)

  def scalar(x: Any) -> jax.ShapeDtypeStruct:
    dtype = np.asarray(x).dtype
    kind = jnp.int32 if np.issubdtype(dtype, np.integer) else jnp.float32
    return jax.ShapeDtypeStruct((), kind, sharding=everywhere)

  arrays = jax.tree.map(scalar, token_sampling.SamplingArrays())
  return ids, ids, keys, arrays, scalar(1)


def rollout_state(
  mesh: jax.sharding.Mesh,
  start: Callable[..., sampler_state.SamplerState],
  *arguments: Any,
) -> sampler_state.SamplerState:
  """Returns the state of a rollout, from the function that starts it."""
  state = jax.eval_shape(start, *arguments)
  caches = (state.prompts.cache, state.kv_cache.cache)
  # By identity, because another array may have the shape of a cache.
  cache_ids = {id(x) for x in jax.tree.leaves(caches)}

  def shard(x: Any) -> jax.ShapeDtypeStruct:
    axes = ("batch", *(None,) * (x.ndim - 1)) if x.ndim else ()
    if id(x) in cache_ids:
      axes = ("batch", "kv_heads", None, None)
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.sharding(mesh, *axes)
    )

  return jax.tree.map(shard, state)


def num_params(shapes: decoder.Params) -> int:
  """Returns the number of parameters of a network."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def cache_lengths(first: int, length: int) -> list[int]:
  """Returns the lengths that the KV cache has, one after the other.

  The engine doubles the cache when completions outgrow it.

  Args:
    first: Length at the start.
    length: Length of the longest completion.
  """
  found = [min(first, length)]
  while found[-1] < length:
    found.append(min(2 * found[-1], length))
  return found


def parts_of_state(state: sampler_state.SamplerState) -> dict[str, float]:
  """Returns the bytes of a rollout's state on a chip, part by part."""
  prompts = memory.tree_bytes(state.prompts.cache)
  completions = memory.tree_bytes(state.kv_cache.cache)
  return {
    "prompts' keys and values": prompts,
    "completions' keys and values": completions,
    "completions": memory.tree_bytes(state) - prompts - completions,
  }


def _with_shardings(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
