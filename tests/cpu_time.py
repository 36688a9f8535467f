"""Limits of the work that a call may do, whatever else the machine does."""

import contextlib
import time
from collections.abc import Iterator


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
  """Fails if this thread computes for longer than some seconds in the block.

  Time during which it waits for a core does not count, so that a busy machine
  fails no test.
  """
  begun = time.thread_time()
  yield
  spent = time.thread_time() - begun
  assert spent < seconds, f"{spent:.2f} s of CPU time, not {seconds:g} s"
