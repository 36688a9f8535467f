"""Reports the rows of a rollout that have finished, while others go on.

The device gathers a few finished rows at a time. What travels to the host
therefore grows with the number of rows that have finished since, not with the
size of the rollout. One program serves any number of rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.generation import sampler_state
from distil_jax.generation.usage import OnFinished
from distil_jax.models import sharding

# Rows of each part that one call of the program gathers.
_ROWS_AT_ONCE = 16


class FinishedRows:
  """Reports each row of a rollout once, after it has finished."""

  def __init__(
    self, on_finished: OnFinished, state: sampler_state.SamplerState
  ):
    """Starts with no row reported.

    Args:
      on_finished: Called with a row of this process, counted as in its part of
        the rollout, and the row's tokens.
      state: The rollout as it starts.
    """
    self._on_finished = on_finished
    self._num_rows = state.num_rows
    self._is_reported = _none_reported(state)
    self._num_reported = np.zeros(state.next_row.shape, np.int64)
    # Gathered but not on the host yet: part, rows, lengths and tokens, and how
    # many rows of each part count.
    self._gathered: list[tuple[list[jax.Array], np.ndarray]] = []

  def gather(
    self, state: sampler_state.SamplerState, num_finished: np.ndarray
  ) -> None:
    """Has the device gather the rows that finished since; does not wait.

    Args:
      state: The rollout; call this before the state is donated.
      num_finished: Rows of each part that have finished so far. Shape `[D]`.
    """
    at_once = min(_ROWS_AT_ONCE, self._num_rows)
    while (num_new := num_finished - self._num_reported).any():
      num_new = np.minimum(num_new, at_once)
      self._num_reported = self._num_reported + num_new
      self._is_reported, *gathered = _gather(
        state, self._is_reported, at_once=at_once
      )
      self._gathered.append((gathered, num_new))

  def report(self) -> None:
    """Reports the gathered rows; waits for them, but for no later step."""
    for gathered, num_new in self._gathered:
      # Each process reports the parts that its own devices hold.
      parts, rows, lengths, ids = (sharding.local_rows(x) for x in gathered)
      for local_part, part in enumerate(parts):
        for i in range(num_new[part]):
          # Rows are counted within a process, whose parts follow each other.
          row = local_part * self._num_rows + int(rows[local_part, i])
          self._on_finished(row, ids[local_part, i, : lengths[local_part, i]])
    self._gathered.clear()


@jax.jit
def _none_reported(state: sampler_state.SamplerState) -> jax.Array:
  return _by_part(jnp.zeros(state.completions.lengths.shape, bool))


@functools.partial(jax.jit, static_argnames="at_once")
def _gather(
  state: sampler_state.SamplerState, is_reported: jax.Array, *, at_once: int
) -> tuple[jax.Array, ...]:
  """Gathers the first rows of each part that have finished and are unreported.

  Args:
    state: A rollout that is under way.
    is_reported: True for rows that were gathered before. Shape `[D, N]`.
    at_once: n, rows of each part to gather.

  Returns:
    `is_reported` with the new rows, `[D, N]`; the number of each part, `[D]`;
    the rows and their lengths, `[D, n]` each; and their tokens, `[D, n, T]`.
  """
  num_parts, num_rows = is_reported.shape
  rows = jnp.arange(num_rows)[None]
  slots = state.slots
  # XLA fuses the comparison into `any`: [D, N, W] is never in memory.
  is_in_flight = jnp.any(
    (slots.rows[:, None, :] == rows[:, :, None]) & slots.is_alive[:, None, :],
    axis=2,
  )
  has_started = rows < state.next_row[:, None]
  is_new = has_started & ~is_in_flight & ~is_reported
  # Stable, so that new rows come first and in their order. The number taken is
  # fixed, so that one shape serves every call.
  order = jnp.argsort(~is_new, axis=1, stable=True)[:, :at_once]
  # Only rows that were gathered are marked; the others stay new for the next
  # call.
  is_reported = is_reported | (is_new & (jnp.cumsum(is_new, axis=1) <= at_once))
  completions = state.completions
  gathered = (
    is_reported,
    jnp.arange(num_parts),
    order,
    jnp.take_along_axis(completions.lengths, order, axis=1),
    jnp.take_along_axis(completions.ids, order[:, :, None], axis=1),
  )
  return tuple(_by_part(x) for x in gathered)


def _by_part(x: jax.Array) -> jax.Array:
  return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))
