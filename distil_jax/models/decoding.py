"""Decoding: one token further for every sample."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import qwen3, sharding
from distil_jax.models.qwen3 import Cache, Params


def empty_cache(prompt_cache: Cache, group_size: int, length: int) -> Cache:
  """Room for the completions of the prompts. Shape `[L, P, G, T, K, H]`."""
  num_layers, num_problems, _, *heads = prompt_cache.key.shape
  shape = (num_layers, num_problems, group_size, length, *heads)
  zeros = sharding.constrain(
    jnp.zeros(shape, prompt_cache.key.dtype),
    *(None, "batch", None, None, "kv_heads", "head_size"),
  )
  return Cache(key=zeros, value=zeros)


def decode(
  graphdef: nnx.GraphDef,
  params: Params,
  ids: jax.Array,
  step: jax.Array,
  prompt_cache: Cache,
  prompt_mask: jax.Array,
  cache: Cache,
) -> tuple[jax.Array, Cache]:
  """One token further for every sample.

  The prompt's keys and values are read in place by all samples of a group;
  softmax runs over prompt and completion together.

  Args:
    graphdef: from `make`.
    params: parameters.
    ids: the newest token of each sample. Shape `[P, G]`.
    step: its index within the completion. Scalar.
    prompt_cache: from `prefill`. `[L, P, S, K, H]`.
    prompt_mask: shape `[P, S]`.
    cache: completions so far. `[L, P, G, T, K, H]`.

  Returns:
    hidden states `[P, G, D]`, and the cache with this token in it.
  """
  model = qwen3.merge(graphdef, params)
  length = cache.key.shape[3]
  positions = jnp.sum(prompt_mask, axis=-1)[:, None] + step
  angles = model.angles(jnp.broadcast_to(positions, ids.shape))
  allowed = jnp.concatenate(
    [
      prompt_mask.astype(bool),
      jnp.broadcast_to(
        jnp.arange(length) <= step, (prompt_mask.shape[0], length)
      ),
    ],
    axis=-1,
  )

  def attend(query, key, value, cache, prompt, layer):
    where = (layer, 0, 0, step, 0, 0)

    def write(buffer, new):
      new = new[None, :, :, None].astype(buffer.dtype)
      return jax.lax.dynamic_update_slice(buffer, new, where)

    cache = Cache(key=write(cache.key, key), value=write(cache.value, value))
    own = jax.tree.map(lambda buffer: buffer[layer], cache)
    return _group_attention(query, prompt, own, allowed), cache

  graph, stacked = nnx.split(model.layers)

  def layer_fn(carry, inputs):
    x, cache = carry
    state, prompt, layer = inputs
    block = nnx.merge(graph, state)
    x, cache = block(x, angles, attend, cache, prompt, layer)
    return (sharding.constrain(x, "batch", None, None), cache), None

  layers = jnp.arange(model.config.num_layers)
  carry = (model.embed(ids), cache)
  (x, cache), _ = jax.lax.scan(layer_fn, carry, (stacked, prompt_cache, layers))
  return model.finish(x), cache


def _group_attention(query, prompt: Cache, own: Cache, allowed) -> jax.Array:
  """One query a sample, over the group's prompt and its own completion.

  Args:
    query: shape `[P, G, N, H]`.
    prompt: shape `[P, S, K, H]`.
    own: shape `[P, G, T, K, H]`.
    allowed: which of the S + T columns may be read. Shape `[P, S + T]`.

  Returns:
    Shape `[P, G, N, H]`.
  """
  num_problems, group_size, num_heads, head_size = query.shape
  num_kv_heads = prompt.key.shape[-2]
  grouped = query.reshape(
    num_problems, group_size, num_kv_heads, num_heads // num_kv_heads, head_size
  )
  grouped = grouped * jnp.asarray(head_size**-0.5, query.dtype)
  scores = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = jnp.concatenate(
    [
      scores("pgkrh,pskh->pgkrs", grouped, prompt.key),
      scores("pgkrh,pgtkh->pgkrt", grouped, own.key),
    ],
    axis=-1,
  )
  logits = jnp.where(allowed[:, None, None, None], logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
  from_prompt, from_own = jnp.split(weights, [prompt.key.shape[1]], axis=-1)
  attended = jnp.einsum("pgkrs,pskh->pgkrh", from_prompt, prompt.value)
  attended += jnp.einsum("pgkrt,pgtkh->pgkrh", from_own, own.value)
  return attended.reshape(query.shape)
