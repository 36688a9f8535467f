"""Random keys of samples, on the mesh where they are sampled.

Each sample has a key that depends on its identity alone, and so has each of its
turns. What is sampled therefore does not depend on the rest of the batch.
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

# Added to the number of a later turn, which is folded into the sample's key.
# Token positions are folded into the same key, and none of them is so large.
_TURN = 2**31


def sample_keys_on_mesh(
  mesh: jax.sharding.Mesh,
  key: jax.Array,
  identities: np.ndarray,
  group_size: int,
) -> jax.Array:
  """Returns the keys of the samples of all processes; see `sample_keys`.

  Args:
    mesh: Mesh on which to sample.
    key: Key of this step, made under any mesh.
    identities: Identities of this process's problems. Shape `[P, 2]`.
    group_size: G.

  Returns:
    Keys of all processes' samples. Shape `[P, G]`.
  """
  identities = sharding.put_batch(mesh, identities)
  # Rebuild the key: its type is tied to the mesh that created it.
  data = np.asarray(jax.random.key_data(key))
  with jax.set_mesh(mesh):
    impl = jax.random.key_impl(key)
    key = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    return sample_keys(key, identities, group_size)


class TurnKeys:
  """Makes the keys of the turns after the first."""

  def __init__(self, mesh: jax.sharding.Mesh, keys: jax.Array):
    """Takes the keys of the first turns, from `sample_keys_on_mesh`."""
    self._mesh = mesh
    self._impl = jax.random.key_impl(keys)
    # A typed key has no NumPy form, but its numbers have.
    with jax.set_mesh(mesh):
      data = sharding.local_rows(_key_data(keys))
    self._data = data.reshape(-1, *data.shape[2:])

  def __call__(
    self, rows: Sequence[int], numbers: Sequence[int], size: int
  ) -> jax.Array:
    """Returns the keys of the next turns of some rows.

    Args:
      rows: Rows of this process.
      numbers: Number of each row's turn, above 0.
      size: Number of keys to return for this process; keys beyond the rows
        belong to no sample.

    Returns:
      Keys of all processes. Shape `[n, 1]`.
    """
    data = np.zeros((size, *self._data.shape[1:]), self._data.dtype)
    data[: len(rows)] = self._data[list(rows)]
    # int32 ends below `_TURN`.
    folded = np.full(size, _TURN, np.uint32)
    folded[: len(rows)] += np.asarray(numbers, np.uint32)
    placed = sharding.put_batch(self._mesh, (data, folded))
    with jax.set_mesh(self._mesh):
      return _turn_keys(*placed, impl=self._impl)


@jax.jit
def _key_data(keys: jax.Array) -> jax.Array:
  """Returns the keys' data, each row on its device. Shape `[P, G, ...]`."""
  data = jax.random.key_data(keys)
  return sharding.constrain(data, "batch", None, None)


@functools.partial(jax.jit, static_argnames="impl")
def _turn_keys(data: jax.Array, folded: jax.Array, *, impl: Any) -> jax.Array:
  keys = jax.random.wrap_key_data(data, impl=impl)
  # A row of a later turn has a prompt of its own, so its group size is 1.
  return jax.vmap(jax.random.fold_in)(keys, folded)[:, None]


def identities(names: Sequence[int]) -> np.ndarray:
  """Returns what distinguishes the problems of a batch when sampling.

  Args:
    names: One non-negative number for each problem, below 2**32.

  Returns:
    The name, and how often it occurred earlier in the batch, so that a problem
    that occurs twice gets other samples. uint32, shape `[P, 2]`.
  """
  seen = collections.Counter()
  rows = []
  for name in names:
    rows.append((name, seen[name]))
    seen[name] += 1
  return np.asarray(rows, np.uint32).reshape(-1, 2)


# One program, where JAX would compile each operation for every new shape.
@functools.partial(jax.jit, static_argnums=2)
def sample_keys(
  key: jax.Array, identities: Array, group_size: int
) -> jax.Array:
  """Returns one key for each problem and sample.

  A sample's key depends on the step's key and on the sample's identity alone:
  not on its place in the batch, nor on the other problems.

  Args:
    key: Key of this step; no two steps may use the same.
    identities: From `identities`. Shape `[P, 2]`.
    group_size: G.

  Returns:
    Keys of shape `[P, G]`.
  """
  fold = jax.random.fold_in
  data = jax.random.key_data(key)
  if data.shape[-1] > 2:
    # In a batch, generators other than threefry draw all rows from one key, so
    # that a row would depend on the others.
    key = jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")

  def of_problem(identity):
    problem_key = fold(fold(key, identity[0]), identity[1])
    return jax.vmap(lambda g: fold(problem_key, g))(jnp.arange(group_size))

  return jax.vmap(of_problem)(identities)
