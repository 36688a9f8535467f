"""What several processes have to agree on, and how they end together.

Numbers travel through the devices. What must never wait for a device does not:
that a process has failed, or was asked to stop, goes through jax's coordination
service, to which a thread in every process listens while compiled programs run.
A process that is alone does none of this.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed

from distil_jax.distributed import rendezvous, signals
from distil_jax.distributed.launch import LaunchError, ProcessSpec

_POLL_SECONDS = 1.0
# Polls without a sign of life after which a process counts as dead: a long hold
# of Python's lock must not, unless a collective has already failed.
_SILENT_POLLS, _SILENT_POLLS_AFTER_FAILURE = 40, 5
# Of jax's own service: it sees a death in half of this at the earliest, so that
# the one that has words for it comes first.
_HEARTBEAT_SECONDS = 100
# How long the one that fails stays to be heard, and looks for an earlier cause.
_LAST_WORDS_SECONDS = 10.0
_DAY_SECONDS = 86_400

_ROOT = "distil_jax/"
_ALIVE, _TOLD, _REACHED = _ROOT + "alive/", _ROOT + "told/", _ROOT + "reached/"
_FAILED, _BROKEN, _STOP = _TOLD + "failed/", _TOLD + "broken/", _TOLD + "stop/"
_LEFT = _ROOT + "left/"


class ProcessError(RuntimeError):
  """Processes do not do the same, or one of them has failed."""


class Stopped(KeyboardInterrupt):
  """One process was asked to stop: all do, at the same place."""


@contextlib.contextmanager
def joined(place: ProcessSpec, *, timeout: int) -> Iterator[None]:
  """Within the block this process is one of several, which end together.

  At the end of the block it waits for the others. An exception is told to them,
  so that they end too; then `exit_if_failed` must end this process, because
  Python's own way out would wait for others that never come.

  Args:
    place: of this process.
    timeout: until all have come, seconds.

  Raises:
    LaunchError: they do not come together.
    ProcessError: another process has failed, in place of what that led to here.
  """
  global _group
  _group = _join(place, timeout)
  if _group is None:
    yield
    return
  try:
    yield
  except Stopped:
    _group.leave()
    raise
  except BaseException as error:
    cause = _group.fail(error)
    if cause is not None:
      raise ProcessError(cause) from error
    raise
  _group.leave()


def exit_if_failed(status: int) -> None:
  """Ends the process at once if it has failed beside others."""
  if _group is not None and _group.has_failed:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_joined() -> bool:
  """Whether this process is within `joined`, and not alone."""
  return _group is not None


def label() -> str:
  """How this process calls itself in a message; nothing where it is alone."""
  return "" if _group is None else f"process {_group.index}: "


def compare(what: str, values: Mapping[str, Any], cure: str) -> None:
  """Refuses to go on where processes differ; uses no device.

  Args:
    what: is compared; another word at each call.
    values: anything JSON, by name; None where a name is missing.
    cure: ends the message.

  Raises:
    ProcessError: names each difference, in all processes.
  """
  if _group is not None:
    _group.compare(what, values, cure)


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
  """Within the block a signal to one process stops all, at a `check`."""
  if _group is None:
    yield
    return
  with signals.noted(_group.ask_to_stop):
    yield


def check() -> None:
  """A place where all processes can stop; all come to the same ones.

  Raises:
    Stopped: in all processes at once, if one was asked to within
      `stopping_together`.
  """
  if _group is not None:
    _group.check()


def checked(report: Callable[..., None]) -> Callable[..., None]:
  """A report of progress that is a `check` besides."""

  def report_and_check(*arguments: Any) -> None:
    report(*arguments)
    check()

  return report_and_check


class ProcessGroup:
  """This process among the others, and the thread that listens to them.

  Jax has no public way to its coordination service; all that is used of it
  stands here.
  """

  def __init__(
    self,
    client: Any,
    index: int,
    count: int,
    connections: list[socket.socket],
  ):
    self.index = index
    self.count = count
    self.has_failed = False
    self._client = client
    self._name = f"{socket.gethostname()}, pid {os.getpid()}"
    self._lock = threading.Lock()
    self._is_over = threading.Event()
    # Of `check`: how many so far, when the request came, where to stop.
    self._num_checks = 0
    self._checks_at_request: int | None = None
    self._stop_at: int | None = None
    self._request: str | None = None
    # Of the first process only: what each last said, and for how many polls.
    self._signs: dict[str, tuple[str, int]] = {}
    self._num_polls = 0
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()
    self._connections = connections
    if index:
      threading.Thread(target=self._watch_the_first, daemon=True).start()

  # Ending.

  def leave(self) -> None:
    """Waits until all are done."""
    self._barrier("the end", _DAY_SECONDS)
    self._is_over.set()
    self._listener.join()
    jax.distributed.shutdown()

  def fail(self, error: BaseException) -> str | None:
    """Tells the others; returns what happened to another one before, if so."""
    with self._lock:
      self.has_failed = True  # from here on the listener ends nothing
    with contextlib.suppress(RuntimeError):
      cause = self._failure_behind(error) if _is_of_runtime(error) else None
      if cause is not None:
        self._set(f"{_LEFT}{self.index}", "")
        self._wait_for_others()
        return cause
      text = "interrupted"
      if not isinstance(error, KeyboardInterrupt):
        text = str(error) or type(error).__name__
      self._set(f"{_FAILED}{self.index}", f"({self._name}): {text}")
      self._wait_for_others()
      return None
    self._end_without_service()
    raise AssertionError  # not reached

  def _failure_behind(self, error: BaseException) -> str | None:
    """A failure of the runtime may be the end of another process."""
    self._set(f"{_BROKEN}{self.index}", "")
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < deadline:
      for key, text in self._get(_FAILED):
        if key != f"{_FAILED}{self.index}":
          return f"{_failure(key, text)} (here: {_first_line(error)})"
      time.sleep(_POLL_SECONDS / 4)
    return None

  def _wait_for_others(self) -> None:
    """The service lives in the first process, which must go last."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while self.index == 0 and time.monotonic() < deadline:
      gone = {_number(key) for key, _ in self._get(_LEFT)}
      gone |= {_number(key) for key, _ in self._get(_FAILED)}
      if len(gone | {0}) == self.count:
        time.sleep(_POLL_SECONDS / 4)
        return
      time.sleep(_POLL_SECONDS / 4)

  def _end_without_service(self) -> None:
    """Ends the process before jax does, which would show a trace of its own."""
    with self._lock:
      print(
        f"distil-jax: {label()}ends with process 0, which is gone: killed, or "
        "its host is down or out of reach; see its own output",
        file=sys.stderr,
        flush=True,
      )
      os._exit(1)

  # Agreeing.

  def compare(self, what: str, values: Mapping[str, Any], cure: str) -> None:
    place, found = f"{_ROOT}{what}/", f"{_ROOT}{what} differs/"
    if self.index == 0:
      self._set(f"{place}0", json.dumps(dict(values)))
    theirs = json.loads(
      self._client.blocking_key_value_get(f"{place}0", _DAY_SECONDS * 1000)
    )
    mine = json.loads(json.dumps(dict(values)))
    lines = [
      f"  {name}: {theirs.get(name)!r} in process 0, {mine.get(name)!r} in "
      f"process {self.index}"
      for name in {**theirs, **mine}
      if theirs.get(name) != mine.get(name)
    ]
    if lines:
      self._set(f"{found}{self.index}", "\n".join(lines))
    self._barrier(what, _DAY_SECONDS)
    differences = sorted(self._get(found), key=lambda item: _number(item[0]))
    if differences:
      texts = "\n".join(text for _, text in differences)
      raise ProcessError(f"the processes differ in {what}; {cure}:\n{texts}")

  def ask_to_stop(self, signal_name: str) -> None:
    self._request = signal_name  # the listener passes it on

  def check(self) -> None:
    with self._lock:
      self._num_checks += 1
      is_asked = self._checks_at_request is not None
    if not is_asked:
      return
    # After the last check that any process had behind it when it heard of the
    # request: none is there yet, for it would wait here.
    while self._stop_at is None:
      reached = self._get(_REACHED)
      if len(reached) == self.count:
        self._stop_at = 1 + max(int(text) for _, text in reached)
      else:
        time.sleep(_POLL_SECONDS / 10)
    if self._num_checks == self._stop_at:
      ((key, text), *_) = self._get(_STOP)
      raise Stopped(f"process {_number(key)} was asked to stop by {text}")

  # Listening.

  def _listen(self) -> None:
    while not self._is_over.wait(_POLL_SECONDS):
      self._num_polls += 1
      try:
        sign = f"{self._num_polls} {self._name}"
        self._set(f"{_ALIVE}{self.index}", sign)
        if self._request is not None:
          self._set(f"{_STOP}{self.index}", self._request)
          self._request = None
        told = self._get(_TOLD)
        if self.index == 0:
          self._look_for_the_dead(told)
      except RuntimeError:
        if not self._is_over.is_set():
          self._end_without_service()
        return
      for key, text in told:
        if key.startswith(_FAILED):
          self._end(_failure(key, text))
        elif key.startswith(_STOP):
          self._note_request()

  def _watch_the_first(self) -> None:
    """Sees that process 0 is gone, or answers the listener no more.

    Where its connection closes, jax leaves but a moment to say so.
    """
    connection = next(iter(self._connections), None)
    if connection is not None:
      connection.settimeout(_POLL_SECONDS)
    seen = num_silent = 0
    while not self._is_over.is_set() and num_silent < _SILENT_POLLS:
      try:
        if connection is None:
          self._is_over.wait(_POLL_SECONDS)
        elif not connection.recv(1):
          break
      except TimeoutError:
        pass
      except OSError:
        connection = None  # broken in any other way it means nothing
      num_silent = num_silent + 1 if self._num_polls == seen else 0
      seen = self._num_polls
    if not self._is_over.is_set():
      self._end_without_service()

  def _note_request(self) -> None:
    with self._lock:
      if self._checks_at_request is not None:
        return
      self._checks_at_request = self._num_checks
    self._set(f"{_REACHED}{self.index}", str(self._checks_at_request))

  def _look_for_the_dead(self, told: list[tuple[str, str]]) -> None:
    is_broken = any(key.startswith(_BROKEN) for key, _ in told)
    limit = _SILENT_POLLS_AFTER_FAILURE if is_broken else _SILENT_POLLS
    for key, sign in self._get(_ALIVE):
      before, num_polls = self._signs.get(key, ("", 0))
      num_polls = num_polls + 1 if sign == before else 0
      self._signs[key] = sign, num_polls
      if num_polls == limit or (is_broken and num_polls > limit):
        name = sign.partition(" ")[2]
        self._set(
          f"{_FAILED}{_number(key)}",
          f"({name}): gave no sign of life for {num_polls} s: killed, or its "
          "host is down or out of reach",
        )

  def _end(self, text: str) -> None:
    """Ends the process from the listener's thread."""
    with self._lock:
      if self.has_failed or self._is_over.is_set():
        return  # the main thread is about to
      self.has_failed = True
    print(f"distil-jax: {label()}{text}", file=sys.stderr, flush=True)
    with contextlib.suppress(RuntimeError):
      self._set(f"{_LEFT}{self.index}", "")
      self._wait_for_others()
    os._exit(1)

  # The service.

  def _set(self, key: str, text: str) -> None:
    self._client.key_value_set(key, text, allow_overwrite=True)

  def _get(self, folder: str) -> list[tuple[str, str]]:
    return self._client.key_value_dir_get(folder)

  def _barrier(self, name: str, seconds: int) -> None:
    self._client.wait_at_barrier(_ROOT + name, seconds * 1000)


_group: ProcessGroup | None = None


def _join(place: ProcessSpec, timeout: int) -> ProcessGroup | None:
  """Takes its place; None where a cluster turns out to have but one."""
  connections = []
  if place.coordinator is not None:
    connections = rendezvous.call(place, timeout)
  # Jax would end the process itself, with nothing but a trace of its own.
  late = threading.Timer(timeout, _give_up, [place, timeout])
  late.daemon = True
  late.start()
  try:
    with signals.kept():  # jax takes SIGTERM
      jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        cluster_detection_method=place.cluster_method,
        initialization_timeout=timeout + 30,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      )
  except (ValueError, RuntimeError, OSError, ImportError) as error:
    if place.cluster == "tpu" and isinstance(error, ValueError):
      return None  # there are TPUs, but no cluster that jax knows
    raise LaunchError(
      f"{place} could not begin: {error}; to run on this host alone give "
      "--num-processes 1"
    ) from error
  finally:
    late.cancel()
  state = distributed.global_state
  if state.num_processes == 1:
    return None
  return ProcessGroup(
    state.client, state.process_id, state.num_processes, connections
  )


def _give_up(place: ProcessSpec, timeout: int) -> None:
  print(
    f"distil-jax: {place}: not all processes came within {timeout} s, or they "
    "do not reach the first of them; start them on all hosts, or wait longer "
    "with --initialization-timeout",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _is_of_runtime(error: BaseException) -> bool:
  """Whether it comes from where collectives are; its type does not tell."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    return True
  frames = list(traceback.walk_tb(error.__traceback__))
  name = frames[-1][0].f_globals.get("__name__", "") if frames else ""
  return name.split(".")[0] in ("jax", "jaxlib", "orbax")


def _first_line(error: BaseException) -> str:
  return (str(error) or type(error).__name__).splitlines()[0]


def _number(key: str) -> int:
  return int(key.rpartition("/")[2])


def _failure(key: str, text: str) -> str:
  return f"ends with process {_number(key)} {text}"
