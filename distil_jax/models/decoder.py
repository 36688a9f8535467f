"""A Qwen3-architecture decoder: a graph definition and a tree of parameters.

`make` splits the Flax module once; every function below takes the graph
definition (static) and the parameters, and is pure. Layers are stacked on a
leading axis and scanned, so that compile time does not grow with depth.

Positions come from the mask, never from the column: token i of a row stands at
position (number of tokens that count before it). A row may therefore be padded
on either side, or have a hole between prompt and completion; its tokens are
packed to the front before the first layer, so that layers need no mask.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from distil_jax.models import attention, sharding
from distil_jax.models.decoder_config import DecoderConfig

Params = dict[str, Any]
# (query, key, value, ...) -> what attention reads, and what to keep.
Attend = Callable[..., tuple[jax.Array, Any]]

AXES: Mapping[str, sharding.LogicalAxes] = {
  "attention_norm": (None,),
  "query": ("embed", "heads", "head_size"),
  "key": ("embed", "kv_heads", "head_size"),
  "value": ("embed", "kv_heads", "head_size"),
  "query_norm": (None,),
  "key_norm": (None,),
  "output": ("heads", "head_size", "embed"),
  "mlp_norm": (None,),
  "gate": ("embed", "mlp"),
  "up": ("embed", "mlp"),
  "down": ("mlp", "embed"),
  "embedding": ("vocab", "embed"),
  "norm": (None,),
  "unembedding": ("embed", "vocab"),
}


@struct.dataclass
class Cache:
  """Keys and values of every layer.

  For prompts, stored once for a group: `[L, P, S, K, H]`. For completions:
  `[L, P, G, T, K, H]`.
  """

  key: jax.Array
  value: jax.Array


@struct.dataclass
class Prefix:
  """What several rows begin with.

  Attributes:
    cache: column i holds a prefix's i-th token. `[L, P, S0, K, H]`.
    lengths: tokens of each. Shape `[P]`.
  """

  cache: Cache
  lengths: jax.Array


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """Root-mean-square norm over the last axis, computed in float32."""
  full = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(full), axis=-1, keepdims=True)
  normed = full * jax.lax.rsqrt(mean_square + epsilon)
  scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
  return (normed * scale).astype(x.dtype)


def rope_angles(
  positions: jax.Array, head_size: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of the rotary angles, each `[..., 1, H/2]`, float32."""
  exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
  wavelengths = jnp.expand_dims(theta**exponents, range(positions.ndim))
  angles = positions[..., None].astype(jnp.float32) / wavelengths
  return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary embedding of `x` `[..., N, H]`; pairs are the two halves of H."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Block(nnx.Module):
  """One layer: grouped-query attention with normed heads, gated MLP."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    c = config
    weight = functools.partial(_weight, c, rngs)
    self.config = c
    self.attention_norm = _scale(c, c.width)
    self.query = weight(c.width, c.num_heads, c.head_size)
    self.key = weight(c.width, c.num_kv_heads, c.head_size)
    self.value = weight(c.width, c.num_kv_heads, c.head_size)
    self.query_norm = _scale(c, c.head_size)
    self.key_norm = _scale(c, c.head_size)
    self.output = weight(c.num_heads, c.head_size, c.width)
    self.mlp_norm = _scale(c, c.width)
    self.gate = weight(c.width, c.mlp_size)
    self.up = weight(c.width, c.mlp_size)
    self.down = weight(c.mlp_size, c.width)

  def __call__(self, x, angles, attend, *extra):
    """Runs the layer on `x` `[..., D]`.

    `attend(query, key, value, *extra)` returns what attention reads, and
    whatever the caller wants to keep (a cache).
    """
    dtype, epsilon = x.dtype, self.config.norm_epsilon
    normed = rms_norm(x, self.attention_norm[...], epsilon)
    query = jnp.einsum("...d,dnh->...nh", normed, self.query[...].astype(dtype))
    key = jnp.einsum("...d,dkh->...kh", normed, self.key[...].astype(dtype))
    value = jnp.einsum("...d,dkh->...kh", normed, self.value[...].astype(dtype))
    query = rotate(rms_norm(query, self.query_norm[...], epsilon), angles)
    key = rotate(rms_norm(key, self.key_norm[...], epsilon), angles)
    attended, kept = attend(query, key, value, *extra)
    output = self.output[...].astype(dtype)
    # As one matrix: XLA would turn `nh,nhd->d` round at each call.
    attended = attended.reshape(*x.shape[:-1], -1)
    x = x + attended @ output.reshape(-1, x.shape[-1])
    normed = rms_norm(x, self.mlp_norm[...], epsilon)
    gate = jax.nn.silu(normed @ self.gate[...].astype(dtype))
    up = normed @ self.up[...].astype(dtype)
    return x + (gate * up) @ self.down[...].astype(dtype), kept


class Decoder(nnx.Module):
  """Embedding, stacked blocks, final norm; the unembedding where untied."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embedding = _weight(config, rngs, config.vocab_size, config.width)

    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
      return Block(config, rngs=rngs)

    self.layers = stack(rngs.split(config.num_layers))
    self.norm = _scale(config, config.width)
    if not config.tie_embeddings:
      self.unembedding = _weight(config, rngs, config.width, config.vocab_size)

  def embed(self, ids: jax.Array, sequence: str | None = None) -> jax.Array:
    """Embeddings of ids `[B, S]`, `[B, S, D]`.

    Devices look up their part of D for all rows of a copy, and exchange it for
    all of D of their own rows: one axis of the mesh at a time, without which
    XLA would have every row on every device on the way.

    Args:
      ids: shape `[B, S]`.
      sequence: logical axis of S.
    """
    ids = sharding.constrain(ids, "copies", None)
    x = self.embedding[...].astype(self.config.compute_dtype)[ids]
    x = sharding.constrain(x, "copies", None, "embed")
    x = sharding.constrain(x, "batch", None, "embed_by_context")
    return sharding.constrain(x, "batch", sequence, None)

  def angles(self, positions: jax.Array):
    return rope_angles(positions, self.config.head_size, self.config.rope_theta)

  def finish(self, x: jax.Array) -> jax.Array:
    return rms_norm(x, self.norm[...], self.config.norm_epsilon)


def _weight(config: DecoderConfig, rngs: nnx.Rngs, *shape: int) -> nnx.Param:
  init = jax.nn.initializers.normal(0.02)
  return nnx.Param(init(rngs.params(), shape, jnp.dtype(config.param_dtype)))


def _scale(config: DecoderConfig, size: int) -> nnx.Param:
  return nnx.Param(jnp.ones(size, jnp.dtype(config.param_dtype)))


def make(config: DecoderConfig) -> tuple[nnx.GraphDef, Params]:
  """Splits the network once: its graph definition and its parameters' shapes.

  Returns:
    the graph definition (hashable, static under jit) and a nested dictionary
    of `jax.ShapeDtypeStruct`.
  """
  abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  graphdef, params, _ = nnx.split(abstract, nnx.Param, ...)
  return graphdef, nnx.to_pure_dict(params)


def init(config: DecoderConfig, key: jax.Array) -> Params:
  """Random parameters."""
  model = Decoder(config, rngs=nnx.Rngs(key))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[1])


def logical_axes(params: Params) -> Any:
  """`LogicalAxes` of each parameter, same tree."""
  return {
    name: {k: ("layers", *AXES[k]) for k in value}
    if name == "layers"
    else AXES[name]
    for name, value in params.items()
  }


def shardings(mesh: jax.sharding.Mesh, params: Params) -> Any:
  """`NamedSharding` of each parameter, same tree.

  Raises:
    ValueError: a parameter cannot be cut evenly.
  """
  axes = logical_axes(params)
  sharding.check_divisible(mesh, params, axes)
  return jax.tree.map(
    lambda a: sharding.sharding(mesh, *a),
    axes,
    is_leaf=lambda a: isinstance(a, tuple),
  )


def unembedding(params: Params) -> jax.Array:
  """Hidden state to logits. Shape `[D, V]`; the embedding's where tied."""
  if "unembedding" in params:
    return params["unembedding"]
  return params["embedding"].T


def positions_of(mask: jax.Array) -> jax.Array:
  """Position of each column among the tokens that count. Shape of `mask`."""
  return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def hidden_states(
  graphdef: nnx.GraphDef,
  params: Params,
  ids: jax.Array,
  mask: jax.Array,
  *,
  columns: slice = slice(None),
  prefix: Prefix | None = None,
) -> jax.Array:
  """Final hidden states of whole sequences (teacher-forced).

  Args:
    graphdef: from `make`.
    params: parameters.
    ids: token ids. Shape `[B, S]`.
    mask: 1 where the token counts; others are never attended to. `[B, S]`.
    columns: those of the S that are asked for.
    prefix: what stands before the rows, each of its P for B / P of them.

  Returns:
    Shape `[B, S, D]`, compute dtype; finite at padding, where it means nothing.

  Raises:
    ValueError: a prefix, where devices share a sequence.
  """
  if prefix is not None and sharding.num_shards("sequence") > 1:
    raise ValueError("a prefix is not read where devices share a sequence")
  model = merge(graphdef, params)
  packed = pack(ids, mask)
  if prefix is None:
    hidden, _ = _full_pass(model, packed, model.config.remat)
  else:
    hidden = _pass_after(model, packed, prefix)
  places = positions_of(mask)[:, columns, None]
  taken = jnp.take_along_axis(hidden, places, axis=1)
  if taken.shape[1] % sharding.num_shards("sequence") == 0:
    taken = sharding.constrain(taken, "batch", "sequence", None)
  return model.finish(taken)


def read_prefix(
  graphdef: nnx.GraphDef, params: Params, ids: jax.Array, mask: jax.Array
) -> Prefix:
  """What several rows begin with, read once for all of them.

  Args:
    graphdef: from `make`.
    params: parameters.
    ids: padded anywhere; a prefix may be empty. Shape `[P, S0]`.
    mask: 1 where the token counts. Shape `[P, S0]`.
  """
  model = merge(graphdef, params)
  _, cache = _full_pass(model, pack(ids, mask), model.config.remat, keeps=True)
  return Prefix(cache=cache, lengths=jnp.sum(mask, axis=-1))


def pack(ids: jax.Array, mask: jax.Array) -> jax.Array:
  """Each row's tokens in front, token 0 after them. Shape `[B, S]`."""
  length = mask.shape[-1]
  columns = jnp.arange(length)[None]
  # Columns of tokens sort before those of padding.
  order = jnp.sort(columns + length * (1 - mask.astype(jnp.int32))) % length
  counted = columns < jnp.sum(mask, axis=-1, keepdims=True)
  # What stands at padding may be no token at all: it is not looked up.
  return jnp.where(counted, jnp.take_along_axis(ids, order, axis=-1), 0)


def merge(graphdef: nnx.GraphDef, params: Params) -> Decoder:
  """The module with its parameters in it."""
  return nnx.merge(graphdef, nnx.State(params))


def _full_pass(model: Decoder, ids, remat: str, *, keeps: bool = False):
  """All layers over packed rows; the last norm is yet to come.

  Returns:
    hidden states `[B, S, D]`, and the rows' `Cache` where it is kept.
  """
  length = ids.shape[1]
  ids = jnp.pad(ids, ((0, 0), (0, attention.padding(length))))
  angles = model.angles(jnp.arange(ids.shape[1])[None])

  def attend(query, key, value):
    attended = attention.causal(
      query, key, value, implementation=model.config.attention
    )
    return attended, Cache(key=key, value=value) if keeps else None

  hidden, kept = _scan_layers(model, ids, angles, attend, (), remat)
  return hidden[:, :length], kept


def _pass_after(model: Decoder, ids: jax.Array, prefix: Prefix) -> jax.Array:
  """All layers over packed rows that go on from a prefix."""
  begins = jnp.repeat(prefix.lengths, len(ids) // len(prefix.lengths))
  angles = model.angles(begins[:, None] + jnp.arange(ids.shape[1])[None])

  def attend(query, key, value, shared):
    attended = attention.after_shared(
      query, key, value, shared.key, shared.value, prefix.lengths
    )
    return attended, None

  return _scan_layers(
    model, ids, angles, attend, (prefix.cache,), model.config.remat
  )[0]


def _scan_layers(
  model: Decoder, ids, angles, attend: Attend, extra, remat: str
):
  """One layer after the other; each attends with its part of what is extra."""
  graph, stacked = nnx.split(model.layers)

  def layer_fn(x, inputs):
    state, extra = inputs
    x, kept = nnx.merge(graph, state)(x, angles, attend, *extra)
    return sharding.constrain(x, "batch", "sequence", None), kept

  if remat == "layer":
    layer_fn = jax.checkpoint(layer_fn)
  x = model.embed(ids, "sequence")
  return jax.lax.scan(layer_fn, x, (stacked, extra))
