"""Failures that cost a part of a step and no run: each kind is told once."""

import threading
from collections.abc import Callable

from distil_jax.distributed import process_group
from distil_jax.training.logging import progress

Tell = Callable[[str], None]


def on_screen(text: str) -> None:
  """Above the live line, with the name of this process if it is not alone."""
  progress.tell(f"distil-jax: {process_group.label()}{text}")


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
