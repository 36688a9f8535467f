"""Reads the parts of parameters that this process's devices hold."""

import concurrent.futures
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from distil_jax.models.hf_files import (
  FLOATS,
  Box,
  Copy,
  Part,
  Report,
  StoredTensor,
  copy_parts,
  zeros,
)
from distil_jax.models.hf_layout import Layout

_Name = TypeVar("_Name")

_NUM_THREADS = 8


def read_all(
  tensors: Mapping[str, StoredTensor],
  params: Mapping[_Name, tuple[Layout, Any]],
  *,
  report: Report,
  copy: Copy,
) -> dict[_Name, jax.Array]:
  """Reads parameters, each part that is held here once.

  The host holds one device's part of one parameter at a time.

  Args:
    tensors: The tensors of all files, by name.
    params: Layout and `jax.ShapeDtypeStruct` of each parameter.
    report: Told how many bytes are read, and how many there are in all.
    copy: Copies a piece of a tensor.
  """
  num_done = 0
  num_total = sum(
    _num_bytes(tensors, layout, box)
    for layout, leaf in params.values()
    for box, _ in held_boxes(leaf)
  )

  def count(num_bytes: int) -> None:
    nonlocal num_done
    num_done += num_bytes
    report(num_done, num_total)

  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:

    def read(layout: Layout, leaf: Any, box: Box) -> np.ndarray:
      # Zero, because `copy` may write the upper halves of the elements alone.
      host = zeros([axis.stop - axis.start for axis in box], leaf.dtype)
      parts = _parts(tensors, layout, leaf.shape, box, host)
      copy_parts(list(parts), pool, copy, count)
      return host

    return {
      name: _place(layout, leaf, read)
      for name, (layout, leaf) in params.items()
    }


def _place(
  layout: Layout, leaf: Any, read: Callable[[Layout, Any, Box], np.ndarray]
) -> jax.Array:
  """Reads a parameter part by part, and puts each on its devices."""
  arrays = []
  for box, devices in held_boxes(leaf):
    host = read(layout, leaf, box)
    if None in devices:
      return jax.device_put(host)  # uncommitted
    arrays += [jax.device_put(host, device) for device in devices]
    # Let go of this part before the next is read: jax keeps what it has copied
    # until Python collects garbage.
    jax.block_until_ready(arrays)
    del host
    gc.collect(0)
  return jax.make_array_from_single_device_arrays(
    leaf.shape, leaf.sharding, arrays, dtype=leaf.dtype
  )


def held_boxes(leaf: Any) -> list[tuple[Box, list[Any]]]:
  """Returns the parts of a parameter that this process's devices hold.

  Each part comes with the devices that hold it; None is the default device.
  """
  if getattr(leaf, "sharding", None) is None:
    return [(tuple(slice(0, size) for size in leaf.shape), [None])]
  held: dict[tuple[tuple[int, int], ...], list[Any]] = {}
  places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
  for device, index in places.items():
    bounds = tuple(
      axis.indices(size)[:2]
      for axis, size in zip(index, leaf.shape, strict=True)
    )
    held.setdefault(bounds, []).append(device)
  return [
    (tuple(slice(*axis) for axis in bounds), devices)
    for bounds, devices in held.items()
  ]


def _tensors_in(
  layout: Layout, box: Box
) -> Iterator[tuple[tuple[int, ...], str]]:
  """Yields the tensors of a part: places in its leading axes, and names."""
  leading = box[: layout.num_stacked]
  for place in np.ndindex(*(axis.stop - axis.start for axis in leading)):
    numbers = (axis.start + i for axis, i in zip(leading, place, strict=True))
    yield place, layout.name.format(*numbers)


def _num_bytes(
  tensors: Mapping[str, StoredTensor], layout: Layout, box: Box
) -> int:
  """Returns the bytes that a part of a parameter takes in the files."""
  inner = box[layout.num_stacked :]
  return math.prod(axis.stop - axis.start for axis in inner) * sum(
    FLOATS[tensors[name].dtype].itemsize for _, name in _tensors_in(layout, box)
  )


def _parts(
  tensors: Mapping[str, StoredTensor],
  layout: Layout,
  shape: tuple[int, ...],
  box: Box,
  host: np.ndarray,
) -> Iterator[Part]:
  """Yields which parts of the files belong where in an array of the host."""
  shape, inner = shape[layout.num_stacked :], box[layout.num_stacked :]
  for place, name in _tensors_in(layout, box):
    # Layouts return views, so that nothing is read before it is copied.
    view = layout.read(tensors[name].array, shape)[inner]
    yield Part(view, host[place], tensors[name].file)
