"""A process that is asked and that answers, each by a deadline.

A deadline needs no signal, so it holds in any thread.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

_CHUNK = 1 << 16


class LateError(RuntimeError):
  """It has not read, or not answered, in time."""


class GoneError(RuntimeError):
  """It has ended."""


class Child:
  """A process of this one, which leads a group of its own."""

  def __init__(
    self,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: str | None = None,
    clean: Callable[[], None] = lambda: None,
  ):
    """Starts it.

    Args:
      command: program and arguments.
      environment: its variables.
      directory: where it works; None: here.
      clean: is called once it has ended.

    Raises:
      OSError: it cannot be started; then `clean` is not called.
    """
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # an interrupt of this process is not for it
      env=dict(environment),
      cwd=directory,
      bufsize=0,
    )
    # Also where nobody ends it: at the latest when Python does.
    self.end = weakref.finalize(self, _end, self._process, os.getpid(), clean)
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._input = self._process.stdin.fileno()
    self._output = self._process.stdout.fileno()
    self._read = bytearray()
    for descriptor in (self._input, self._output):
      os.set_blocking(descriptor, False)

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def is_running(self) -> bool:
    return self._process.poll() is None

  def kill(self) -> None:
    """Ends it and its group, also under who waits for an answer."""
    if self.is_running:
      _kill_group(self._process)

  def write(self, data: bytes, deadline: float) -> None:
    """Has it read.

    Args:
      data: all of it.
      deadline: by `time.monotonic`.

    Raises:
      LateError, GoneError: it does not.
    """
    view = memoryview(data)
    while view:
      _wait(self._input, selectors.EVENT_WRITE, deadline)
      try:
        view = view[os.write(self._input, view[:_CHUNK]) :]
      except BlockingIOError:
        continue
      except BrokenPipeError:
        raise GoneError("it has ended") from None

  def line(self, deadline: float) -> bytes:
    """The next line that it writes, without its end; see `write`."""
    while b"\n" not in self._read:
      self._more(deadline)
    return self._taken(self._read.index(b"\n") + 1)[:-1]

  def take(self, length: int, deadline: float) -> bytes:
    """The next bytes that it writes, so many; see `write`."""
    while len(self._read) < length:
      self._more(deadline)
    return self._taken(length)

  def _taken(self, length: int) -> bytes:
    found = bytes(self._read[:length])
    del self._read[:length]
    return found

  def _more(self, deadline: float) -> None:
    _wait(self._output, selectors.EVENT_READ, deadline)
    piece = os.read(self._output, _CHUNK)
    if not piece:
      raise GoneError("it has ended")
    self._read += piece


def num_cores() -> int:
  """Cores that this process may use, each of which a child can keep busy."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _end(
  process: subprocess.Popen[bytes], owner: int, clean: Callable[[], None]
) -> None:
  """Ends it, unless this is a copy of the process that has it."""
  if os.getpid() != owner:
    return
  _kill_group(process)
  process.wait()
  for pipe in (process.stdin, process.stdout):
    if pipe is not None:
      # What was not sent cannot be.
      with contextlib.suppress(OSError):
        pipe.close()
  clean()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)


def _wait(descriptor: int, event: int, deadline: float) -> None:
  with selectors.DefaultSelector() as selector:
    selector.register(descriptor, event)
    if not selector.select(max(0.0, deadline - time.monotonic())):
      raise LateError("no answer came in time")
