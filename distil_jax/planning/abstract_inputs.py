"""Arguments of a run's programs as shapes with shardings, holding no memory.

Devices of the mesh need not be here. What samples is called with the mesh in
use (`jax.set_mesh`); what trains is not, for optax makes arrays on the way.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from distil_jax.generation import engine, sampler_state
from distil_jax.models import decoder, decoding, sharding
from distil_jax.ops import sampling
from distil_jax.planning import memory
from distil_jax.training import train_state as training_train_state
from distil_jax.types import TrainBatch


def params(shapes: decoder.Params, mesh: jax.sharding.Mesh) -> decoder.Params:
  """Parameters where they live while training.

  Raises:
    ValueError: the mesh does not cut one of them evenly.
  """
  return _placed(shapes, decoder.shardings(mesh, shapes))


def train_state(
  init: Callable[[decoder.Params], training_train_state.TrainState],
  shapes: decoder.Params,
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
) -> training_train_state.TrainState:
  """What one training step hands to the next; `init` makes the first."""
  state = jax.eval_shape(init, shapes)
  return _placed(
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
) -> TrainBatch:
  """What a training step learns from; whole teacher's prompts.

  Args:
    mesh: the mesh in use.
    num_sequences: B.
    prompt_length: S.
    teacher_prompt_length: S'; 0: there is no teacher.
    completion_length: T.
    has_tools: not all of a completion's tokens are the student's.
  """
  place = sharding.sharding(mesh, "batch")

  def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    shape = (num_sequences, *shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  return TrainBatch(
    prompt_ids=rows(prompt_length),
    prompt_mask=rows(prompt_length),
    teacher_prompt_ids=rows(teacher_prompt_length),
    teacher_prompt_mask=rows(teacher_prompt_length),
    completion_ids=rows(completion_length),
    completion_mask=rows(completion_length),
    sample_mask=rows(),
    rewards=rows(dtype=jnp.float32),
    old_log_probs=rows(completion_length, dtype=jnp.float32),
    student_mask=rows(completion_length) if has_tools else None,
  )


def weights(
  graphdef: nnx.GraphDef, shapes: decoder.Params, mesh: jax.sharding.Mesh
) -> decoding.Weights:
  """The parameters as they are sampled from."""
  found = jax.eval_shape(lambda p: decoding.by_layer(graphdef, p), shapes)
  return _placed(found, decoding.shardings(mesh, found))


def prompts(
  mesh: jax.sharding.Mesh,
  *,
  num_problems: int,
  group_size: int,
  prompt_length: int,
) -> tuple[Any, ...]:
  """What `prefill.prefill` takes between weights and keywords."""
  place = sharding.sharding(mesh, "batch")
  everywhere = sharding.sharding(mesh)
  ids = jax.ShapeDtypeStruct(
    (num_problems, prompt_length), jnp.int32, sharding=place
  )
  keys = jax.eval_shape(
    lambda: jax.random.split(jax.random.key(0), (num_problems, group_size))
  )
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=place)

  def scalar(x: Any) -> jax.ShapeDtypeStruct:
    dtype = np.asarray(x).dtype
    kind = jnp.int32 if np.issubdtype(dtype, np.integer) else jnp.float32
    return jax.ShapeDtypeStruct((), kind, sharding=everywhere)

  arrays = jax.tree.map(scalar, sampling.SamplingArrays())
  return ids, ids, keys, arrays, scalar(1)


def rollout_state(
  mesh: jax.sharding.Mesh,
  start: Callable[..., sampler_state.SamplerState],
  *arguments: Any,
) -> sampler_state.SamplerState:
  """A rollout under way, from the function that begins it."""
  state = jax.eval_shape(start, *arguments)
  caches = (state.prompts.cache, state.kv_cache.cache)
  kept = {id(x) for x in jax.tree.leaves(caches)}

  def place(x: Any) -> jax.ShapeDtypeStruct:
    axes = ("batch", *(None,) * (x.ndim - 1)) if x.ndim else ()
    if id(x) in kept:
      axes = ("batch", "kv_heads", None, None)
    found = sharding.sharding(mesh, *axes)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=found)

  return jax.tree.map(place, state)


def num_params(shapes: decoder.Params) -> int:
  """Of a network."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def rings(length: int) -> list[int]:
  """The lengths that rings have, one after the other, as `engine` makes them.

  Args:
    length: the longest completion.
  """
  found = [min(engine.FIRST_CACHE_LENGTH, length)]
  while found[-1] < length:
    found.append(min(2 * found[-1], length))
  return found


def parts_of(state: sampler_state.SamplerState) -> dict[str, float]:
  """Bytes of a rollout under way, on a chip."""
  prompts = memory.of_tree(state.prompts.cache)
  completions = memory.of_tree(state.kv_cache.cache)
  return {
    "prompts' keys and values": prompts,
    "completions' keys and values": completions,
    "completions": memory.of_tree(state) - prompts - completions,
  }


def _placed(shapes: Any, places: Any) -> Any:
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    places,
  )
