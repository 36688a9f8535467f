"""Counts how often each byte of mapped files is read."""

import pathlib
import threading

import numpy as np

from distil_jax.models import hf_files


class BytesRead:
  """Copies as `hf_files.copy`, and notes which bytes that reads."""

  def __init__(self):
    self._views = []
    self._lock = threading.Lock()

  def copy(self, source: np.ndarray, target: np.ndarray) -> None:
    hf_files.copy(source, target)
    with self._lock:
      self._views.append(source)

  def counts(self, path: pathlib.Path) -> np.ndarray:
    """Returns the number of times that each byte of a file was read."""
    size = path.stat().st_size
    content = path.read_bytes()
    counts = np.zeros(size, np.int64)
    for view in self._views:
      whole = _mapping(view)
      if len(whole) != size or whole.tobytes() != content:
        continue  # of another file
      offset = view.ctypes.data - whole.ctypes.data
      places = offset + sum(
        np.arange(n).reshape(n, *[1] * (view.ndim - 1 - axis)) * stride
        for axis, (n, stride) in enumerate(
          zip(view.shape, view.strides, strict=True)
        )
      )
      for byte in range(view.itemsize):
        np.add.at(counts, (places + byte).ravel(), 1)
    return counts


def _mapping(view: np.ndarray) -> np.ndarray:
  """Returns all bytes of the file that a view belongs to."""
  while isinstance(view.base, np.ndarray):
    view = view.base
  return np.frombuffer(view.base, np.uint8)
