"""Causal attention over whole sequences.

Rows are packed: a row's tokens stand in front and its padding after them. A
causal mask is therefore enough, and kernels that know no other mask are
correct.

With context parallelism each device has a part of the queries and all keys and
values of its sequences. With few key-value heads these are the smaller part,
and they are gathered once a layer. Later parts of a sequence attend to more
keys, so the device with the last part sets the pace.

With a sliding window of w, a token reads itself and the w - 1 tokens before it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from distil_jax.models import sharding
from distil_jax.models.attention_blocks import (
  LARGEST_BLOCK,
  is_readable,
  over_blocks,
  scale_of,
)
from distil_jax.models.kernels.sequence_attention import (
  LANES,
  Implementation,
  by_platform,
  check,
  check_platform,
  has_cudnn,
  splash_kernel,
)

# (query, key, value, *, window, scale) -> the attention output.
_Kernel = Callable[..., jax.Array]
# The longest row for which plain XLA holds all logits at once, in tokens.
_LARGEST_WHOLE = 2048


def causal(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  scale: float | None = None,
  implementation: Implementation = "auto",
) -> jax.Array:
  """Returns attention of each token to itself and to the tokens before it.

  Args:
    query: Shape `[B, S, N, H]`.
    key, value: Each head serves N / K query heads. Shape `[B, S, K, H]`.
    window: Number of tokens that each reads; None means all.
    scale: Factor of the logits; None means H^-0.5.
    implementation: `auto` takes the platform's kernel if it supports the head
      size and the type, and `xla` otherwise.

  Returns:
    Shape `[B, S, N, H]`.

  Raises:
    ValueError: The named implementation cannot run.
  """
  head_size, dtype = query.shape[-1], query.dtype
  if window is not None and window >= query.shape[1]:
    window = None  # the plain mask is the same, and cheaper

  def kernel(name: str) -> _Kernel:
    return functools.partial(select_kernel()[name], window=window, scale=scale)

  if implementation != "auto":
    check(implementation, head_size=head_size, dtype=dtype)
    return kernel(implementation)(query, key, value)
  kernels = {
    platform: kernel(name)
    for platform, name in by_platform(
      head_size=head_size, dtype=dtype, has_cudnn=has_cudnn()
    ).items()
  }
  if not kernels:
    return kernel("xla")(query, key, value)
  # The platform is known only when the program is lowered: a machine that has
  # CPUs alone may compile for another one.
  return jax.lax.platform_dependent(
    query, key, value, default=kernel("xla"), **kernels
  )


def padding(length: int) -> int:
  """Returns how many columns to add so that a sequence is cut evenly.

  Long sequences are padded to parts that suit the TPU kernel, because this
  costs little there.
  """
  count = sharding.num_shards("sequence")
  step = count
  if count > 1 and length >= 8 * count * LANES:
    step = count * LANES
  return -length % step


def select_kernel() -> Mapping[str, _Kernel]:
  """Returns the implementations by name."""
  return {"xla": xla, "cudnn": cudnn, "splash": splash}


def _whole(
  query, key, value, window, scale, implementation: Literal["xla", "cudnn"]
) -> jax.Array:
  """Attends with all queries at once, by an implementation of jax."""
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    scale=scale,
    is_causal=True,
    # How far a token reads to its left and to its right.
    local_window_size=None if window is None else (window - 1, 0),
    implementation=implementation,
  )


def xla(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  scale: float | None = None,
) -> jax.Array:
  """Computes causal attention in plain XLA, on every platform.

  Long rows are computed a block of queries at a time. Arguments and result are
  as for `causal`.
  """
  attend_from = functools.partial(_xla_from, window=window, scale=scale)
  if _num_parts(query) > 1:
    # Left to its own partitioning, XLA would gather the logits.
    return _on_devices(attend_from, query, key, value)
  if query.shape[1] > _LARGEST_WHOLE:
    return attend_from(query, key, value, 0)
  return _whole(query, key, value, window, scale, "xla")


def cudnn(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  scale: float | None = None,
) -> jax.Array:
  """Computes causal attention with cuDNN, on CUDA GPUs.

  With context parallelism plain XLA is used instead. Arguments and result are
  as for `causal`.
  """
  if not has_cudnn():
    check_platform("cudnn", jax.default_backend())
  if _num_parts(query) > 1:
    # The kernel assumes that its queries begin where its keys begin.
    return xla(query, key, value, window=window, scale=scale)
  return _whole(query, key, value, window, scale, "cudnn")


def splash(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  scale: float | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Computes causal attention with the Pallas kernel, on TPUs.

  Args:
    query, key, value, window, scale: As for `causal`.
    interpret: Interprets the kernel, slowly, on any platform.

  Returns:
    Shape `[B, S, N, H]`.
  """
  length, head_size = query.shape[1], query.shape[-1]
  count = _num_parts(query)
  added = -length % (count * LANES)
  if added:
    query, key, value = (
      jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0)))
      for x in (query, key, value)
    )
  # The kernel does not scale the logits.
  query = query * jnp.asarray(scale_of(scale, head_size), query.dtype)
  num_head_shards = sharding.num_shards("heads")
  kernel = splash_kernel(
    length + added,
    query.shape[2] // num_head_shards,
    count,
    window=window,
    interpret=interpret,
  )

  def attend(kernel, query, key, value):
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    attended = jax.vmap(lambda *x: kernel(*x))(*heads_first)
    return jnp.swapaxes(jnp.asarray(attended), 1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return attend(kernel, query, key, value)[:, :length]
  # XLA cannot partition a kernel and would gather whole arrays for it, so each
  # device is given its own part by hand.
  query_spec, key_spec = _partition_specs(query)
  if count > 1:
    key, value = _gathered(key), _gathered(value)
  kernel_spec = sharding.partition_spec((None, "sequence"))
  attended = jax.shard_map(
    attend,
    in_specs=(
      kernel.manual_sharding_spec(
        jax.sharding.NamedSharding(mesh, kernel_spec)
      ),
      query_spec,
      key_spec,
      key_spec,
    ),
    out_specs=query_spec,
    check_vma=False,  # a kernel does not say over which axes it varies
  )(kernel, query, key, value)
  return attended[:, :length]


def _num_parts(query: jax.Array) -> int:
  """Returns how many devices share a sequence's queries; 1 if not evenly."""
  count = sharding.num_shards("sequence")
  return count if query.shape[1] % count == 0 else 1


def _partition_specs(query: jax.Array):
  """Returns the specs of queries, and of keys and values.

  Keys and values are whole along time.
  """
  batch = None if len(query) % sharding.num_shards("batch") else "batch"
  sequence = None if _num_parts(query) == 1 else "sequence"
  return (
    sharding.partition_spec((batch, sequence, "heads", "head_size")),
    sharding.partition_spec((batch, None, "kv_heads", "head_size")),
  )


def _gathered(x: jax.Array) -> jax.Array:
  """Pins keys or values to the devices that make them, before the gather.

  Otherwise XLA would gather the hidden states that they are made from, and
  have each device make the keys and values of the whole sequence.
  """
  batch = None if len(x) % sharding.num_shards("batch") else "batch"
  return sharding.constrain(x, batch, "sequence", "kv_heads", None)


def _on_devices(attend, query, key, value):
  """Runs attention of each device's queries to all keys of their sequences.

  Args:
    attend: `(query, key, value, first)`, with the column of the first query.
    query, key, value: As for `causal`.
  """
  query_spec, key_spec = _partition_specs(query)

  def attend_locally(query, key, value):
    index = jax.lax.axis_index(sharding.RULES["sequence"])
    return attend(query, key, value, index * query.shape[1])

  return jax.shard_map(
    attend_locally,
    in_specs=(query_spec, key_spec, key_spec),
    out_specs=query_spec,
  )(query, _gathered(key), _gathered(value))


def _xla_from(query, key, value, first, *, window, scale):
  """Attends with queries that begin at column `first`, block by block."""
  length = key.shape[1]
  block_size = min(query.shape[1], LARGEST_BLOCK)
  # A window of all keys is as good as none.
  reach = length if window is None else window - 1

  def attend(queries, keys, values, allowed):
    return jax.nn.dot_product_attention(
      queries,
      keys,
      values,
      mask=allowed[None, None],
      scale=scale,
      implementation="xla",
    )

  def block(start, queries):
    allowed = is_readable(first + start, block_size, length, window)
    return attend(queries, key, value, allowed)

  num_near = reach + block_size
  if num_near >= length:
    return over_blocks(block, query)
  # A block reads the keys of its window alone. With these columns of padding
  # none of the slices reaches beyond the ends, where it would be moved.
  padding = ((0, 0), (reach, block_size), (0, 0), (0, 0))
  padded_key, padded_value = jnp.pad(key, padding), jnp.pad(value, padding)

  def near_block(start, queries):
    column = first + start
    keys, values = (
      jax.lax.dynamic_slice_in_dim(x, column, num_near, axis=1)
      for x in (padded_key, padded_value)
    )
    allowed = is_readable(reach, block_size, num_near, window)
    exists = jnp.arange(num_near) >= reach - column
    return attend(queries, keys, values, allowed & exists[None])

  return over_blocks(near_block, query)
