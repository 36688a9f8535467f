"""Reduces numbers over all processes, on their devices."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def block(size: int) -> slice:
  """Returns this process's part of a global batch.

  Args:
    size: Items of the global batch; a multiple of the number of processes.
  """
  share = size // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def global_sums(values: Mapping[str, float]) -> dict[str, float]:
  """Sums values by name; a name that a process lacks counts as 0 there."""
  if jax.process_count() == 1:
    return dict(values)
  # Sorted, so that all processes put their values in the same order.
  names = sorted(set().union(*_gather_names(sorted(values))))
  own = np.asarray([values.get(name, 0.0) for name in names], np.float64)
  # As bytes, because float64 would become float32 on its way through a device.
  rows = multihost_utils.process_allgather(own.view(np.uint8))
  sums = np.asarray(rows).view(np.float64).reshape(-1, len(names)).sum(axis=0)
  return dict(zip(names, sums.tolist(), strict=True))


def global_max(value: int) -> int:
  """Returns the largest value of all processes."""
  return global_maxima([value])[0]


def global_maxima(values: Sequence[int]) -> list[int]:
  """Returns the largest of each value over all processes, in one exchange."""
  if jax.process_count() == 1:
    return list(values)
  rows = multihost_utils.process_allgather(np.asarray(values, np.int32))
  return np.max(rows.reshape(-1, len(values)), axis=0).tolist()


def gathered(value: int) -> list[int]:
  """Returns the values of all processes, in the order of the processes."""
  if jax.process_count() == 1:
    return [value]
  values = multihost_utils.process_allgather(np.int32(value))
  return np.asarray(values).reshape(-1).tolist()


def wait_for_all(reason: str) -> None:
  """Waits until every process has called this with the same reason."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(reason)


def _gather_names(names: list[str]) -> list[set[str]]:
  """Returns the names that each process has."""
  text = "\n".join(names).encode()
  # Gathered arrays must have one shape, so shorter texts are padded.
  length = global_max(len(text))
  padded = np.frombuffer(text.ljust(length, b"\n"), np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [set(bytes(row).decode().split("\n")) - {""} for row in rows]
