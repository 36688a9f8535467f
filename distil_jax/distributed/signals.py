"""Handles Ctrl-C and SIGTERM: the first ends a command in order.

The second ends it at once. Nothing here imports jax.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from distil_jax.distributed import private_api

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_STATUS = 130  # what shells report for a command that Ctrl-C ended


def end_process() -> NoReturn:
  """Ends an interrupted process, after all that is registered for its end.

  The devices may still run a program whose results nobody waits for. When
  Python took the interpreter apart below it, commands crashed with another
  exit status, so the process ends without that.
  """
  private_api.run_exit_functions()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(EXIT_STATUS)


@contextlib.contextmanager
def raised() -> Iterator[None]:
  """Makes the first signal within the block raise KeyboardInterrupt.

  The second one ends the process at once, whatever it is doing. Python runs a
  handler only between two of its own instructions, and a compiled program can
  take minutes, so a thread listens for the second signal. Only the main thread
  may handle signals; in others the block changes nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  reader, writer = os.pipe()
  # What handles a signal writes to it, at any moment, and must not wait.
  os.set_blocking(writer, False)
  previous = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
  previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  listener = threading.Thread(target=_listen, args=(reader,), daemon=True)
  listener.start()
  try:
    yield
  finally:
    # Taken back before the pipe is closed: a signal in between would be written
    # to a descriptor that may belong to another file by then.
    signal.set_wakeup_fd(previous_fd)
    for number, handler in previous.items():
      signal.signal(number, handler)
    os.close(writer)  # makes the listener read the end of the pipe
    listener.join()
    os.close(reader)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Delays the effect of a signal until the end of the block.

  This is for work that must not be left half done. A second signal still ends
  the process, see `raised`.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  arrived = []

  def remember(number, _):
    arrived.append(number)

  with _handled_by(remember) as previous:
    yield
  if arrived:
    handler = previous[arrived[0]]
    if callable(handler):
      # Raising the signal again would count as the second one.
      handler(arrived[0], None)
    else:
      # No function handled it before, so only the system can.
      signal.raise_signal(arrived[0])


@contextlib.contextmanager
def forwarded(receive: Callable[[str], None]) -> Iterator[None]:
  """Makes a signal within the block only call a function with its name.

  This is for a run of several processes, which only together can stop in
  order. A second signal still ends the process, see `raised`.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def handler(number, _):
    receive(signal.Signals(number).name)

  with _handled_by(handler):
    yield


@contextlib.contextmanager
def _handled_by(
  handler: Callable[..., None],
) -> Iterator[dict[signal.Signals, Any]]:
  """Replaces the handlers within the block; yields the previous ones."""
  previous = {number: signal.signal(number, handler) for number in _SIGNALS}
  try:
    yield previous
  finally:
    for number, former in previous.items():
      signal.signal(number, former)


def _listen(reader: int) -> None:
  """Ends the process at the second signal; returns when the pipe is closed."""
  count = 0
  while received := os.read(reader, 1):
    # Signals of other kinds are written to the pipe too.
    count += received[0] in _SIGNALS
    if count == 2:
      os._exit(EXIT_STATUS)


def _interrupt(*_) -> None:
  raise KeyboardInterrupt
