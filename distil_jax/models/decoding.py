"""Prefill and decode steps with a KV cache.

Keys and values of a layer stand in one buffer with heads before time, which is
the layout that a batched product reads without a transposition. A prompt's keys
and values are stored once, and read once a step, for all samples of its group.
Each sample has a circular buffer of columns for its own tokens. All samples
write at the same index, so that a step writes one slice whatever the ages of
the samples are.

The layers are unrolled here, where passes over whole sequences scan them: a
scan would copy a layer's cache each time it takes it out of the stack.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import attention, layers, sharding
from distil_jax.models.kv_cache import (
  KVCache,
  LayerCaches,
  PromptAssignment,
  PromptCache,
  constrain_cache,
  take,
)

Weights = dict[str, Any]


def by_layer(graphdef: nnx.GraphDef, params: layers.Params) -> Weights:
  """Returns the parameters layer by layer and in the compute dtype.

  They are cast and split once for a rollout, not once a token.

  Args:
    graphdef: From `decoder.make`.
    params: Parameters of the network, with stacked layers.
  """
  config = layers.merge(graphdef, params).config

  def cast(path, x):
    # Scales of norms act in float32, as in the passes over whole sequences.
    is_scale = path[-1].key.endswith("norm")
    return x if is_scale else x.astype(config.compute_dtype)

  whole = jax.tree_util.tree_map_with_path(cast, params)

  def layer(i):
    return {
      name: sharding.constrain(x[i], *layers.PARAMETER_AXES[name])
      for name, x in whole["layers"].items()
    }

  return {**whole, "layers": tuple(map(layer, range(config.num_layers)))}


def shardings(mesh: jax.sharding.Mesh, weights: Weights) -> Any:
  """Returns the `NamedSharding` of each array, in the same tree."""

  def sharding_of(name: str) -> jax.sharding.NamedSharding:
    return sharding.sharding(mesh, *layers.PARAMETER_AXES[name])

  return {
    name: tuple({k: sharding_of(k) for k in layer} for layer in value)
    if name == "layers"
    else sharding_of(name)
    for name, value in weights.items()
  }


def prefill(
  graphdef: nnx.GraphDef,
  weights: Weights,
  ids: jax.Array,
  mask: jax.Array,
  *,
  num_parts: int,
  dtype: Any,
) -> PromptCache:
  """Reads prompts and keeps their keys and values.

  Args:
    graphdef: From `decoder.make`.
    weights: From `by_layer`.
    ids: Shape `[P, S]`.
    mask: 1 where the token counts; a row may have none. Shape `[P, S]`.
    num_parts: D, which divides P.
    dtype: Type of the keys and values that are kept.
  """
  model, graph = _merge_weights(graphdef, weights)
  ids = layers.pack(ids, mask)
  angles = model.angles(jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))

  def attend(query, key, value):
    attended = attention.causal(
      query, key, value, implementation=model.config.attention
    )
    return attended, (key, value)

  def heads_first(x):
    return constrain_cache(jnp.swapaxes(x, 1, 2).astype(dtype))

  x = model.embed(ids)
  keys, values = [], []
  for state in weights["layers"]:
    x, (key, value) = nnx.merge(graph, nnx.State(state))(x, angles, attend)
    x = sharding.constrain(x, "batch", None, None)
    keys.append(heads_first(key))
    values.append(heads_first(value))
  return PromptCache(
    cache=LayerCaches(keys=tuple(keys), values=tuple(values)),
    lengths=jnp.sum(mask, axis=1, dtype=jnp.int32).reshape(num_parts, -1),
  )


def decode(
  graphdef: nnx.GraphDef,
  weights: Weights,
  ids: jax.Array,
  positions: jax.Array,
  prompt_index: jax.Array,
  in_flight: PromptAssignment,
  prompts: PromptCache,
  kv_cache: KVCache,
) -> tuple[jax.Array, KVCache]:
  """Runs the network on the newest token of every sample in flight.

  Args:
    graphdef: From `decoder.make`.
    weights: From `by_layer`.
    ids: The newest token of each sample. Shape `[D, W]`.
    positions: Number of the sample's tokens in the KV cache; below T. `[D, W]`.
    prompt_index: Prompt that each sample reads. Shape `[D, W]`.
    in_flight: From `kv_cache.assign_prompts`.
    prompts: R prompts in each part.
    kv_cache: Keys and values of the earlier tokens.

  Returns:
    Hidden states `[D, W, D']` from which the next token is chosen, and the KV
    cache with the newest token in it.
  """
  model, graph = _merge_weights(graphdef, weights)
  length = kv_cache.cache.keys[0].shape[2]
  prompt_lengths = jnp.take_along_axis(prompts.lengths, prompt_index, axis=1)
  angles = model.angles(prompt_lengths + positions)
  # Steps since each column was written. A column older than the sample's first
  # token belongs to a sample that had the slot before, so it is masked.
  steps_ago = (kv_cache.write_index - jnp.arange(length)) % length
  own_allowed = steps_ago[None] <= positions.reshape(-1, 1)
  prompt_columns = jnp.arange(prompts.cache.keys[0].shape[2])
  prompt_allowed = prompt_columns[None] < prompts.lengths.reshape(-1, 1)

  def attend(query, key, value, layer):
    def write(buffer, new):
      new = new.reshape(*buffer.shape[:2], 1, -1).astype(buffer.dtype)
      return jax.lax.dynamic_update_slice_in_dim(
        buffer, new, kv_cache.write_index, axis=2
      )

    keys = write(kv_cache.cache.keys[layer], key)
    values = write(kv_cache.cache.values[layer], value)
    grouped = _by_kv_head(query, keys.shape[1])
    own = _attend(grouped, keys, values, own_allowed)
    shared = _attend_prompts(
      grouped,
      prompts.cache.keys[layer],
      prompts.cache.values[layer],
      prompt_allowed,
      in_flight,
    )
    # Prompt and completion are separate buffers, so each has a softmax of its
    # own, and the two are merged by their denominators.
    outputs, log_sums = zip(own, shared, strict=True)
    attended = attention.merge_parts(outputs, [x[..., 0] for x in log_sums])
    return attended.astype(query.dtype).reshape(query.shape), (keys, values)

  x = model.embed(ids)
  kept = []
  for layer, state in enumerate(weights["layers"]):
    block = nnx.merge(graph, nnx.State(state))
    x, own = block(x, angles, attend, layer)
    x = sharding.constrain(x, "batch", None, None)
    kept.append(own)
  keys, values = zip(*kept, strict=True)
  kv_cache = KVCache(
    cache=LayerCaches(keys=keys, values=values),
    write_index=(kv_cache.write_index + 1) % length,
  )
  return model.finish(x), kv_cache


def _merge_weights(graphdef: nnx.GraphDef, weights: Weights):
  """Returns the network and the graph of one layer.

  The network holds the first layer in place of the stack; its own layers are
  not used.
  """
  model = layers.merge(graphdef, {**weights, "layers": weights["layers"][0]})
  return model, nnx.split(model.layers)[0]


def _by_kv_head(query: jax.Array, num_kv_heads: int) -> jax.Array:
  """Scales queries `[D, W, N, H]` and groups them as `[D * W, K, N / K, H]`."""
  num_heads, head_size = query.shape[2:]
  query = query * jnp.asarray(head_size**-0.5, query.dtype)
  return query.reshape(-1, num_kv_heads, num_heads // num_kv_heads, head_size)


def _attend(query, keys, values, allowed):
  """Returns attention over some columns, and log Σ exp of its logits.

  Args:
    query: Scaled. Shape `[n, K, Q, H]`.
    keys, values: Shape `[n, K, T, H]`.
    allowed: True where a column may be read; may be False everywhere. Shape
      `[n, T]`.

  Returns:
    The attention output `[n, K, Q, H]`, 0 for a row without allowed columns,
    and log Σ exp of its logits `[n, K, Q, 1]`, -inf there. Both float32.
  """
  scores = jnp.einsum(
    "nkqh,nkth->nkqt",
    query.astype(keys.dtype),
    keys,
    preferred_element_type=jnp.float32,
  )
  scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
  # A finite maximum and a positive denominator keep rows without any allowed
  # column free of NaN.
  largest = jnp.max(scores, axis=-1, keepdims=True)
  largest = jnp.maximum(largest, jnp.finfo(jnp.float32).min)
  exponentials = jnp.exp(scores - largest)
  total = jnp.sum(exponentials, axis=-1, keepdims=True)
  output = jnp.einsum(
    "nkqt,nkth->nkqh",
    exponentials.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  output = output / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
  return output, largest + jnp.log(total)


def _attend_prompts(query, keys, values, allowed, in_flight: PromptAssignment):
  """Returns `_attend` over the prompts, each read once for all its samples.

  Args:
    query: Scaled. Shape `[D * W, K, Q, H]`.
    keys, values: Shape `[D * R, K, S, H]`.
    allowed: True where a column counts. Shape `[D * R, S]`.
    in_flight: Table of the samples of each prompt.
  """
  num_prompts, num_kv_heads = keys.shape[:2]
  num_queries = query.shape[2]
  table_size = in_flight.samples.shape[1]

  # The queries of all samples of a prompt become the queries of one row, so
  # that one product reads the prompt's keys for all of them.
  def by_prompt(x):
    x = x.reshape(num_prompts, -1, *x.shape[1:])
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(num_prompts, num_kv_heads, -1, x.shape[-1])

  def by_sample(x):
    x = x.reshape(num_prompts, num_kv_heads, -1, num_queries, x.shape[-1])
    x = jnp.swapaxes(x, 1, 2)
    x = x.reshape(-1, num_kv_heads, num_queries, x.shape[-1])
    # A sample outside the table is no longer alive, so it may read any row.
    return take(x, jnp.minimum(in_flight.table_index, table_size - 1))

  table = by_prompt(take(query, in_flight.samples))
  return jax.tree.map(by_sample, _attend(table, keys, values, allowed))
