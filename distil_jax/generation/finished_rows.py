"""Which rows of a rollout have ended, told while the device goes on.

A few rows at a time are picked out on the device, so that what comes to the
host grows with what has ended and not with what is asked for. One program does
it, whatever their number.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.generation import sampler_state
from distil_jax.models import sharding

OnFinished = Callable[[int, np.ndarray], None]

# Rows of each part that are picked out at once.
_AT_ONCE = 16


class FinishedRows:
  """Tells of each row once, when it has ended."""

  def __init__(self, tell: OnFinished, state: sampler_state.SamplerState):
    """Nobody has ended yet.

    Args:
      tell: gets a row of this process, counted as in its part of the rollout,
        and the row's tokens.
      state: as it starts.
    """
    self._tell = tell
    self._num_rows = state.num_rows
    self._is_told = _nobody(state)
    self._num_told = np.zeros(state.next_row.shape, np.int64)
    # On its way here: rows, lengths and tokens, and how many of them count.
    self._picked: list[tuple[list[jax.Array], np.ndarray]] = []

  def pick(
    self, state: sampler_state.SamplerState, num_ended: np.ndarray
  ) -> None:
    """Has the device pick out what has ended since; waits for nothing.

    Args:
      state: before the device goes on with it.
      num_ended: rows of each part that have ended so far. Shape `[D]`.
    """
    at_once = min(_AT_ONCE, self._num_rows)
    while (num_new := num_ended - self._num_told).any():
      num_new = np.minimum(num_new, at_once)
      self._num_told = self._num_told + num_new
      self._is_told, *picked = _pick(state, self._is_told, at_once=at_once)
      self._picked.append((picked, num_new))

  def tell(self) -> None:
    """Tells of what was picked out; waits for it, and for nothing later."""
    for picked, num_new in self._picked:
      parts, rows, lengths, ids = (sharding.local_rows(x) for x in picked)
      for place, part in enumerate(parts):
        for i in range(num_new[part]):
          row = place * self._num_rows + int(rows[place, i])
          self._tell(row, ids[place, i, : lengths[place, i]])
    self._picked.clear()


@jax.jit
def _nobody(state: sampler_state.SamplerState) -> jax.Array:
  return _by_part(jnp.zeros(state.completions.lengths.shape, bool))


@functools.partial(jax.jit, static_argnames="at_once")
def _pick(
  state: sampler_state.SamplerState, is_told: jax.Array, *, at_once: int
) -> tuple[jax.Array, ...]:
  """The first rows of each part that have ended and are not told of.

  Returns:
    `is_told` from now on, `[D, N]`; the number of each part, `[D]`; the rows,
    their lengths, `[D, n]` each, and their tokens, `[D, n, T]`.
  """
  num_parts, num_rows = is_told.shape
  rows = jnp.arange(num_rows)[None]
  slots = state.slots
  is_at_work = jnp.any(
    (slots.rows[:, None, :] == rows[:, :, None]) & slots.is_alive[:, None, :],
    axis=2,
  )
  is_new = (rows < state.next_row[:, None]) & ~is_at_work & ~is_told
  order = jnp.argsort(~is_new, axis=1, stable=True)[:, :at_once]
  is_told = is_told | (is_new & (jnp.cumsum(is_new, axis=1) <= at_once))
  found = state.completions
  picked = (
    is_told,
    jnp.arange(num_parts),
    order,
    jnp.take_along_axis(found.lengths, order, axis=1),
    jnp.take_along_axis(found.ids, order[:, :, None], axis=1),
  )
  return tuple(_by_part(x) for x in picked)


def _by_part(x: jax.Array) -> jax.Array:
  return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))
