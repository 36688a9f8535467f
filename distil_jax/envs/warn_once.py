"""Warns of failures that cost part of a step, once for each kind of failure."""

import sys
import threading
from collections.abc import Callable

Warn = Callable[[str], None]


def to_stderr(text: str) -> None:
  """Prints a warning, for programs that show no progress line."""
  print(f"distil-jax: {text}", file=sys.stderr, flush=True)


class WarnOnce:
  """Passes on the first warning of each kind; threads may share it."""

  def __init__(self, warn: Warn):
    self._warn = warn
    self._warned_kinds: set[str] = set()
    self._lock = threading.Lock()

  def __call__(self, kind: str, text: str) -> None:
    """Passes the text on, unless one of that kind was passed on before."""
    with self._lock:
      if kind in self._warned_kinds:
        return
      self._warned_kinds.add(kind)
    # Outside the lock, so that a slow terminal does not stop other threads.
    self._warn(text)
