"""Reads parts of the tensors in safetensors files through memory maps.

A view of a mapped tensor costs nothing; its bytes are read when the view is
copied. Whoever copies a part of a tensor therefore reads that part alone, up to
the pages of the file system.
"""

import concurrent.futures
import dataclasses
import json
import math
import mmap
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
import safetensors

# Types that can be read, by their names in the files.
FLOATS = {
  "BF16": np.dtype(jnp.bfloat16),
  "F16": np.dtype(np.float16),
  "F32": np.dtype(np.float32),
}

# What a thread copies at once; mapped pages are given back after each.
_PIECE_BYTES = 4 * 2**20
# A transposed copy is several times faster if what it reads fits into a cache.
_BLOCK_BYTES = 2**19
# An array of this size has huge pages.
_HUGE_BYTES = 2**22

# Copies a part of a mapped tensor into an array of the same shape and another
# or the same type; the target is zero before.
Copy = Callable[[np.ndarray, np.ndarray], None]
# Is told the numbers of bytes done and of all bytes.
Report = Callable[[int, int], None]
Box = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """Describes a tensor in a file.

  Attributes:
    shape: Its shape.
    dtype: Name of its type in the format, such as `BF16`.
    file: The file's memory map.
    offset: Position of its first byte in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  file: mmap.mmap
  offset: int

  @property
  def array(self) -> np.ndarray:
    """Returns a view of its mapped bytes; the type must be in `FLOATS`."""
    return np.frombuffer(
      self.file, FLOATS[self.dtype], math.prod(self.shape), self.offset
    ).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Part:
  """Says which part of a mapped file goes where.

  Attributes:
    source: A view of a mapped tensor, in the layout of the target.
    target: A view of an array of this package, of the same shape.
    file: The file's memory map.
  """

  source: np.ndarray
  target: np.ndarray
  file: mmap.mmap


def open_file(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Maps a file into memory. Returns its tensors by name.

  Raises:
    safetensors.SafetensorError: The file is damaged or incomplete.
  """
  with safetensors.safe_open(path, "numpy"):
    pass  # the library checks the header, and that the file is complete
  with path.open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  header.pop("__metadata__", None)
  return {
    name: StoredTensor(
      tuple(entry["shape"]),
      entry["dtype"],
      mapped,
      8 + size + entry["data_offsets"][0],
    )
    for name, entry in header.items()
  }


def zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Returns an array of zeros that is cheap to fill.

  Huge pages save most of the page faults, which take longer than copying. The
  memory begins at a page, so that a CPU can take it over without a copy.
  """
  count = math.prod(shape)
  num_bytes = count * np.dtype(dtype).itemsize
  if num_bytes < _HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
    return np.zeros(shape, dtype)
  memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  memory.madvise(mmap.MADV_HUGEPAGE)
  return np.frombuffer(memory, dtype, count).reshape(shape)


def boxes(source: np.ndarray, num_bytes: int) -> Iterator[Box]:
  """Cuts an array into boxes of at most this size, or of one element.

  It is cut along its largest stride, so that a box of a mapped tensor is a
  range of the file's rows whatever the order of the axes.
  """
  whole = tuple(slice(0, size) for size in source.shape)
  pending = [whole] if source.size else []
  while pending:
    box = pending.pop()
    sizes = [s.stop - s.start for s in box]
    if math.prod(sizes) * source.itemsize <= num_bytes or max(sizes) == 1:
      yield box
      continue
    axis = max(
      (a for a, size in enumerate(sizes) if size > 1),
      key=lambda a: abs(source.strides[a]),
    )
    start, stop = box[axis].start, box[axis].stop
    middle = (start + stop) // 2
    for half in (slice(middle, stop), slice(start, middle)):
      pending.append((*box[:axis], half, *box[axis + 1 :]))


def copy(source: np.ndarray, target: np.ndarray) -> None:
  """Copies an array into another of the same shape, and converts its type.

  Args:
    source: Any strides.
    target: Zero; elements of its last axis are next to each other.
  """
  for box in boxes(source, _BLOCK_BYTES):
    _copy_block(source[box], target[box])


def _copy_block(source: np.ndarray, target: np.ndarray) -> None:
  # NumPy holds Python's lock while it handles bfloat16, so that threads would
  # wait for each other; it does not for integers.
  if source.dtype == target.dtype:
    bits = np.dtype(f"u{source.itemsize}")
    target.view(bits)[...] = source.view(bits)
  elif (source.dtype, target.dtype) == (FLOATS["BF16"], FLOATS["F32"]):
    # A bfloat16 is the upper half of the float32 of the same value.
    target.view(np.uint16)[..., 1::2] = source.view(np.uint16)
  else:
    target[...] = source


def copy_parts(
  parts: Sequence[Part],
  pool: concurrent.futures.Executor,
  copy: Copy,
  report: Callable[[int], None],
) -> None:
  """Copies parts of mapped files in pieces, several at a time.

  Args:
    parts: What to copy.
    pool: Runs the copies.
    copy: Copies one piece.
    report: Is told the bytes of each piece that is done.
  """

  def copy_piece(part: Part, box: Box) -> int:
    source = part.source[box]
    copy(source, part.target[box])
    _give_back(part.file, source)
    return source.nbytes

  pieces = [
    pool.submit(copy_piece, part, box)
    for part in parts
    for box in boxes(part.source, _PIECE_BYTES)
  ]
  for piece in concurrent.futures.as_completed(pieces):
    report(piece.result())


def equal(first: StoredTensor, second: StoredTensor, box: Box) -> bool:
  """Returns True if a part of two tensors of one shape has the same values."""
  one, other = first.array[box], second.array[box]
  for piece in boxes(one, _PIECE_BYTES):
    if not np.array_equal(
      one[piece].astype(np.float32), other[piece].astype(np.float32)
    ):
      return False
    _give_back(first.file, one[piece])
    _give_back(second.file, other[piece])
  return True


def _give_back(file: mmap.mmap, view: np.ndarray) -> None:
  """Removes the pages of a view from this process; the cache keeps them."""
  if not hasattr(mmap, "MADV_DONTNEED"):
    return  # the system gives them back when memory is short
  begin = np.frombuffer(file, np.uint8).ctypes.data
  low, high = np.lib.array_utils.byte_bounds(view)
  first = (low - begin) // mmap.PAGESIZE * mmap.PAGESIZE
  file.madvise(mmap.MADV_DONTNEED, first, high - begin - first)
