"""Prefill and decode steps with a KV cache.

Keys and values of a layer stand in one buffer with heads before time, which is
the layout that a batched product reads without a transposition. A prompt's keys
and values are stored once, and read once a step, for all samples of its group.
Each sample has a circular buffer of columns for its own tokens. All samples
write at the same index, so that a step writes one slice whatever the ages of
the samples are. A layer with a sliding window keeps and reads its window alone.

The layers are unrolled here, where passes over whole sequences scan them: a
scan would copy a layer's cache each time it takes it out of the stack.
"""

import dataclasses
import functools
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
  first_columns,
  prompt_columns,
  take,
)
from distil_jax.models.parameter_axes import parameter_axes
from distil_jax.models.prefix_attention import merge_parts

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
    # Scales of norms and routers act in float32, as in the passes over whole
    # sequences.
    is_exact = path[-1].key.endswith(("norm", "router"))
    return x if is_exact else x.astype(config.compute_dtype)

  whole = jax.tree_util.tree_map_with_path(cast, params)

  def layer(i):
    return {
      name: sharding.constrain(x[i], *parameter_axes(name, x.ndim - 1))
      for name, x in whole["layers"].items()
    }

  return {**whole, "layers": tuple(map(layer, range(config.num_layers)))}


def shardings(mesh: jax.sharding.Mesh, weights: Weights) -> Any:
  """Returns the `NamedSharding` of each array, in the same tree."""

  def sharding_of(name: str, x) -> jax.sharding.NamedSharding:
    return sharding.sharding(mesh, *parameter_axes(name, x.ndim))

  return {
    name: tuple(
      {k: sharding_of(k, x) for k, x in layer.items()} for layer in value
    )
    if name == "layers"
    else sharding_of(name, value)
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
  config = model.config
  ids = layers.pack(ids, mask)
  lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
  angles = model.angles(jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))

  def attend(window, query, key, value):
    attended = attention.causal(
      query,
      key,
      value,
      window=window,
      scale=config.attention_scale,
      implementation=config.attention,
    )
    return attended, (keep(window, key), keep(window, value))

  def keep(window, x):
    count = prompt_columns(x.shape[1], window)
    if count < x.shape[1]:
      columns = jnp.maximum(lengths - count, 0)[:, None]
      columns = columns + jnp.arange(count)[None]
      x = jnp.take_along_axis(x, columns[:, :, None, None], axis=1)
    return constrain_cache(jnp.swapaxes(x, 1, 2).astype(dtype))

  x = model.embed(ids)
  kept = []
  for layer, state in enumerate(weights["layers"]):
    window = config.window(layer)
    block = nnx.merge(graph, nnx.State(state))
    x, own = block(x, angles.of(window), functools.partial(attend, window))
    x = sharding.constrain(x, "batch", None, None)
    kept.append(own)
  keys, values = zip(*kept, strict=True)
  return PromptCache(
    cache=LayerCaches(keys=keys, values=values),
    lengths=lengths.reshape(num_parts, -1),
    windows=config.windows,
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
  config = model.config
  prompt_lengths = jnp.take_along_axis(prompts.lengths, prompt_index, axis=1)
  angles = model.angles(prompt_lengths + positions)

  def attend(layer, query, key, value):
    old_keys = kv_cache.cache.keys[layer]
    length = old_keys.shape[2]
    write_index = kv_cache.write_index % length

    def write(buffer, new):
      new = new.reshape(*buffer.shape[:2], 1, -1).astype(buffer.dtype)
      return jax.lax.dynamic_update_slice_in_dim(
        buffer, new, write_index, axis=2
      )

    keys = write(old_keys, key)
    values = write(kv_cache.cache.values[layer], value)
    grouped = _by_kv_head(query, keys.shape[1], config.logit_scale)
    # Steps since each column was written. A column older than the sample's
    # first token belongs to a sample that had the slot before, so it is masked.
    # A layer with a window has no column that is too old for it.
    steps_ago = (write_index - jnp.arange(length)) % length
    own_allowed = steps_ago[None] <= positions.reshape(-1, 1)
    own = _attend(grouped, keys, values, own_allowed[:, None])
    shared = _attend_prompts(
      grouped,
      prompts.cache.keys[layer],
      prompts.cache.values[layer],
      _allowed_of_prompts(prompts, layer, positions, in_flight),
      in_flight,
    )
    # Prompt and completion are separate buffers, so each has a softmax of its
    # own, and the two are merged by their denominators.
    outputs, log_sums = zip(own, shared, strict=True)
    attended = merge_parts(outputs, [x[..., 0] for x in log_sums])
    return attended.astype(query.dtype).reshape(query.shape), (keys, values)

  x = model.embed(ids)
  kept = []
  for layer, state in enumerate(weights["layers"]):
    block = nnx.merge(graph, nnx.State(state))
    x, own = block(
      x,
      angles.of(config.window(layer)),
      functools.partial(attend, layer),
    )
    x = sharding.constrain(x, "batch", None, None)
    kept.append(own)
  keys, values = zip(*kept, strict=True)
  kv_cache = dataclasses.replace(
    kv_cache,
    cache=LayerCaches(keys=keys, values=values),
    write_index=kv_cache.write_index + 1,
  )
  return model.finish(x), kv_cache


def _allowed_of_prompts(
  prompts: PromptCache,
  layer: int,
  positions: jax.Array,
  in_flight: PromptAssignment,
) -> jax.Array:
  """Returns which columns of the prompts may be read.

  Returns:
    Shape `[D * R, 1, S]`, or `[D * R, M, S]` in a layer with a window, where
    each sample reads other columns.
  """
  window = prompts.windows[layer]
  columns = jnp.arange(prompts.cache.keys[layer].shape[2])
  lengths = prompts.lengths.reshape(-1, 1)
  if window is None:
    return (columns[None] < lengths)[:, None]
  tokens = first_columns(prompts, layer).reshape(-1, 1) + columns[None]
  counted = tokens < lengths
  in_table = jnp.take_along_axis(positions, in_flight.samples, axis=1)
  newest = lengths + in_table.reshape(len(lengths), -1)
  is_near = tokens[:, None] > newest[:, :, None] - window
  return counted[:, None] & is_near


def num_tokens(graphdef: nnx.GraphDef, weights: Weights) -> int | None:
  """Returns `DecoderConfig.num_tokens` of a network."""
  return _merge_weights(graphdef, weights)[0].config.num_tokens


def _merge_weights(graphdef: nnx.GraphDef, weights: Weights):
  """Returns the network and the graph of one layer.

  The network holds the first layer in place of the stack; its own layers are
  not used.
  """
  model = layers.merge(graphdef, {**weights, "layers": weights["layers"][0]})
  return model, nnx.split(model.layers)[0]


def _by_kv_head(query: jax.Array, num_kv_heads: int, scale: float) -> jax.Array:
  """Scales queries `[D, W, N, H]` and groups them as `[D * W, K, N / K, H]`."""
  num_heads, head_size = query.shape[2:]
  query = query * jnp.asarray(scale, query.dtype)
  return query.reshape(-1, num_kv_heads, num_heads // num_kv_heads, head_size)


def _attend(query, keys, values, allowed):
  """Returns attention over some columns, and log Σ exp of its logits.

  Args:
    query: Scaled. Shape `[n, K, Q, H]`.
    keys, values: Shape `[n, K, T, H]`.
    allowed: True where a column may be read; may be False everywhere. Shape
      `[n, 1 or Q, T]`.

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
  scores = jnp.where(allowed[:, None], scores, -jnp.inf)
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
    allowed: True where a column may be read. Shape `[D * R, 1 or M, S]`.
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
  if allowed.shape[1] > 1:
    allowed = jnp.repeat(allowed, num_queries, axis=1)
  return jax.tree.map(by_sample, _attend(table, keys, values, allowed))
