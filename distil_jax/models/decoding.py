"""Decoding: one token further for every sample in flight.

Keys and values stand in one buffer a layer, heads before time: this is what a
batched product reads without moving anything. A prompt's are stored once, and
read once a step, for all samples of its group; each sample has a ring of
columns for its own tokens. All rings are written at the same index, so that a
step writes one slice however old its samples are.

Layers are laid out one after the other, where the passes over whole sequences
scan them: a scan would copy a layer's cache each time it takes it out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import attention, decoder, sharding
from distil_jax.models.kv_cache import (
  KVCache,
  LayerCaches,
  PromptAssignment,
  PromptCache,
  placed,
  take,
)

Weights = dict[str, Any]


def by_layer(graphdef: nnx.GraphDef, params: decoder.Params) -> Weights:
  """Parameters as decoding wants them: layer by layer, in the compute dtype.

  Cast and cut once for a rollout, not once a token.

  Args:
    graphdef: from `qwen3.make`.
    params: of the network, layers stacked.
  """
  config = decoder.merge(graphdef, params).config

  def cast(path, x):
    # Scales of norms act in float32, here as in the passes over sequences.
    is_scale = path[-1].key.endswith("norm")
    return x if is_scale else x.astype(config.compute_dtype)

  whole = jax.tree_util.tree_map_with_path(cast, params)

  def layer(i):
    return {
      name: sharding.constrain(x[i], *decoder.AXES[name])
      for name, x in whole["layers"].items()
    }

  return {**whole, "layers": tuple(map(layer, range(config.num_layers)))}


def shardings(mesh: jax.sharding.Mesh, weights: Weights) -> Any:
  """`NamedSharding` of each array, same tree."""

  def place(name: str) -> jax.sharding.NamedSharding:
    return sharding.sharding(mesh, *decoder.AXES[name])

  return {
    name: tuple({k: place(k) for k in layer} for layer in value)
    if name == "layers"
    else place(name)
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
    graphdef: from `qwen3.make`.
    weights: from `by_layer`.
    ids: shape `[P, S]`.
    mask: 1 where the token counts; a row may have none. Shape `[P, S]`.
    num_parts: D, which divides P.
    dtype: of the keys and values that are kept.
  """
  model, graph = _merge_weights(graphdef, weights)
  ids = decoder.pack(ids, mask)
  angles = model.angles(jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))

  def attend(query, key, value):
    attended = attention.causal(
      query, key, value, implementation=model.config.attention
    )
    return attended, (key, value)

  def heads_first(x):
    return placed(jnp.swapaxes(x, 1, 2).astype(dtype))

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
  """One token further for every sample in flight.

  Args:
    graphdef: from `qwen3.make`.
    weights: from `by_layer`.
    ids: the newest token of each sample. Shape `[D, W]`.
    positions: how many of its tokens are in its cache; below T. `[D, W]`.
    prompt_index: which prompt it reads. Shape `[D, W]`.
    in_flight: from `members`.
    prompts: R in each part.
    kv_cache: the tokens before.

  Returns:
    hidden states `[D, W, D']` from which the next token is chosen, and the
    kv_cache with this token in them.
  """
  model, graph = _merge_weights(graphdef, weights)
  length = kv_cache.cache.keys[0].shape[2]
  before = jnp.take_along_axis(prompts.lengths, prompt_index, axis=1)
  angles = model.angles(before + positions)
  # How long ago a column was written; what is older is another sample's.
  ago = (kv_cache.write_index - jnp.arange(length)) % length
  own_allowed = ago[None] <= positions.reshape(-1, 1)
  prompt_length = prompts.cache.keys[0].shape[2]
  prompt_allowed = jnp.arange(prompt_length)[None] < prompts.lengths.reshape(
    -1, 1
  )

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
    read, log_sums = zip(own, shared, strict=True)
    attended = attention.merge_parts(read, [x[..., 0] for x in log_sums])
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
  """The network, with its first layer for all, and the graph of a layer."""
  model = decoder.merge(graphdef, {**weights, "layers": weights["layers"][0]})
  return model, nnx.split(model.layers)[0]


def _by_kv_head(query: jax.Array, num_kv_heads: int) -> jax.Array:
  """Scaled queries of `[D, W, N, H]`, as `[D * W, K, N / K, H]`."""
  num_heads, head_size = query.shape[2:]
  query = query * jnp.asarray(head_size**-0.5, query.dtype)
  return query.reshape(-1, num_kv_heads, num_heads // num_kv_heads, head_size)


def _attend(query, keys, values, allowed):
  """Attention over some columns, and the log of its softmax's denominator.

  Args:
    query: scaled. Shape `[n, K, Q, H]`.
    keys, values: shape `[n, K, T, H]`.
    allowed: which columns may be read; perhaps none. Shape `[n, T]`.

  Returns:
    what is read `[n, K, Q, H]`, 0 where nothing may be, and the log-sum-exp of
    the scores `[n, K, Q, 1]`, -inf there. Both float32.
  """
  scores = jnp.einsum(
    "nkqh,nkth->nkqt",
    query.astype(keys.dtype),
    keys,
    preferred_element_type=jnp.float32,
  )
  scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  largest = jnp.maximum(largest, jnp.finfo(jnp.float32).min)
  exponentials = jnp.exp(scores - largest)
  total = jnp.sum(exponentials, axis=-1, keepdims=True)
  read = jnp.einsum(
    "nkqt,nkth->nkqh",
    exponentials.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  read = read / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
  return read, largest + jnp.log(total)


def _attend_prompts(query, keys, values, allowed, in_flight: PromptAssignment):
  """The same over the prompts, each read once for all its samples.

  Args:
    query: scaled. Shape `[D * W, K, Q, H]`.
    keys, values: shape `[D * R, K, S, H]`.
    allowed: shape `[D * R, S]`.
    in_flight: who reads which.
  """
  num_prompts, num_kv_heads = keys.shape[:2]
  num_queries = query.shape[2]
  num_places = in_flight.samples.shape[1]

  def by_prompt(x):
    x = x.reshape(num_prompts, -1, *x.shape[1:])
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(num_prompts, num_kv_heads, -1, x.shape[-1])

  def by_sample(x):
    x = x.reshape(num_prompts, num_kv_heads, -1, num_queries, x.shape[-1])
    x = jnp.swapaxes(x, 1, 2)
    x = x.reshape(-1, num_kv_heads, num_queries, x.shape[-1])
    # Who is in no lane may read anything: it is no longer alive.
    return take(x, jnp.minimum(in_flight.places, num_places - 1))

  table = by_prompt(take(query, in_flight.samples))
  return jax.tree.map(by_sample, _attend(table, keys, values, allowed))
