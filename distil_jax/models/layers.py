"""Layers of a decoder.

The families of models share these layers: a `DecoderConfig` says which norms,
biases and MLP a layer has, and a parameter exists only where it is used.

A layer does not know where its keys and values come from: the caller passes
attention as a function. Passes over whole sequences (`decoder`) and decode
steps with a KV cache (`decoding`) therefore share them too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from distil_jax.models import experts, sharding
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.rope import rope_angles, rotate

# Parameters as a nested dictionary.
Params = dict[str, Any]
# (query, key, value, ...) -> the attention output, and what the caller keeps.
Attend = Callable[..., tuple[jax.Array, Any]]
# (input [B, S, D], router [D, E]) -> nothing; the caller keeps what it finds.
Watch = Callable[[jax.Array, jax.Array], None]


def rms_norm(
  x: jax.Array, scale: jax.Array, epsilon: float, *, adds_one: bool = False
) -> jax.Array:
  """Returns the root-mean-square norm over the axes of `scale`.

  Computed in float32 and returned in the type of `x`.

  Args:
    x: Any array whose last axes are those of `scale`.
    scale: Factor after the division.
    epsilon: Added to the mean square.
    adds_one: True if the factor is 1 plus `scale`.
  """
  full = x.astype(jnp.float32)
  axes = tuple(range(-scale.ndim, 0))
  mean_square = jnp.mean(jnp.square(full), axis=axes, keepdims=True)
  normed = full * jax.lax.rsqrt(mean_square + epsilon)
  scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - scale.ndim))
  return (normed * (1 + scale if adds_one else scale)).astype(x.dtype)


class Block(nnx.Module):
  """Implements one layer: grouped-query attention, and an MLP or experts."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    c = config
    weight = functools.partial(_weight, c, rngs)
    zeros, scale = functools.partial(_zeros, c), functools.partial(_scale, c)
    heads, kv_heads = (c.num_heads, c.head_size), (c.num_kv_heads, c.head_size)
    self.config = c
    if c.norm_placement != "after":
      self.attention_norm = scale(c.width)
    self.query = weight(c.width, *heads)
    self.key = weight(c.width, *kv_heads)
    self.value = weight(c.width, *kv_heads)
    if c.query_key_value_bias:
      self.query_bias = zeros(*heads)
      self.key_bias, self.value_bias = zeros(*kv_heads), zeros(*kv_heads)
    if c.query_key_norm != "none":
      is_shared = c.query_key_norm == "all_heads"
      self.query_norm = scale(*heads) if is_shared else scale(c.head_size)
      self.key_norm = scale(*kv_heads) if is_shared else scale(c.head_size)
    self.output = weight(*heads, c.width)
    if c.output_bias:
      self.output_bias = zeros(c.width)
    if c.norm_placement != "after":
      self.mlp_norm = scale(c.width)
    if c.num_experts:
      self._init_experts(weight)
    else:
      self._init_mlp(weight, zeros)
    if c.norm_placement != "before":
      self.attention_post_norm = scale(c.width)
      self.mlp_post_norm = scale(c.width)
    if c.lora is not None:
      for target in c.lora.targets:
        self._init_adapter(target, c.lora.rank)

  def _init_mlp(self, weight, zeros):
    c = self.config
    self.gate = weight(c.width, c.mlp_size)
    self.up = weight(c.width, c.mlp_size)
    self.down = weight(c.mlp_size, c.width)
    if c.mlp_bias:
      self.gate_bias, self.up_bias = zeros(c.mlp_size), zeros(c.mlp_size)
      self.down_bias = zeros(c.width)

  def _init_experts(self, weight):
    c = self.config
    self.router = weight(c.width, c.num_experts)
    self.expert_gate = weight(c.num_experts, c.width, c.mlp_size)
    self.expert_up = weight(c.num_experts, c.width, c.mlp_size)
    self.expert_down = weight(c.num_experts, c.mlp_size, c.width)

  def _init_adapter(self, target: str, rank: int):
    """Adds A and B, float32 whatever the type of the weights, with B = 0."""
    shape = getattr(self, target).shape
    num_inputs = 2 if target == "output" else 1
    inputs, outputs = shape[:num_inputs], shape[num_inputs:]
    setattr(self, f"{target}_lora_a", nnx.Param(jnp.zeros((*inputs, rank))))
    setattr(self, f"{target}_lora_b", nnx.Param(jnp.zeros((rank, *outputs))))

  def __call__(
    self, x, angles, attend: Attend, *extra, watch: Watch | None = None
  ):
    """Runs the layer.

    Args:
      x: Shape `[..., D]`.
      angles: From `Decoder.angles`.
      attend: Called with query, key, value and `extra`; returns the attention
        output, and what the caller wants to keep (a cache).
      *extra: Passed on to `attend`.
      watch: Called with what the router reads, if the layer has experts.

    Returns:
      The layer's output, of shape `[..., D]`, and what `attend` kept.
    """
    query, key, value = self._project(self._norm("attention_norm", x), angles)
    attended, kept = attend(query, key, value, *extra)
    output = self.output[...].astype(x.dtype)
    # One matrix product: for `nh,nhd->d` XLA would transpose the weights at
    # each call.
    attended = attended.reshape(*x.shape[:-1], -1)
    projected = attended @ output.reshape(-1, x.shape[-1])
    projected = self._add_adapter("output", attended, projected)
    projected = self._add_bias("output_bias", projected)
    x = x + self._norm("attention_post_norm", projected)
    normed = self._norm("mlp_norm", x)
    if self.config.num_experts:
      mixed = self._experts(normed)
      if watch is not None:
        watch(normed, self.router[...])
    else:
      mixed = self._mlp(normed)
    return x + self._norm("mlp_post_norm", mixed), kept

  def _project(self, x: jax.Array, angles):
    """Returns queries, keys and values, with norms and rope applied."""
    dtype = x.dtype
    query = jnp.einsum("...d,dnh->...nh", x, self.query[...].astype(dtype))
    key = jnp.einsum("...d,dkh->...kh", x, self.key[...].astype(dtype))
    value = jnp.einsum("...d,dkh->...kh", x, self.value[...].astype(dtype))
    query = self._add_bias("query_bias", self._add_adapter("query", x, query))
    key = self._add_bias("key_bias", self._add_adapter("key", x, key))
    value = self._add_bias("value_bias", self._add_adapter("value", x, value))
    query = rotate(self._norm("query_norm", query), angles)
    key = rotate(self._norm("key_norm", key), angles)
    return query, key, value

  def _mlp(self, x: jax.Array) -> jax.Array:
    gate = self._linear("gate", x)
    mixed = activation(self.config)(gate) * self._linear("up", x)
    return self._linear("down", mixed)

  def _linear(self, name: str, x: jax.Array) -> jax.Array:
    """Multiplies by a matrix of the MLP, with its adapter and bias."""
    y = x @ getattr(self, name)[...].astype(x.dtype)
    return self._add_bias(f"{name}_bias", self._add_adapter(name, x, y))

  def _experts(self, x: jax.Array) -> jax.Array:
    c = self.config
    return experts.mix(
      x,
      self.router[...],
      experts.Weights(
        gate=self.expert_gate[...].astype(x.dtype),
        up=self.expert_up[...].astype(x.dtype),
        down=self.expert_down[...].astype(x.dtype),
      ),
      num_chosen=c.num_experts_per_token,
      normalizes=c.normalizes_experts,
      activation=activation(c),
    )

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    """Applies a norm that the family has, or returns `x`."""
    scale = getattr(self, name, None)
    if scale is None:
      return x
    c = self.config
    return rms_norm(x, scale[...], c.norm_epsilon, adds_one=c.norm_adds_one)

  def _add_adapter(self, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds what the adapter of a matrix makes of `x`, or returns `y`.

    Args:
      name: Name of the matrix.
      x: What the matrix was multiplied with.
      y: The product.
    """
    if self.config.lora is None or name not in self.config.lora.targets:
      return y
    rank, dtype = self.config.lora.rank, x.dtype
    a = getattr(self, f"{name}_lora_a")[...].astype(dtype).reshape(-1, rank)
    b = getattr(self, f"{name}_lora_b")[...].astype(dtype).reshape(rank, -1)
    # Two thin products instead of one with A B: the gradient of a whole matrix
    # is then never made.
    added = ((x @ a) @ b) * jnp.asarray(self.config.lora.scale, dtype)
    return y + added.reshape(y.shape)

  def _add_bias(self, name: str, x: jax.Array) -> jax.Array:
    """Adds a bias that the family has, or returns `x`."""
    bias = getattr(self, name, None)
    if bias is None:
      return x
    bias = bias[...].astype(x.dtype)
    return x + jnp.expand_dims(bias, range(x.ndim - bias.ndim))


def activation(config: DecoderConfig) -> Callable[[jax.Array], jax.Array]:
  """Returns the activation of a network's MLPs."""
  if config.activation == "silu":
    return jax.nn.silu
  return functools.partial(jax.nn.gelu, approximate=True)


@struct.dataclass
class Angles:
  """Holds cosine and sine for layers of both kinds.

  Attributes:
    everywhere: For layers that read everything. Shape `[..., 1, H / 2]` each.
    local: For layers with a sliding window. The same arrays if the family has
      one kind of rope.
  """

  everywhere: tuple[jax.Array, jax.Array]
  local: tuple[jax.Array, jax.Array]

  def of(self, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Returns the angles for a layer with this window."""
    return self.everywhere if window is None else self.local


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
    x = sharding.constrain(x, "batch", sequence, None)
    if self.config.embedding_scale == 1:
      return x
    return x * jnp.asarray(self.config.embedding_scale, x.dtype)

  def angles(self, positions: jax.Array) -> Angles:
    """Returns the rotary angles of positions; see `rope_angles`."""
    c = self.config
    everywhere = rope_angles(
      positions, c.head_size, c.rope_theta, c.rope_scaling
    )
    if c.local_rope_theta is None:
      return Angles(everywhere, everywhere)
    local = rope_angles(positions, c.head_size, c.local_rope_theta)
    return Angles(everywhere, local)

  def finish(self, x: jax.Array) -> jax.Array:
    """Applies the final norm."""
    c = self.config
    return rms_norm(x, self.norm[...], c.norm_epsilon, adds_one=c.norm_adds_one)


def _weight(config: DecoderConfig, rngs: nnx.Rngs, *shape: int) -> nnx.Param:
  init = jax.nn.initializers.normal(0.02)
  return nnx.Param(init(rngs.params(), shape, jnp.dtype(config.param_dtype)))


def _zeros(config: DecoderConfig, *shape: int) -> nnx.Param:
  return nnx.Param(jnp.zeros(shape, jnp.dtype(config.param_dtype)))


def _scale(config: DecoderConfig, *shape: int) -> nnx.Param:
  """Returns the parameter of a norm that changes nothing at first."""
  value = 0.0 if config.norm_adds_one else 1.0
  return nnx.Param(jnp.full(shape, value, jnp.dtype(config.param_dtype)))


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


def num_tokens(graphdef: nnx.GraphDef, params: Params) -> int | None:
  """Returns `DecoderConfig.num_tokens` of a network."""
  return merge(graphdef, params).config.num_tokens


def merge(graphdef: nnx.GraphDef, params: Params) -> Decoder:
  """Returns the module with its parameters in it."""
  return nnx.merge(graphdef, nnx.State(params))
