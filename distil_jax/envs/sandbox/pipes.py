"""Talks to a child process through pipes, with a deadline for each message.

Deadlines need no signal, so they hold in any thread.
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
  """Means that the child has not read, or not answered, in time."""


class GoneError(RuntimeError):
  """Means that the child has ended."""


class Child:
  """A child process that leads a process group of its own."""

  def __init__(
    self,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: str | None = None,
    clean: Callable[[], None] = lambda: None,
  ):
    """Starts the process.

    Args:
      command: Program and arguments.
      environment: Its environment variables.
      directory: Its working directory; None means that of this process.
      clean: Is called once after it has ended.

    Raises:
      OSError: It cannot be started; then `clean` is not called.
    """
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      # A pipe that nobody reads would fill up and stop the child.
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C must interrupt this process alone.
      env=dict(environment),
      cwd=directory,
      # The descriptors are used directly, so no file may keep bytes back.
      bufsize=0,
    )
    # Runs at the latest when this interpreter exits.
    self.end = weakref.finalize(self, _end, self._process, os.getpid(), clean)
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._input = self._process.stdin.fileno()
    self._output = self._process.stdout.fileno()
    self._read = bytearray()
    # A write to a full pipe would otherwise wait beyond the deadline.
    for descriptor in (self._input, self._output):
      os.set_blocking(descriptor, False)

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def is_running(self) -> bool:
    return self._process.poll() is None

  def kill(self) -> None:
    """Kills its process group, even if a thread waits for its answer."""
    # The number of a process that has ended may belong to another one.
    if self.is_running:
      _kill_group(self._process)

  def write(self, data: bytes, deadline: float) -> None:
    """Writes to the process's standard input.

    Args:
      data: Bytes to write.
      deadline: Value of `time.monotonic` until which all must be written.

    Raises:
      LateError: The deadline has passed.
      GoneError: The process has ended.
    """
    view = memoryview(data)
    # In pieces, because a pipe takes what it has room for and no more.
    while view:
      _wait(self._input, selectors.EVENT_WRITE, deadline)
      try:
        view = view[os.write(self._input, view[:_CHUNK]) :]
      except BlockingIOError:
        continue
      except BrokenPipeError:
        raise GoneError("the process has ended") from None

  def line(self, deadline: float) -> bytes:
    """Reads the next line, without its line feed; raises as `write` does."""
    while b"\n" not in self._read:
      self._read_more(deadline)
    return self._take(self._read.index(b"\n") + 1)[:-1]

  def take(self, length: int, deadline: float) -> bytes:
    """Reads the next `length` bytes; raises as `write` does."""
    while len(self._read) < length:
      self._read_more(deadline)
    return self._take(length)

  def _take(self, length: int) -> bytes:
    found = bytes(self._read[:length])
    del self._read[:length]
    return found

  def _read_more(self, deadline: float) -> None:
    _wait(self._output, selectors.EVENT_READ, deadline)
    piece = os.read(self._output, _CHUNK)
    if not piece:
      raise GoneError("the process has ended")
    self._read += piece


def num_cores() -> int:
  """Returns the number of cores that this process may use."""
  # Schedulers give a process fewer cores than the machine has.
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _end(
  process: subprocess.Popen[bytes], owner: int, clean: Callable[[], None]
) -> None:
  """Kills the process, waits for its end and cleans up."""
  # A forked copy of the owner also runs this finalizer when it exits.
  if os.getpid() != owner:
    return
  # Processes of its group may outlive it.
  _kill_group(process)
  process.wait()
  for pipe in (process.stdin, process.stdout):
    if pipe is not None:
      # Closing flushes, which fails because nobody reads any more.
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
