"""Ctrl-C and SIGTERM: the first ends a command in order, the second at once."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_STATUS = 130  # what shells report for a command that Ctrl-C ended


def end() -> NoReturn:
  """Ends an interrupted process, with all that is registered for its end.

  Its devices may still be at work, on something that nobody holds to wait for.
  While Python was taken apart below it many a command has crashed, with
  another status.
  """
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(EXIT_STATUS)


@contextlib.contextmanager
def obeyed() -> Iterator[None]:
  """Within the block the first signal raises KeyboardInterrupt.

  The second ends the process on the spot, whatever it is doing. Python itself
  hears of a signal only between two of its instructions, and a compiled
  program can run for minutes: so a thread listens. Outside the main thread,
  which alone may handle signals, the block changes nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  earlier = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
  earlier_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  listener = threading.Thread(target=_listen, args=(reader,), daemon=True)
  listener.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(earlier_fd)
    for number, handler in earlier.items():
      signal.signal(number, handler)
    os.close(writer)  # the end of what the listener reads
    listener.join()
    os.close(reader)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
  """A signal within the block takes effect at its end.

  For what must not be done by half. See `obeyed` for a second signal.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  arrived = []

  def note(number, _):
    arrived.append(number)

  with _handled(note) as earlier:
    yield
  if arrived:
    handler = earlier[arrived[0]]
    if callable(handler):
      # Not by a new signal, which would count as the second.
      handler(arrived[0], None)
    else:
      signal.raise_signal(arrived[0])


@contextlib.contextmanager
def noted(note: Callable[[str], None]) -> Iterator[None]:
  """Within the block a signal does nothing but call `note` with its name.

  For what only several processes together can end. See `obeyed` for a second
  signal.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def handler(number, _):
    note(signal.Signals(number).name)

  with _handled(handler):
    yield


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """At the end of the block, takes back what a library in it took for itself.

  To Python its handlers are still there, so they are set anew.
  """
  earlier = {number: signal.getsignal(number) for number in _SIGNALS}
  try:
    yield
  finally:
    if threading.current_thread() is threading.main_thread():
      for number, handler in earlier.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def _handled(
  handler: Callable[..., None],
) -> Iterator[dict[signal.Signals, Any]]:
  """Gives signals another handler; in the block one sees the earlier ones."""
  earlier = {number: signal.signal(number, handler) for number in _SIGNALS}
  try:
    yield earlier
  finally:
    for number, before in earlier.items():
      signal.signal(number, before)


def _listen(reader: int) -> None:
  """Reads the number of each signal; returns when the pipe is closed."""
  count = 0
  while received := os.read(reader, 1):
    count += received[0] in _SIGNALS
    if count == 2:
      os._exit(EXIT_STATUS)


def _interrupt(*_) -> None:
  raise KeyboardInterrupt
