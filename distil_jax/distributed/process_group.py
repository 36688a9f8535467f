"""Makes several processes agree, stop at the same step, and end together.

Numbers are reduced on the devices (`collectives`). What must never wait for a
device goes through jax's coordination service: that processes have the same
settings, that one was asked to stop, and that one has failed (`heartbeat`). A
process that runs alone does none of this.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from distil_jax.distributed import heartbeat, private_api, rendezvous, signals
from distil_jax.distributed.launch import LaunchError, ProcessSpec

# jax's own heartbeat notices a death after half of this at the earliest, which
# leaves `heartbeat` the time to notice it first and say what happened.
_JAX_HEARTBEAT_SECONDS = 100
# The limit of waits that need none: if a process fails, the heartbeat ends the
# others long before.
_DAY_SECONDS = 86_400

_STOP = heartbeat.ANNOUNCED + "stop/"
_REACHED = heartbeat.ROOT + "reached/"


class ProcessError(RuntimeError):
  """Says that processes differ, or that one of them has failed."""


class Stopped(KeyboardInterrupt):
  """Says that one process was asked to stop; all raise it at the same step."""


@contextlib.contextmanager
def joined(spec: ProcessSpec, *, timeout: int) -> Iterator[None]:
  """Makes this process one of several within the block.

  At its end the block waits for the other processes. An exception is announced
  to them, so that they end too; afterwards `exit_if_failed` must end this
  process, because the regular end of Python would wait for processes that
  never arrive.

  Args:
    spec: Describes this process.
    timeout: Seconds until all processes must have started.

  Raises:
    LaunchError: The processes do not find each other.
    ProcessError: Another process has failed; replaces the error that followed
      from it in this process.
  """
  global _group
  # jax connects a process only once, so there is one group for the process.
  _group = _join(spec, timeout)
  if _group is None:
    yield
    return
  try:
    yield
  # All processes stop at the same step, so all of them reach the barrier.
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
  """Ends the process at once if it has failed within `joined`."""
  if _group is not None and _group.has_failed:
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is flushed by this, hence the two lines above.
    os._exit(status)


def is_joined() -> bool:
  """Returns True within `joined`, unless this is the only process."""
  return _group is not None


def label() -> str:
  """Returns the prefix of this process's messages; empty if it runs alone."""
  return "" if _group is None else f"process {_group.index}: "


def compare(what: str, values: Mapping[str, Any], cure: str) -> None:
  """Checks that all processes have the same values; uses no device.

  Args:
    what: Names what is compared; must differ from call to call.
    values: JSON values by name; a missing name counts as None.
    cure: Says what to do about a difference; ends the message.

  Raises:
    ProcessError: Names each difference; raised in all processes.
  """
  if _group is not None:
    _group.compare(what, values, cure)


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
  """Makes a signal to one process stop all of them at the same `check`."""
  if _group is None:
    yield
    return
  with signals.forwarded(_group.ask_to_stop):
    yield


def check() -> None:
  """Marks a point at which all processes can stop.

  All processes must call it equally often.

  Raises:
    Stopped: A process was asked to stop within `stopping_together`; raised in
      all processes at the same call.
  """
  if _group is not None:
    _group.check()


def checked(report: Callable[..., None]) -> Callable[..., None]:
  """Returns a function that reports progress and then calls `check`."""

  def report_and_check(*arguments: Any) -> None:
    report(*arguments)
    check()

  return report_and_check


class ProcessGroup:
  """Connects this process with the others."""

  def __init__(
    self,
    service: private_api.CoordinationService,
    index: int,
    count: int,
    connections: list[Any],
  ):
    """Starts to watch the other processes.

    Args:
      service: The coordination service of the run.
      index: Number of this process, from 0.
      count: Number of processes.
      connections: What `rendezvous.meet` returned; may be empty.
    """
    self.index = index
    self.count = count
    self._service = service
    self._lock = threading.Lock()
    # For `check`: the calls so far, their number when the request to stop
    # arrived, and the call at which all processes stop.
    self._num_checks = 0
    self._checks_at_request: int | None = None
    self._stop_at: int | None = None
    self._request: str | None = None
    self._heartbeat = heartbeat.Heartbeat(
      service, index, count, connections, self._on_poll
    )

  @property
  def has_failed(self) -> bool:
    return self._heartbeat.has_failed

  def leave(self) -> None:
    """Waits until all processes are done."""
    # The service lives in process 0, which must not end while others need it.
    self._service.barrier(heartbeat.ROOT + "the end", _DAY_SECONDS)
    # The service ends with the shutdown. A thread that still watched would take
    # that for the death of process 0.
    self.stop_watching()
    jax.distributed.shutdown()

  def stop_watching(self) -> None:
    self._heartbeat.stop()

  def fail(self, error: BaseException) -> str | None:
    """Announces a failure; see `Heartbeat.fail`."""
    return self._heartbeat.fail(error)

  def compare(self, what: str, values: Mapping[str, Any], cure: str) -> None:
    """Checks that all processes have the same values; see `compare` above."""
    folder = f"{heartbeat.ROOT}{what}/"
    differing = f"{heartbeat.ROOT}{what} differs/"
    # One process writes its values and the others compare, so that a message
    # names only what differs.
    if self.index == 0:
      self._service.set(f"{folder}0", json.dumps(dict(values)))
    theirs = json.loads(self._service.wait_for(f"{folder}0", _DAY_SECONDS))
    # Through JSON too, which turns tuples into lists.
    own = json.loads(json.dumps(dict(values)))
    lines = [
      f"  {name}: {theirs.get(name)!r} in process 0, {own.get(name)!r} in "
      f"process {self.index}"
      for name in {**theirs, **own}
      if theirs.get(name) != own.get(name)
    ]
    if lines:
      self._service.set(f"{differing}{self.index}", "\n".join(lines))
    # Behind the barrier all differences are written, so that every process
    # raises the same error.
    self._service.barrier(heartbeat.ROOT + what, _DAY_SECONDS)
    differences = sorted(
      self._service.list(differing),
      key=lambda item: heartbeat.number_of(item[0]),
    )
    if differences:
      texts = "\n".join(text for _, text in differences)
      raise ProcessError(f"the processes differ in {what}; {cure}:\n{texts}")

  def ask_to_stop(self, signal_name: str) -> None:
    """Asks all processes to stop; called by a handler of signals.

    A handler must not wait, so the listening thread passes the request on.
    """
    self._request = signal_name

  def check(self) -> None:
    """Raises `Stopped` if this is the call at which all processes stop."""
    # Under the lock a check either counts in the number that `_on_poll` notes,
    # or it sees the request and waits for the others.
    with self._lock:
      self._num_checks += 1
      is_asked = self._checks_at_request is not None
    if not is_asked:
      return
    # All stop after the largest number of checks that any process had behind
    # it when it heard of the request. No process is past that check yet: it
    # would wait here until all have written their numbers.
    while self._stop_at is None:
      reached = self._service.list(_REACHED)
      if len(reached) == self.count:
        self._stop_at = 1 + max(int(text) for _, text in reached)
      else:
        time.sleep(heartbeat.POLL_SECONDS / 10)
    if self._num_checks == self._stop_at:
      ((key, text), *_) = self._service.list(_STOP)
      number = heartbeat.number_of(key)
      raise Stopped(f"process {number} was asked to stop by {text}")

  def _on_poll(self, announced: heartbeat.Announcements) -> None:
    """Passes a request to stop on, or notes the request of another process."""
    is_asked = any(key.startswith(_STOP) for key, _ in announced)
    if self._request is not None:
      self._service.set(f"{_STOP}{self.index}", self._request)
      self._request = None
      is_asked = True
    if not is_asked:
      return
    with self._lock:
      if self._checks_at_request is not None:
        return
      self._checks_at_request = self._num_checks
    # Written outside the lock, so that no check waits for the network.
    self._service.set(f"{_REACHED}{self.index}", str(self._checks_at_request))


_group: ProcessGroup | None = None


def _join(spec: ProcessSpec, timeout: int) -> ProcessGroup | None:
  """Connects this process; returns None if it is the only one of a cluster."""
  connections = []
  if spec.coordinator is not None:
    connections = rendezvous.meet(spec, timeout)
  # jax would take SIGTERM for an agreement of its own on where to stop, see
  # `private_api.CoordinationService`.
  jax.config.update("jax_enable_preemption_service", False)
  # A process that waits too long is aborted by jax, with a stack trace and
  # nothing that Python could catch. This timer fires before.
  timer = threading.Timer(timeout, _give_up, [spec, timeout])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      spec.coordinator,
      spec.num_processes,
      spec.process_id,
      cluster_detection_method=spec.cluster_method,
      initialization_timeout=timeout + 30,
      heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError, OSError, ImportError) as error:
    if spec.cluster == "tpu" and isinstance(error, ValueError):
      return None  # there are TPUs, but no cluster that jax knows
    raise LaunchError(
      f"{spec} could not start: {error}; to run on this host alone give "
      "--num-processes 1"
    ) from error
  finally:
    timer.cancel()
  service, index, count = private_api.connected_service()
  if service is None:
    return None
  return ProcessGroup(service, index, count, connections)


def _give_up(spec: ProcessSpec, timeout: int) -> None:
  print(
    f"distil-jax: {spec}: not all processes started within {timeout} s, or "
    "they cannot reach process 0; start the command on all hosts, or wait "
    "longer with --initialization-timeout",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)
