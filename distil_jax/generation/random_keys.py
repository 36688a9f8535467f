"""Keys of what is sampled, on the mesh where it is sampled.

Each sample has its own, by its identity; and so has each of its turns. So what
is sampled does not depend on who else is.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.models import sharding
from distil_jax.types import Array

# Added to the number of a turn that is not the first, which is folded into its
# sample's key: above all numbers of tokens, that go into the same key.
_TURN = 2**31


def of_samples(
  mesh: jax.sharding.Mesh,
  key: jax.Array,
  identities: np.ndarray,
  group_size: int,
) -> jax.Array:
  """See `rollout.sample_keys`.

  Args:
    mesh: where to sample.
    key: of this step, made under any mesh.
    identities: this process's. Shape `[P, 2]`.
    group_size: G.

  Returns:
    those of all processes. Shape `[P, G]`.
  """
  names = sharding.put_batch(mesh, identities)
  # Anew: its type names the mesh under which it was made.
  data = np.asarray(jax.random.key_data(key))
  with jax.set_mesh(mesh):
    impl = jax.random.key_impl(key)
    key = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    return _sample_keys(key, names, group_size)


class TurnKeys:
  """Of the turns that come after the first."""

  def __init__(self, mesh: jax.sharding.Mesh, keys: jax.Array):
    """Takes those of the first turns, from `of_samples`."""
    self._mesh = mesh
    self._impl = jax.random.key_impl(keys)
    with jax.set_mesh(mesh):
      data = sharding.local_rows(_key_data(keys))
    self._data = data.reshape(-1, *data.shape[2:])

  def __call__(
    self, rows: Sequence[int], numbers: Sequence[int], size: int
  ) -> jax.Array:
    """Of some rows of this process.

    Args:
      rows: which.
      numbers: of each row's turn, above 0.
      size: of the result; what is not a row's is nobody's.

    Returns:
      those of all processes. Shape `[n, 1]`.
    """
    data = np.zeros((size, *self._data.shape[1:]), self._data.dtype)
    data[: len(rows)] = self._data[list(rows)]
    folded = np.full(size, _TURN, np.uint32)
    folded[: len(rows)] += np.asarray(numbers, np.uint32)
    placed = sharding.put_batch(self._mesh, (data, folded))
    with jax.set_mesh(self._mesh):
      return _turn_keys(*placed, impl=self._impl)


@jax.jit
def _key_data(keys: jax.Array) -> jax.Array:
  """Where the rows are. Shape `[P, G, …]`."""
  data = jax.random.key_data(keys)
  return sharding.constrain(data, "batch", None, None)


@functools.partial(jax.jit, static_argnames="impl")
def _turn_keys(data: jax.Array, folded: jax.Array, *, impl: Any) -> jax.Array:
  keys = jax.random.wrap_key_data(data, impl=impl)
  return jax.vmap(jax.random.fold_in)(keys, folded)[:, None]


def identities(names: Sequence[int]) -> np.ndarray:
  """What tells the problems of a batch apart, when sampling.

  Args:
    names: one non-negative number for each problem, below 2**32.

  Returns:
    the name and how often it stood earlier in the batch, so that a problem
    that comes twice gets other samples. uint32, shape `[P, 2]`.
  """
  seen = collections.Counter()
  rows = []
  for name in names:
    rows.append((name, seen[name]))
    seen[name] += 1
  return np.asarray(rows, np.uint32).reshape(-1, 2)


def sample_keys(
  key: jax.Array, identities: Array, group_size: int
) -> jax.Array:
  """One key for each (problem, sample).

  A sample's noise depends on the key and on its own identity alone: not on
  its place in the batch, nor on who else is there.

  Args:
    key: of this step; no two steps may use the same.
    identities: from `identities`. Shape `[P, 2]`.
    group_size: G.

  Returns:
    keys of shape `[P, G]`.
  """
  fold = jax.random.fold_in
  data = jax.random.key_data(key)
  if data.shape[-1] > 2:
    # Batched, other generators than threefry draw all rows from one key.
    key = jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")

  def of_problem(identity):
    problem_key = fold(fold(key, identity[0]), identity[1])
    return jax.vmap(lambda g: fold(problem_key, g))(jnp.arange(group_size))

  return jax.vmap(of_problem)(identities)


_sample_keys = jax.jit(sample_keys, static_argnums=2)
