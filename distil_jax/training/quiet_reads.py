"""Keeps failed reads of a checkpoint from printing what says nothing."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_late_answers() -> Iterator[None]:
  """Hides answers of tensorstore that nobody waits for any more.

  orbax opens all arrays at once and closes its event loop at the first that
  fails. Each of the others then prints a traceback, which says only that.
  """
  before = sys.unraisablehook

  def show(found: "sys.UnraisableHookArgs") -> None:
    if str(found.exc_value) != "Event loop is closed":
      before(found)

  sys.unraisablehook = show
  try:
    yield
  finally:
    sys.unraisablehook = before
