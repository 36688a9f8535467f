"""Warnings about failures that cost part of a step: each kind is shown once."""

import sys
import threading
from collections.abc import Callable

Tell = Callable[[str], None]


def to_stderr(text: str) -> None:
  """Prints a warning where no progress line is in the way."""
  print(f"distil-jax: {text}", file=sys.stderr, flush=True)


class WarnOnce:
  """Tells of the first failure of a kind; any thread may complain."""

  def __init__(self, tell: Tell):
    self._tell = tell
    self._told: set[str] = set()
    self._lock = threading.Lock()

  def __call__(self, kind: str, text: str) -> None:
    """Tells the text, unless one of that kind has been told."""
    with self._lock:
      if kind in self._told:
        return
      self._told.add(kind)
    self._tell(text)
