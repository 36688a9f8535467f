"""Shows what a training step does that takes far longer than the others."""

import collections
import contextlib
import faulthandler
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

# A step is slow from so many times the median of the latest steps on.
_FACTOR = 10
_LEAST_SECONDS = 60.0
_NUM_STEPS = 50
# The first step compiles, and the second and third may do so too.
_FEWEST = 5


class Watchdog:
  """Prints the stacks of all threads, once in a step, and lets it go on.

  Every process has one. A process that waits for another shows its wait, and
  the other shows what it waits for.
  """

  def __init__(
    self,
    say: Callable[[str], None],
    *,
    least_seconds: float = _LEAST_SECONDS,
    factor: float = _FACTOR,
  ):
    """Watches nothing yet.

    Args:
      say: shows a message.
      least_seconds: no faster step is slow.
      factor: times the median; from there on a step is slow.
    """
    self._say = say
    self._least_seconds = least_seconds
    self._factor = factor
    self._seconds: collections.deque[float] = collections.deque(
      maxlen=_NUM_STEPS
    )
    self._timer: threading.Timer | None = None

  @contextlib.contextmanager
  def watch(self, step: int) -> Iterator[None]:
    """Watches a step for the time of a block.

    Args:
      step: the training step, counted from 1.
    """
    started = time.monotonic()
    self._begin(step)
    try:
      yield
    finally:
      self._end()
    self._seconds.append(time.monotonic() - started)

  def _begin(self, step: int) -> None:
    if len(self._seconds) >= _FEWEST:
      median = statistics.median(self._seconds)
      limit = max(self._factor * median, self._least_seconds)
      self._timer = threading.Timer(limit, self._bark, [step, limit, median])
      self._timer.daemon = True
      self._timer.start()
      # The interpreter's own clock, and not a thread of Python: a step that is
      # stuck in C may never let one run. It comes after the message.
      if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(limit + 0.5, file=sys.__stderr__)

  def _end(self) -> None:
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None
      faulthandler.cancel_dump_traceback_later()

  def _bark(self, step: int, limit: float, median: float) -> None:
    # Of several processes one shows messages, and each its own stacks.
    say = self._say if jax.process_index() == 0 else _print
    say(
      f"step {step} takes longer than {limit:.3g} s, where the latest steps "
      f"took {median:.3g} s: process {jax.process_index()} goes on, and these "
      "are the stacks of its threads"
    )


def _print(text: str) -> None:
  print(text, file=sys.__stderr__, flush=True)
