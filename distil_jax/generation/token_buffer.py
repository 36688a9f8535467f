"""Sampled tokens: step by step as they come, and sorted into rows.

Letters besides those of `types`: D parts of the batch with N rows and W slots
each; C decode steps.
"""

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models import sharding
from distil_jax.types import StopReason


@struct.dataclass
class Completions:
  """Holds what has been sampled so far, row by row.

  Attributes:
    ids: Token ids; beyond the length they mean nothing. Shape `[D, N, T]`.
    log_probs: Log-probabilities under the policy itself, nats. `[D, N, T]`.
    behavior_log_probs: Log-probabilities under the distribution that was
      sampled from, nats. `[D, N, T]`.
    lengths: Number of tokens so far. Shape `[D, N]`.
    stop_reasons: `StopReason.LENGTH` until another is known. Shape `[D, N]`.
  """

  ids: jax.Array
  log_probs: jax.Array
  behavior_log_probs: jax.Array
  lengths: jax.Array
  stop_reasons: jax.Array


@struct.dataclass
class TokenBuffer:
  """Holds the tokens of the last C decode steps. Shape `[C, D, W]` each.

  A step writes one slice of this buffer, which is sorted into `Completions`
  once at the end: scattering each token to its row at each step would be slow
  on every platform.

  Attributes:
    rows: Row that the slot worked on; N or more for none.
    positions: The token's place in its completion.
    ids, log_probs, behavior_log_probs: As in `Completions`.
    stop_reasons: Why the row ended, if it did.
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
  """Returns a buffer without entries.

  Args:
    length: C.
    num_parts: D.
    width: W.
    num_rows: N, which marks an entry as empty.
  """
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
    stop_reasons=full(int(StopReason.LENGTH), jnp.int32),
  )


def write_back(completions: Completions, buffer: TokenBuffer) -> Completions:
  """Sorts the entries of a buffer into their rows.

  Args:
    completions: What was sampled before.
    buffer: What was sampled since.

  Returns:
    The completions with the entries in them.
  """
  return jax.vmap(_write_back_part, in_axes=(0, 1))(completions, buffer)


def _write_back_part(
  completions: Completions, buffer: TokenBuffer
) -> Completions:
  """Sorts the entries of one part: `[N, ...]` and `[C, W]`.

  A slot works on a row in consecutive steps, so the first and the last entry of
  a row determine where all of its entries are.
  """
  num_steps, width = buffer.rows.shape
  num_rows, length = completions.ids.shape
  rows = buffer.rows
  indices = jnp.arange(num_steps * width, dtype=jnp.int32)
  # Stands before the first step and after the last one, so that a row that
  # fills the buffer has edges too.
  no_row = jnp.full((1, width), num_rows, rows.dtype)

  def flat(x):
    return x.reshape(-1)

  def find_edges(neighbours):
    """Returns each row's entry whose neighbour in time has another row.

    Returns:
      The entry's index in the flattened buffer, and whether there is one.
      Shape `[N]` each.
    """
    # Entries that are no edge are sorted behind all rows, as row N.
    edges = flat(jnp.where(rows != neighbours, rows, num_rows))
    # Sorted by row, an edge is found by binary search, without a scatter.
    edges, ordered = jax.lax.sort((edges, indices), num_keys=1)
    wanted = jnp.arange(num_rows, dtype=rows.dtype)
    # A row without entries may be searched for past the end.
    at = jnp.minimum(jnp.searchsorted(edges, wanted), len(indices) - 1)
    return ordered[at], edges[at] == wanted

  first, has_entries = find_edges(jnp.concatenate([no_row, rows[:-1]]))
  last, _ = find_edges(jnp.concatenate([rows[1:], no_row]))
  begin, end = flat(buffer.positions)[first], flat(buffer.positions)[last]
  column = jnp.arange(length)[None]
  is_new = (column >= begin[:, None]) & (column <= end[:, None])
  is_new &= has_entries[:, None]
  # Consecutive tokens of a row are `width` entries apart in the flat buffer.
  source = first[:, None] + (column - begin[:, None]) * width
  # Columns that are not new point outside the buffer; what they read is
  # dropped.
  source = jnp.clip(source, 0, len(indices) - 1)

  def take(old, entries):
    return jnp.where(is_new, flat(entries)[source], old)

  return Completions(
    ids=take(completions.ids, buffer.ids),
    log_probs=take(completions.log_probs, buffer.log_probs),
    behavior_log_probs=take(
      completions.behavior_log_probs, buffer.behavior_log_probs
    ),
    lengths=jnp.where(has_entries, end + 1, completions.lengths),
    stop_reasons=jnp.where(
      has_entries, flat(buffer.stop_reasons)[last], completions.stop_reasons
    ),
  )
