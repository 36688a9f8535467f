"""Attention of rows that continue a prefix which they share with others."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models.attention_blocks import (
  is_readable,
  over_blocks,
  scale_of,
)


@struct.dataclass
class Shared:
  """Holds keys and values of prefixes that several rows continue.

  Attributes:
    key, value: Shape `[P, S0, K, H]`.
    lengths: Number of columns of each prefix that count; may be 0. Shape `[P]`.
  """

  key: jax.Array
  value: jax.Array
  lengths: jax.Array


def after_shared(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  shared: Shared,
  *,
  window: int | None = None,
  scale: float | None = None,
) -> jax.Array:
  """Returns attention to a shared prefix and, causally, to the row itself.

  Each prefix serves n = B / P rows. Computed in plain XLA on every platform, a
  block of queries at a time, so that all logits of a long row are never in
  memory at once.

  Args:
    query: Rows with the same prefix stand next to each other. Shape
      `[B, S, N, H]`.
    key, value: Shape `[B, S, K, H]`.
    shared: The prefixes, read without repeating them.
    window: Number of tokens that each reads; None means all.
    scale: Factor of the logits; None means H^-0.5.

  Returns:
    Shape `[B, S, N, H]`.
  """
  batch_size, length = query.shape[:2]
  num_prefixes, prefix_length = shared.key.shape[:2]
  attend = functools.partial(_attend_to, scale=scale)
  columns = jnp.arange(prefix_length)[None]
  counted = (columns < shared.lengths[:, None])[:, None]

  def block(first, queries):
    count = queries.shape[1]
    own = attend(
      queries, key, value, is_readable(first, count, length, window)[None]
    )
    # All rows of a prefix attend to it as one long row, so its keys and values
    # are not repeated for each of them.
    by_prefix = queries.reshape(num_prefixes, -1, *queries.shape[2:])
    allowed = counted
    if window is not None:
      # A row's column i stands at position `length of its prefix` + i.
      positions = shared.lengths[:, None] + first + jnp.arange(count)[None]
      is_near = columns[None] > positions[:, :, None] - window
      num_rows = batch_size // num_prefixes
      allowed = counted & jnp.tile(is_near, (1, num_rows, 1))
    earlier = attend(by_prefix, shared.key, shared.value, allowed)
    earlier = (x.reshape(batch_size, -1, *x.shape[2:]) for x in earlier)
    merged = merge_parts(*zip(own, earlier, strict=True))
    return merged.astype(query.dtype)

  return over_blocks(block, query)


def merge_parts(
  attended: Sequence[jax.Array], log_sums: Sequence[jax.Array]
) -> jax.Array:
  """Merges attention over disjoint sets of keys into attention over all.

  Args:
    attended: Attention output of each set of keys. Shape `[..., H]` each.
    log_sums: log Σ exp of the logits of each set. Shape `[...]` each.

  Returns:
    Shape `[..., H]`, at least float32.
  """
  shares = jax.nn.softmax(jnp.stack(log_sums), axis=0)
  return jnp.sum(shares[..., None] * jnp.stack(attended), axis=0)


def _attend_to(query, key, value, allowed, *, scale: float | None):
  """Returns attention over one set of keys, and log Σ exp of its logits.

  Args:
    query: Shape `[B, S, N, H]`.
    key, value: Shape `[B, S', K, H]`.
    allowed: True where a query may read a key; a query that may read none gets
      a sum that is as good as 0. Shape `[B or 1, S or 1, S']`.
    scale: Factor of the logits; None means H^-0.5.

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
  logits = product("bskrh,btkh->bksrt", grouped, key)
  logits = logits * scale_of(scale, head_size)
  # Finite rather than -inf: with no key at all the largest logit must still be
  # a number, or its difference to itself is NaN.
  lowest = 0.5 * jnp.finfo(dtype).min
  logits = jnp.where(allowed[:, None, :, None], logits, lowest)
  # The shift cancels in the result, so no gradient has to pass through it.
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
