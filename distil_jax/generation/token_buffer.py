"""What is sampled: as it comes, step by step, and row by row.

Letters as in `rollout`: D parts of the batch with N rows and W slots each.
"""

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models import sharding
from distil_jax.types import StopReason


@struct.dataclass
class Completions:
  """What has been sampled.

  Attributes:
    ids: beyond the length they mean nothing. Shape `[D, N, T]`.
    log_probs: of the policy itself. Shape `[D, N, T]`.
    behavior_log_probs: of the distribution that was sampled. `[D, N, T]`.
    lengths: tokens so far. Shape `[D, N]`.
    stop_reasons: `StopReason.LENGTH` until another is known. Shape `[D, N]`.
  """

  ids: jax.Array
  log_probs: jax.Array
  behavior_log_probs: jax.Array
  lengths: jax.Array
  stop_reasons: jax.Array


@struct.dataclass
class TokenBuffer:
  """What the last steps chose, C of them at most. Shape `[C, D, W]` each.

  Steps write here, in one place, and it is sorted into `Completions` once: to
  write each row in a place of its own is slow on every platform.

  Attributes:
    rows: which row the slot worked on; N and more where on none.
    positions: the token's place in its completion.
    ids, log_probs, behavior_log_probs: as in `Completions`.
    stop_reasons: why the row ended, where it did.
  """

  rows: jax.Array
  positions: jax.Array
  ids: jax.Array
  log_probs: jax.Array
  behavior_log_probs: jax.Array
  stop_reasons: jax.Array


def blank(
  length: int, num_parts: int, width: int, *, num_rows: int
) -> TokenBuffer:
  """A buffer without entries: C, D, W; and N."""
  shape = (length, num_parts, width)

  def full(value, dtype):
    return sharding.constrain(
      jnp.full(shape, value, dtype), None, "batch", None
    )

  return TokenBuffer(
    rows=full(num_rows, jnp.int32),
    positions=full(0, jnp.int32),
    ids=full(0, jnp.int32),
    log_probs=full(0, jnp.float32),
    behavior_log_probs=full(0, jnp.float32),
    stop_reasons=full(StopReason.LENGTH, jnp.int32),
  )


def write_back(found: Completions, buffer: TokenBuffer) -> Completions:
  """Takes the entries of a buffer to their rows.

  Args:
    found: what was sampled before.
    buffer: what was chosen since; `buffer.rows` is N where nothing was.
  """
  return jax.vmap(_sorted_in_part, in_axes=(0, 1))(found, buffer)


def _sorted_in_part(found: Completions, buffer: TokenBuffer) -> Completions:
  """The same of one part: `[N, ...]` and `[C, W]`.

  A slot works on a row in steps that follow each other, so where a row begins
  and ends in the buffer tells where all of it is.
  """
  num_steps, width = buffer.rows.shape
  num_rows, length = found.ids.shape
  rows = buffer.rows
  places = jnp.arange(num_steps * width, dtype=jnp.int32)
  nobody = jnp.full((1, width), num_rows, rows.dtype)

  def flat(x):
    return x.reshape(-1)

  def whereabouts(beside):
    """Where the one entry of each row is that has another row beside it."""
    edges = flat(jnp.where(rows != beside, rows, num_rows))
    edges, ordered = jax.lax.sort((edges, places), num_keys=1)
    wanted = jnp.arange(num_rows, dtype=rows.dtype)
    at = jnp.minimum(jnp.searchsorted(edges, wanted), len(places) - 1)
    return ordered[at], edges[at] == wanted

  first, is_here = whereabouts(jnp.concatenate([nobody, rows[:-1]]))
  last, _ = whereabouts(jnp.concatenate([rows[1:], nobody]))
  begin, end = flat(buffer.positions)[first], flat(buffer.positions)[last]
  column = jnp.arange(length)[None]
  is_new = (column >= begin[:, None]) & (column <= end[:, None])
  is_new &= is_here[:, None]
  where = first[:, None] + (column - begin[:, None]) * width
  where = jnp.clip(where, 0, len(places) - 1)

  def take(old, entries):
    return jnp.where(is_new, flat(entries)[where], old)

  return Completions(
    ids=take(found.ids, buffer.ids),
    log_probs=take(found.log_probs, buffer.log_probs),
    behavior_log_probs=take(
      found.behavior_log_probs, buffer.behavior_log_probs
    ),
    lengths=jnp.where(is_here, end + 1, found.lengths),
    stop_reasons=jnp.where(
      is_here, flat(buffer.stop_reasons)[last], found.stop_reasons
    ),
  )
