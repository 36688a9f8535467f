"""Tells every second what is being compiled, while nothing else can."""

import contextlib
import re
import threading
from collections.abc import Callable

from distil_jax.training.logging.compile_watch import WATCH

_INTERVAL = 1.0  # seconds
_LEAST_SECONDS = 2.0  # shorter ones are not worth a line


class CompileTicker:
  """Calls a function while the watched thread waits for the compiler."""

  def __init__(self, show: Callable[[str | None], None]):
    """Starts a thread.

    Args:
      show: Called with a text each second, and with None when the program is
        compiled.
    """
    self._show = show
    self._is_closed = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the thread; nothing is shown any more."""
    self._is_closed.set()
    self._thread.join()

  def _run(self) -> None:
    is_shown = False
    while not self._is_closed.wait(_INTERVAL):
      pending = WATCH.pending
      if pending is not None and pending[1] >= _LEAST_SECONDS:
        is_shown = True
        self._tell(_text(*pending))
      elif is_shown:
        is_shown = False
        self._tell(None)

  def _tell(self, text: str | None) -> None:
    # The stream may be closed when a run ends by an error.
    with contextlib.suppress(ValueError, OSError):
      self._show(text)


def _text(name: str, seconds: float) -> str:
  # JAX calls a program `jit(step)`.
  inner = re.fullmatch(r"\w+\((.*)\)", name)
  return f"compiling {inner[1] if inner else name}  {seconds:.0f} s"
