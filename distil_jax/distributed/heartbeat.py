"""Notices when another process has died or failed, and then ends this one.

Collectives on the devices wait forever for a process that is gone, and the main
thread waits with them. So a thread of every process writes a sign of life to
jax's coordination service once a second, and reads there what others announce.
It ends the process itself, with a message that names the cause, before jax's
own heartbeat aborts the process with nothing but a stack trace.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

import jax

from distil_jax.distributed.private_api import CoordinationService

POLL_SECONDS = 1.0
# Polls without a sign of life after which a process counts as dead. The limit
# is long because a thread can be kept from running while another holds Python's
# lock; after a failed collective there is no reason to wait that long.
_SILENT_POLLS, _SILENT_POLLS_AFTER_FAILURE = 40, 5
# How long a process that fails stays reachable, and looks for an earlier cause.
_LAST_WORDS_SECONDS = 10.0

ROOT = "distil_jax/"
_ALIVE, ANNOUNCED = ROOT + "alive/", ROOT + "announced/"
_FAILED, _BROKEN = ANNOUNCED + "failed/", ANNOUNCED + "broken/"
_LEFT = ROOT + "left/"

Announcements = list[tuple[str, str]]


class Heartbeat:
  """Shows that this process is alive, and watches the others.

  Attributes:
    has_failed: True once this process is about to end because it or another
      one has failed.
  """

  def __init__(
    self,
    service: CoordinationService,
    index: int,
    count: int,
    connections: list[socket.socket],
    on_poll: Callable[[Announcements], None],
  ):
    """Starts the threads that watch.

    Args:
      service: The coordination service of the run.
      index: Number of this process, from 0.
      count: Number of processes.
      connections: What `rendezvous.meet` returned; may be empty.
      on_poll: Called once a poll, in the listening thread, with what all
        processes have announced.
    """
    self.has_failed = False
    self._service = service
    self._index = index
    self._count = count
    self._connections = connections
    self._on_poll = on_poll
    self._name = f"{socket.gethostname()}, pid {os.getpid()}"
    # Held while it is decided who ends the process, main thread or listener.
    self._lock = threading.Lock()
    self._is_over = threading.Event()
    self._num_polls = 0
    # Used by process 0 only: the last sign of each process, and the number of
    # polls since it last changed.
    self._signs: dict[str, tuple[str, int]] = {}
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()
    if index:
      threading.Thread(target=self._watch_first_process, daemon=True).start()

  def stop(self) -> None:
    """Ends the watch; from here on no failure of another ends this process."""
    self._is_over.set()
    self._listener.join()

  def fail(self, error: BaseException) -> str | None:
    """Announces that this process has failed, so that the others end too.

    Args:
      error: What the main thread failed with.

    Returns:
      What happened to another process before, if `error` is only a consequence
      of that; otherwise None.
    """
    with self._lock:
      self.has_failed = True  # from here on the listener ends nothing
    with contextlib.suppress(RuntimeError):
      cause = self._earlier_failure(error) if _is_from_runtime(error) else None
      if cause is not None:
        # This process counts as gone and not as failed, so that the others name
        # the first failure and not its consequence.
        self._service.set(f"{_LEFT}{self._index}", "")
        self._wait_for_others()
        return cause
      text = "interrupted"
      if not isinstance(error, KeyboardInterrupt):
        text = str(error) or type(error).__name__
      self._service.set(f"{_FAILED}{self._index}", f"({self._name}): {text}")
      self._wait_for_others()
      return None
    # The service has not answered, so process 0 is gone.
    self._end_without_service()
    raise AssertionError  # not reached

  def _earlier_failure(self, error: BaseException) -> str | None:
    """Returns the failure of another process that may have caused an error.

    The runtime reports the end of another process as a failed collective, and
    often before the news of that end has arrived.
    """
    self._service.set(f"{_BROKEN}{self._index}", "")
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < deadline:
      for key, text in self._service.list(_FAILED):
        if key != f"{_FAILED}{self._index}":
          return f"{_failure(key, text)} (here: {_first_line(error)})"
      time.sleep(POLL_SECONDS / 4)
    return None

  def _wait_for_others(self) -> None:
    """Makes process 0 end last, because the service lives in it."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while self._index == 0 and time.monotonic() < deadline:
      gone = {number_of(key) for key, _ in self._service.list(_LEFT)}
      gone |= {number_of(key) for key, _ in self._service.list(_FAILED)}
      if len(gone | {0}) == self._count:
        # The others have said that they end, but need a moment for it.
        time.sleep(POLL_SECONDS / 4)
        return
      time.sleep(POLL_SECONDS / 4)

  def _end_without_service(self) -> None:
    """Ends the process before jax does, which would print a stack trace."""
    # The lock is never released, so that no other thread ends the process with
    # another message.
    with self._lock:
      print(
        f"distil-jax: process {self._index}: ends with process 0, which is "
        "gone: it was killed, or its host is down or out of reach; see its own "
        "output",
        file=sys.stderr,
        flush=True,
      )
      os._exit(1)

  def _listen(self) -> None:
    """Polls the service until the watch is over or the service is gone."""
    while not self._is_over.wait(POLL_SECONDS):
      self._num_polls += 1
      try:
        sign = f"{self._num_polls} {self._name}"
        self._service.set(f"{_ALIVE}{self._index}", sign)
        announced = self._service.list(ANNOUNCED)
        # One process decides who is dead, so that all give the same cause.
        if self._index == 0:
          self._find_dead_processes(announced)
        for key, text in announced:
          if key.startswith(_FAILED):
            self._end(_failure(key, text))
        self._on_poll(announced)
      except RuntimeError:
        if not self._is_over.is_set():
          self._end_without_service()
        return

  def _watch_first_process(self) -> None:
    """Ends this process if process 0 is gone, or no longer answers.

    When process 0 dies, its end of the connection closes at once. jax leaves
    only a moment between that and its own abort, so waiting for the next poll
    would be too late.
    """
    connection = next(iter(self._connections), None)
    # With a timeout the loop also notices that the watch is over, or that the
    # listener's polls stand still.
    if connection is not None:
      connection.settimeout(POLL_SECONDS)
    last_seen = num_silent = 0
    while not self._is_over.is_set() and num_silent < _SILENT_POLLS:
      try:
        if connection is None:
          self._is_over.wait(POLL_SECONDS)
        elif not connection.recv(1):
          break  # closed by process 0, or by the end of it
      except TimeoutError:
        pass
      except OSError:
        connection = None  # any other error of the network proves nothing
      # The listener hangs if process 0 answers no more, and counts no polls.
      num_silent = num_silent + 1 if self._num_polls == last_seen else 0
      last_seen = self._num_polls
    if not self._is_over.is_set():
      self._end_without_service()

  def _find_dead_processes(self, announced: Announcements) -> None:
    """Announces the failure of each process that gives no sign of life."""
    is_broken = any(key.startswith(_BROKEN) for key, _ in announced)
    limit = _SILENT_POLLS_AFTER_FAILURE if is_broken else _SILENT_POLLS
    for key, sign in self._service.list(_ALIVE):
      before, num_polls = self._signs.get(key, ("", 0))
      # Signs are compared and not dated, because the clocks of hosts differ.
      num_polls = num_polls + 1 if sign == before else 0
      self._signs[key] = sign, num_polls
      # The limit may fall below the count when a collective fails.
      if num_polls == limit or (is_broken and num_polls > limit):
        name = sign.partition(" ")[2]
        self._service.set(
          f"{_FAILED}{number_of(key)}",
          f"({name}): gave no sign of life for {num_polls} s: it was killed, "
          "or its host is down or out of reach",
        )

  def _end(self, text: str) -> None:
    """Ends the process from the listening thread."""
    with self._lock:
      if self.has_failed or self._is_over.is_set():
        return  # the main thread is about to end it
      self.has_failed = True
    print(
      f"distil-jax: process {self._index}: {text}", file=sys.stderr, flush=True
    )
    with contextlib.suppress(RuntimeError):
      self._service.set(f"{_LEFT}{self._index}", "")
      self._wait_for_others()
    # The main thread may wait in a collective, where no exception reaches it.
    os._exit(1)


def number_of(key: str) -> int:
  """Returns the number of the process that a key belongs to."""
  return int(key.rpartition("/")[2])


def _is_from_runtime(error: BaseException) -> bool:
  """Returns True if an error was raised where collectives run.

  A failed collective is no type of its own, so the module of the frame that
  raised decides.
  """
  if isinstance(error, jax.errors.JaxRuntimeError):
    return True
  frames = list(traceback.walk_tb(error.__traceback__))
  name = frames[-1][0].f_globals.get("__name__", "") if frames else ""
  return name.split(".")[0] in ("jax", "jaxlib", "orbax")


def _first_line(error: BaseException) -> str:
  return (str(error) or type(error).__name__).splitlines()[0]


def _failure(key: str, text: str) -> str:
  return f"ends with process {number_of(key)} {text}"
