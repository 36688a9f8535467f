"""Attention of whole sequences, by the kernel that suits the platform.

Rows are packed: a row's tokens stand in front, padding after them. So being
causal is mask enough, and kernels that know no other mask are right.

Where devices share a sequence each has a part of the queries, and all keys and
values of its sequences: with few KV heads these are the smaller part, and they
are exchanged once a layer. The later a part the more its queries see; all wait
for the last.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from distil_jax.models import sharding
from distil_jax.models.kernels.sequence_attention import (
  LANES,
  Implementation,
  _over_blocks,
  check,
  find_problem,
  has_cudnn,
  is_earlier,
  select_kernel,
  xla,
)


def causal(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  implementation: Implementation = "auto",
) -> jax.Array:
  """Each token attends to itself and to those before it.

  Args:
    query: shape `[B, S, N, H]`.
    key, value: N / K heads share one. Shape `[B, S, K, H]`.
    implementation: `auto` takes the platform's kernel where head size and
      type suit it, and `xla` elsewhere.

  Returns:
    Shape `[B, S, N, H]`.

  Raises:
    ValueError: the named implementation cannot run.
  """
  head_size, dtype = query.shape[-1], query.dtype
  if implementation != "auto":
    check(implementation, head_size=head_size, dtype=dtype)
    return select_kernel()[implementation](query, key, value)
  kernels = {
    platform: select_kernel()[name]
    for platform, name in by_platform(
      head_size=head_size, dtype=dtype, has_cudnn=has_cudnn()
    ).items()
  }
  if not kernels:
    return xla(query, key, value)
  # Known only when the program is lowered: a machine with CPUs alone may
  # compile for another one.
  return jax.lax.platform_dependent(query, key, value, default=xla, **kernels)


def after_shared(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  shared_key: jax.Array,
  shared_value: jax.Array,
  lengths: jax.Array,
) -> jax.Array:
  """Attends to what n = B / P rows share, and then causally to the own row.

  In plain XLA on every platform, for so many queries at a time that the logits
  of a long row are never all in memory.

  Args:
    query: rows that share stand in a row. Shape `[B, S, N, H]`.
    key, value: shape `[B, S, K, H]`.
    shared_key, shared_value: stand before the rows; they are read in place.
      Shape `[P, S0, K, H]`.
    lengths: how many columns of these count; may be 0. Shape `[P]`.

  Returns:
    Shape `[B, S, N, H]`.
  """
  batch_size, length = query.shape[:2]
  counted = jnp.arange(shared_key.shape[1])[None] < lengths[:, None]

  def block(first, queries):
    earlier = is_earlier(first, queries.shape[1], length)
    own = _part(queries, key, value, earlier[None])
    # All queries to what they share, as if of one long row.
    by_prefix = queries.reshape(len(lengths), -1, *queries.shape[2:])
    shared = _part(by_prefix, shared_key, shared_value, counted[:, None])
    shared = (x.reshape(batch_size, -1, *x.shape[2:]) for x in shared)
    merged = merge_parts(*zip(own, shared, strict=True))
    return merged.astype(query.dtype)

  return _over_blocks(block, query)


def padding(length: int) -> int:
  """Columns to add so that devices along a sequence have equal parts of it.

  Parts that suit the TPU's kernel where that costs little.
  """
  count = sharding.num_shards("sequence")
  step = count
  if count > 1 and length >= 8 * count * LANES:
    step = count * LANES
  return -length % step


def merge_parts(
  attended: Sequence[jax.Array], log_sums: Sequence[jax.Array]
) -> jax.Array:
  """Attention over several sets of keys, from that over each of them.

  Args:
    attended: what was read from each set. Shape `[..., H]` each.
    log_sums: log Σ exp of the set's logits. Shape `[...]` each.

  Returns:
    Shape `[..., H]`, at least float32.
  """
  shares = jax.nn.softmax(jnp.stack(log_sums), axis=0)
  return jnp.sum(shares[..., None] * jnp.stack(attended), axis=0)


def _part(query, key, value, allowed):
  """Attention over one set of keys, and log Σ exp of its logits.

  Args:
    query: shape `[B, S, N, H]`.
    key, value: shape `[B, S', K, H]`.
    allowed: which keys a query may read; where it may read none, its sum is as
      good as 0. Shape `[B or 1, S or 1, S']`.

  Returns:
    Shape `[B, S, N, H]` and `[B, S, N]`, at least float32.
  """
  *rows, num_heads, head_size = query.shape
  num_kv_heads = key.shape[2]
  grouped = query.reshape(
    *rows, num_kv_heads, num_heads // num_kv_heads, head_size
  )
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)
  logits = product("bskrh,btkh->bksrt", grouped, key) * head_size**-0.5
  # Not -inf: the largest logit of no key at all must be a number.
  lowest = 0.5 * jnp.finfo(dtype).min
  logits = jnp.where(allowed[:, None, :, None], logits, lowest)
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - largest)
  total = jnp.sum(weights, axis=-1)
  attended = product("bksrt,btkh->bksrh", weights.astype(value.dtype), value)
  attended = attended / total[..., None]
  log_sum = largest[..., 0] + jnp.log(total)
  return (
    jnp.swapaxes(attended, 1, 2).reshape(*rows, num_heads, head_size),
    jnp.swapaxes(log_sum, 1, 2).reshape(*rows, num_heads),
  )


def by_platform(
  *, head_size: int, dtype: jax.typing.DTypeLike, has_cudnn: bool
) -> Mapping[str, Implementation]:
  """What `auto` takes on each platform; `xla` on those that are not named.

  Args:
    head_size: H.
    dtype: of queries, keys and values.
    has_cudnn: JAX traces the GPU's kernel only where it finds one.
  """
  found = {}
  if find_problem("splash", head_size, dtype) is None:
    found["tpu"] = "splash"
  if has_cudnn and find_problem("cudnn", head_size, dtype) is None:
    found["cuda"] = "cudnn"
  return found
