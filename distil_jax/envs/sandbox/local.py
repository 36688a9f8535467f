"""A sandbox on this machine: warm processes, each with one job at a time."""

import contextlib
import dataclasses
import functools
import json
import queue
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, Self

from distil_jax.envs.sandbox import isolation, pipes, reports
from distil_jax.envs.sandbox.guest import values
from distil_jax.envs.sandbox.jobs import Job, Outcome, SandboxError, crashed

WEAK = (
  "programs are NOT kept apart from your files: sandbox.kind=weak limits time, "
  "memory and output and refuses network and new processes, but a program may "
  "read, change and delete all that you may, also what its own verdict "
  "depends on"
)
# A job's deadline is kept inside; here somebody must notice when it is not.
_SPARE_SECONDS = 10.0
_START_SECONDS = 60.0
_MAX_ANSWER = 64 << 20


class LocalSandbox:
  """Runs jobs in processes that are started when they are first needed."""

  def __init__(
    self,
    *,
    is_isolated: bool = True,
    num_processes: int | None = None,
    python: str | None = None,
    packages: str | None = None,
    how: isolation.Isolation | None = None,
  ):
    """Tries out that this machine can.

    Args:
      is_isolated: in namespaces; else see `WEAK`, which is said once.
      num_processes: jobs at once; None: as many as there are cores.
      python: the interpreter that programs run in; None: this one's.
      packages: a folder of packages that they may import; None: none.
      how: processes are kept apart; None: as well as this machine can.

    Raises:
      SandboxError: says what is missing, and what to do.
      ValueError: a number of processes below 1.
    """
    count = num_processes or pipes.num_cores()
    if count < 1:
      raise ValueError(f"num_processes={num_processes} must be above 0")
    if how is not None:
      self._isolation = how
    elif is_isolated:
      self._isolation = isolation.bubblewrapped(python, packages)
    else:
      self._isolation = isolation.weak(python, packages)
      _warn_once()
    self._closing = threading.Lock()
    self._free: queue.SimpleQueue[_Prefork] = queue.SimpleQueue()
    self._all = [_Prefork(self._isolation, slot) for slot in range(count)]
    for warm in self._all:
      self._free.put(warm)

  def run(self, job: Job) -> Outcome:
    """Waits for a process that is free, and for the outcome.

    A process that fails costs this outcome, which is `CRASHED`; the next job
    has another.
    """
    if job.limits.num_processes > 1 and not self._isolation.has_namespaces:
      raise SandboxError(
        f"num_processes={job.limits.num_processes} needs sandbox.kind="
        "bubblewrap: elsewhere what a program starts could outlive it"
      )
    try:
      messages = _messages(job)
    except values.PlainError as error:
      raise ValueError(f"the arguments of {job.call}: {error}") from None
    with self._warm() as warm:
      try:
        results = warm.ask(messages, job.limits.deadline + _SPARE_SECONDS)
        return reports.outcome(results)
      except (
        pipes.LateError,
        pipes.GoneError,
        OSError,
        ValueError,
        KeyError,
      ) as error:
        warm.kill()
        return crashed(f"{type(error).__name__}: {error}")
      except BaseException:
        warm.kill()  # an answer that nobody waits for would be the next one's
        raise

  def close(self) -> None:
    """Ends the processes; waits for jobs that are under way."""
    # Two that close at once, each with half of them, would wait for ever.
    with self._closing, contextlib.ExitStack() as stack:
      for _ in self._all:
        stack.enter_context(self._warm()).kill()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @contextlib.contextmanager
  def _warm(self) -> Iterator["_Prefork"]:
    warm = self._free.get()
    try:
      yield warm
    finally:
      self._free.put(warm)


class _Prefork:
  """A warm process, if there is one; see `inside.__main__`."""

  def __init__(self, how: isolation.Isolation, slot: int):
    self._how, self._slot = how, slot
    self._process: pipes.Child | None = None

  def ask(self, messages: list[bytes], seconds: float) -> dict[str, Any]:
    """What each process of the job reports, by its role."""
    process = self._started()
    deadline = time.monotonic() + seconds
    head = b" ".join(b"%d" % len(x) for x in messages) + b"\n"
    process.write(head + b"".join(messages), deadline)
    return dict(_answer(process, deadline) for _ in messages)

  def kill(self) -> None:
    """Ends it and all that it has started."""
    process, self._process = self._process, None
    if process is not None:
      process.end()

  def _started(self) -> pipes.Child:
    if self._process is not None and self._process.is_running:
      return self._process
    self.kill()
    folder = tempfile.mkdtemp(prefix="sandbox-")
    clean = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    try:
      if not self._how.has_namespaces:
        isolation.stage(folder)
      self._process = pipes.Child(
        self._how.command(self._slot, folder),
        environment=isolation.environment(folder),
        directory="/",
        clean=clean,
      )
    except OSError:
      clean()
      raise
    self._process.line(time.monotonic() + _START_SECONDS)  # that it is ready
    return self._process


def _answer(process: pipes.Child, deadline: float) -> tuple[str, Any]:
  role, length = process.line(deadline).decode().split()
  if int(length) > _MAX_ANSWER:
    raise ValueError(f"an answer of {length} bytes")
  return role, json.loads(process.take(int(length), deadline))


def _messages(job: Job) -> list[bytes]:
  """A job as its processes read it: the program's, and the tests' apart."""
  limits = dataclasses.asdict(job.limits) | {
    "wall_seconds": job.limits.deadline
  }
  program = {"program": job.program, "stdin": job.stdin, "limits": limits}
  if job.call is not None:
    program["call"] = {
      "name": job.call.name,
      "args": [values.encode(x) for x in job.call.args],
    }
  messages = [program]
  if job.tests is not None:
    # They wait for the program, and need a moment to say what came of it.
    more = {"wall_seconds": job.limits.deadline + 2, "num_processes": 1}
    messages.append(
      dataclasses.asdict(job.tests)
      | {"tests": job.tests.source, "limits": limits | more}
    )
  return [json.dumps(message).encode() for message in messages]


_is_warned = threading.Event()


def _warn_once() -> None:
  if not _is_warned.is_set():
    _is_warned.set()
    warnings.warn(WEAK, stacklevel=3)
