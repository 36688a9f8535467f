"""Computes bytes on a chip: by arithmetic, and from the compiler."""

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
  """Holds the bytes of a chip's memory that a program needs.

  Attributes:
    by_hand: Its arguments, part by part, from shapes and shardings.
    arguments: The same from the compiler. None if it refused the program.
    temporaries: Activations, gradients, gathered arrays, and results that do
      not replace an argument. None if the compiler refused the program.
    beside: Other arrays that stay in memory while the program runs.
    refused: Bytes that the program would need, if the compiler refused it
      because it does not fit; otherwise None.
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
    """Returns the largest number of bytes in use at the same time."""
    if self.refused is not None:
      return self.beside + self.refused
    return self.beside + (self.arguments or 0.0) + (self.temporaries or 0.0)


def tree_bytes(tree: Any) -> float:
  """Returns the bytes of a tree of shapes with shardings, on one device.

  A shape without a sharding is on every device.
  """
  return float(sum(map(_leaf_bytes, jax.tree.leaves(tree))))


def _leaf_bytes(x: Any) -> float:
  sharding = getattr(x, "sharding", None)
  shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
  # The dtype of a key does not give the bytes of its numbers.
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = jax.eval_shape(
      jax.random.key_data, jax.ShapeDtypeStruct((), x.dtype)
    )
    return math.prod(shape) * data.size * data.dtype.itemsize
  return math.prod(shape) * x.dtype.itemsize


def from_compiled(
  compiled: Any, by_hand: Mapping[str, float], beside: float
) -> Memory:
  """Returns the memory of a compiled program.

  Args:
    compiled: The program.
    by_hand, beside: See `Memory`.
  """
  found = compiled.memory_analysis()
  # `peak_memory_in_bytes` leaves out the temporaries on a CPU.
  # A donated argument and the result that replaces it are one buffer.
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return Memory(
    by_hand=by_hand,
    arguments=found.argument_size_in_bytes,
    temporaries=found.temp_size_in_bytes + max(results, 0),
    beside=beside,
  )


def from_refusal(
  error: Exception, by_hand: Mapping[str, float], beside: float
) -> Memory | None:
  """Returns the memory that a refused program would need.

  Args:
    error: What the compiler raised.
    by_hand, beside: See `Memory`.

  Returns:
    The memory; None if the error has another reason than memory.
  """
  # No attribute of the error has the number, only its text.
  match = _USED.search(str(error))
  if "RESOURCE_EXHAUSTED" not in str(error) or not match:
    return None
  used, unit, *_ = match.groups()
  return Memory(
    by_hand=by_hand, beside=beside, refused=float(used) * _UNITS[unit]
  )
