"""Layers of a Qwen3-architecture decoder.

A layer does not know where its keys and values come from: the caller passes
attention as a function. Passes over whole sequences (`decoder`) and decode
steps with a KV cache (`decoding`) therefore share these layers.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import sharding
from distil_jax.models.decoder_config import DecoderConfig

# Parameters as a nested dictionary.
Params = dict[str, Any]
# (query, key, value, ...) -> the attention output, and what the caller keeps.
Attend = Callable[..., tuple[jax.Array, Any]]

PARAMETER_AXES: Mapping[str, sharding.LogicalAxes] = {
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


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """Returns the root-mean-square norm over the last axis.

  Computed in float32 and returned in the type of `x`.
  """
  full = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(full), axis=-1, keepdims=True)
  normed = full * jax.lax.rsqrt(mean_square + epsilon)
  scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
  return (normed * scale).astype(x.dtype)


def rope_angles(
  positions: jax.Array, head_size: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Returns cosine and sine of the rotary angles.

  Args:
    positions: Position of each token. Shape `[...]`.
    head_size: H.
    theta: Base of the wavelengths.

  Returns:
    Two float32 arrays of shape `[..., 1, H / 2]`.
  """
  exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
  wavelengths = jnp.expand_dims(theta**exponents, range(positions.ndim))
  angles = positions[..., None].astype(jnp.float32) / wavelengths
  return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies the rotary embedding to `x`, of shape `[..., N, H]`.

  As in Hugging Face's Qwen3, the first half of H is paired with the second.
  """
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


class Block(nnx.Module):
  """Implements one layer: grouped-query attention and a gated MLP.

  Queries and keys are normed for each head.
  """

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

  def __call__(self, x, angles, attend: Attend, *extra):
    """Runs the layer.

    Args:
      x: Shape `[..., D]`.
      angles: From `rope_angles`.
      attend: Called with query, key, value and `extra`; returns the attention
        output, and what the caller wants to keep (a cache).
      *extra: Passed on to `attend`.

    Returns:
      The layer's output, of shape `[..., D]`, and what `attend` kept.
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
    # One matrix product: for `nh,nhd->d` XLA would transpose the weights at
    # each call.
    attended = attended.reshape(*x.shape[:-1], -1)
    x = x + attended @ output.reshape(-1, x.shape[-1])
    normed = rms_norm(x, self.mlp_norm[...], epsilon)
    gate = jax.nn.silu(normed @ self.gate[...].astype(dtype))
    up = normed @ self.up[...].astype(dtype)
    return x + (gate * up) @ self.down[...].astype(dtype), kept


class Decoder(nnx.Module):
  """Holds the embedding, the stacked layers and the final norm.

  If the embeddings are not tied it holds the unembedding too.
  """

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
    """Returns the embeddings of token ids.

    Args:
      ids: Shape `[B, S]`.
      sequence: Logical axis of S.

    Returns:
      Compute dtype, shape `[B, S, D]`.
    """
    # Each device looks up its part of D for all rows of its replica, and then
    # exchanges it for all of D of its own rows. The constraints change one mesh
    # axis at a time: otherwise XLA would hold every row on every device on the
    # way.
    ids = sharding.constrain(ids, "copies", None)
    x = self.embedding[...].astype(self.config.compute_dtype)[ids]
    x = sharding.constrain(x, "copies", None, "embed")
    x = sharding.constrain(x, "batch", None, "embed_by_context")
    return sharding.constrain(x, "batch", sequence, None)

  def angles(self, positions: jax.Array):
    """Returns the rotary angles of positions; see `rope_angles`."""
    return rope_angles(positions, self.config.head_size, self.config.rope_theta)

  def finish(self, x: jax.Array) -> jax.Array:
    """Applies the final norm."""
    return rms_norm(x, self.norm[...], self.config.norm_epsilon)


def _weight(config: DecoderConfig, rngs: nnx.Rngs, *shape: int) -> nnx.Param:
  init = jax.nn.initializers.normal(0.02)
  return nnx.Param(init(rngs.params(), shape, jnp.dtype(config.param_dtype)))


def _scale(config: DecoderConfig, size: int) -> nnx.Param:
  return nnx.Param(jnp.ones(size, jnp.dtype(config.param_dtype)))


def unembedding(params: Params) -> jax.Array:
  """Returns the matrix from hidden states to logits.

  With tied embeddings it is the transposed embedding. Shape `[D, V]`.
  """
  if "unembedding" in params:
    return params["unembedding"]
  return params["embedding"].T


def pack(ids: jax.Array, mask: jax.Array) -> jax.Array:
  """Moves each row's tokens to the front and fills the rest with token 0.

  Args:
    ids: Shape `[B, S]`.
    mask: 1 where the token counts. Shape `[B, S]`.

  Returns:
    Shape `[B, S]`.
  """
  length = mask.shape[-1]
  columns = jnp.arange(length)[None]
  # Columns of padding sort after those of tokens, because S is added to them.
  order = jnp.sort(columns + length * (1 - mask.astype(jnp.int32))) % length
  counted = columns < jnp.sum(mask, axis=-1, keepdims=True)
  # Ids at padding may lie outside the vocabulary, so they are replaced before
  # anything looks them up.
  return jnp.where(counted, jnp.take_along_axis(ids, order, axis=-1), 0)


def merge(graphdef: nnx.GraphDef, params: Params) -> Decoder:
  """Returns the module with its parameters in it."""
  return nnx.merge(graphdef, nnx.State(params))
