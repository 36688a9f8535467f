"""Bytes on a chip: by arithmetic, and as the compiler finds them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """What a program needs of a chip's memory, bytes.

  Attributes:
    by_hand: its arguments, part by part, from shapes and shardings.
    arguments: the same by the compiler; None where it refused.
    temporaries: activations, gradients, what is gathered, and results that
      take no argument's place; None where the compiler refused.
    beside: what else is there while it runs.
    refused: what the program would need where the compiler found no room.
  """

  by_hand: Mapping[str, float]
  arguments: float | None = None
  temporaries: float | None = None
  beside: float = 0.0
  refused: float | None = None

  @property
  def arguments_by_hand(self) -> float:
    return sum(self.by_hand.values())

  @property
  def peak(self) -> float:
    """At once, at the most."""
    if self.refused is not None:
      return self.beside + self.refused
    return self.beside + (self.arguments or 0.0) + (self.temporaries or 0.0)


def of_tree(tree: Any) -> float:
  """Bytes of a tree of shapes with shardings, on one device.

  What has no sharding is on every device.
  """
  return float(sum(map(_of_leaf, jax.tree.leaves(tree))))


def _of_leaf(x: Any) -> float:
  place = getattr(x, "sharding", None)
  shape = x.shape if place is None else place.shard_shape(x.shape)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = jax.eval_shape(
      jax.random.key_data, jax.ShapeDtypeStruct((), x.dtype)
    )
    return math.prod(shape) * data.size * data.dtype.itemsize
  return math.prod(shape) * x.dtype.itemsize


def of_program(
  compiled: Any, by_hand: Mapping[str, float], beside: float
) -> Memory:
  """As the compiler finds it.

  Args:
    compiled: the program.
    by_hand: see `Memory`.
    beside: see `Memory`.
  """
  found = compiled.memory_analysis()
  # A CPU's `peak_memory_in_bytes` leaves out the temporaries.
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return Memory(
    by_hand=by_hand,
    arguments=found.argument_size_in_bytes,
    temporaries=found.temp_size_in_bytes + max(results, 0),
    beside=beside,
  )


def of_refusal(
  error: Exception, by_hand: Mapping[str, float], beside: float
) -> Memory | None:
  """What a compiler says that found no room; None: the error is another."""
  match = _USED.search(str(error))
  if "RESOURCE_EXHAUSTED" not in str(error) or not match:
    return None
  used, unit, *_ = match.groups()
  return Memory(
    by_hand=by_hand, beside=beside, refused=float(used) * _UNITS[unit]
  )
