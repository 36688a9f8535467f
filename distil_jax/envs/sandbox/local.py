"""Runs jobs on this machine in preforked processes, one job each at a time."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import queue
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, Self

from distil_jax.envs.sandbox import isolation as isolations
from distil_jax.envs.sandbox import pipes, reports
from distil_jax.envs.sandbox.guest import values
from distil_jax.envs.sandbox.jobs import Job, Outcome, SandboxError, crashed

WEAK = (
  "programs are NOT isolated from your files: sandbox.kind=weak limits time, "
  "memory and output and refuses network and new processes, but a program can "
  "read, change and delete all files that you can, including those that its "
  "own verdict depends on"
)
# The guest enforces a job's deadline; this side waits a little longer, in case
# the guest fails.
_SPARE_SECONDS = 10.0
_START_SECONDS = 60.0
_MAX_ANSWER = 64 << 20


class LocalSandbox:
  """Runs jobs in processes that start when they are first needed."""

  def __init__(
    self,
    *,
    is_isolated: bool = True,
    num_processes: int | None = None,
    python: str | None = None,
    packages: str | None = None,
    isolation: isolations.Isolation | None = None,
  ):
    """Checks that this machine can isolate programs.

    Args:
      is_isolated: Isolate programs by namespaces; otherwise warn once, see
        `WEAK`.
      num_processes: Jobs that run at once; None means one for each core.
      python: Interpreter of the programs; None means this one.
      packages: Folder of packages that they may import; None means none.
      isolation: How to start processes; None means as well as this machine can.

    Raises:
      SandboxError: Says what is missing and what to do.
      ValueError: The number of processes is below 1.
    """
    count = num_processes or pipes.num_cores()
    if count < 1:
      raise ValueError(f"num_processes={num_processes} must be above 0")
    if isolation is not None:
      self._isolation = isolation
    elif is_isolated:
      self._isolation = isolations.bubblewrapped(python, packages)
    else:
      self._isolation = isolations.weak(python, packages)
      _warn_once()
    self._closing = threading.Lock()
    self._free: queue.SimpleQueue[_Prefork] = queue.SimpleQueue()
    self._all = [_Prefork(self._isolation, slot) for slot in range(count)]
    for process in self._all:
      self._free.put(process)

  def can_import(self, name: str) -> bool:
    """Returns True if programs can import a module of that name."""
    folder = self._isolation.packages
    if name in sys.stdlib_module_names:
      return True
    return folder is not None and any(
      path.name.partition(".")[0] == name
      for path in pathlib.Path(folder).iterdir()
    )

  def run(self, job: Job) -> Outcome:
    """Waits for a free process and for the outcome of the job.

    If the process fails, the outcome is `CRASHED` and the next job gets a new
    process.

    Raises:
      SandboxError: The job needs several processes and there are no namespaces.
      ValueError: An argument of its call is no plain value.
    """
    if job.limits.num_processes > 1 and not self._isolation.has_namespaces:
      raise SandboxError(
        f"num_processes={job.limits.num_processes} needs sandbox.kind="
        "bubblewrap: without namespaces, processes that a program starts could "
        "outlive it"
      )
    # Before a process is taken, so that bad arguments cost none.
    try:
      messages = _messages(job)
    except values.PlainError as error:
      raise ValueError(
        f"the arguments of {job.call} cannot be sent: {error}"
      ) from None
    with self._borrow() as process:
      try:
        results = process.ask(messages, job.limits.deadline + _SPARE_SECONDS)
        return reports.outcome(results)
      except (
        pipes.LateError,
        pipes.GoneError,
        OSError,
        ValueError,
        KeyError,
      ) as error:
        process.kill()
        # Whatever has failed here, it was not the program.
        return crashed(f"{type(error).__name__}: {error}")
      except BaseException:
        # The answer would still come and be taken for that of the next job.
        process.kill()
        raise

  def close(self) -> None:
    """Ends the processes; waits for running jobs."""
    # The lock prevents a deadlock of two threads that each hold some processes
    # and wait for the others.
    with self._closing, contextlib.ExitStack() as stack:
      for _ in self._all:
        stack.enter_context(self._borrow()).kill()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @contextlib.contextmanager
  def _borrow(self) -> Iterator["_Prefork"]:
    process = self._free.get()
    try:
      yield process
    finally:
      self._free.put(process)


class _Prefork:
  """Asks a process that forks for each job, see `guest.__main__`."""

  def __init__(self, isolation: isolations.Isolation, slot: int):
    self._isolation, self._slot = isolation, slot
    self._process: pipes.Child | None = None

  def ask(self, messages: list[bytes], seconds: float) -> dict[str, Any]:
    """Returns the report of each process of the job by its role."""
    process = self._running_process()
    deadline = time.monotonic() + seconds
    # Lengths come first, so that the process can read jobs by their size and
    # never looks into them.
    head = b" ".join(b"%d" % len(x) for x in messages) + b"\n"
    process.write(head + b"".join(messages), deadline)
    # Each answer names its role, because the two come in any order.
    return dict(_answer(process, deadline) for _ in messages)

  def kill(self) -> None:
    """Ends the process and all that it has started."""
    process, self._process = self._process, None
    if process is not None:
      process.end()

  def _running_process(self) -> pipes.Child:
    if self._process is not None and self._process.is_running:
      return self._process
    self.kill()
    folder = tempfile.mkdtemp(prefix="sandbox-")
    clean = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    try:
      if not self._isolation.has_namespaces:
        isolations.stage(folder)
      self._process = pipes.Child(
        self._isolation.command(self._slot, folder),
        environment=isolations.environment(folder),
        directory="/",
        clean=clean,
      )
    except OSError:
      clean()
      raise
    # The first line says that it is ready.
    self._process.line(time.monotonic() + _START_SECONDS)
    return self._process


def _answer(process: pipes.Child, deadline: float) -> tuple[str, Any]:
  role, length = process.line(deadline).decode().split()
  # A forged length must not fill the memory of this process.
  if int(length) > _MAX_ANSWER:
    raise ValueError(f"the answer has {length} bytes, more than {_MAX_ANSWER}")
  return role, json.loads(process.take(int(length), deadline))


def _messages(job: Job) -> list[bytes]:
  """Encodes a job for its processes: the program's, and the tests' if any."""
  limits = dataclasses.asdict(job.limits) | {
    "wall_seconds": job.limits.deadline
  }
  program = {"program": job.program, "stdin": job.stdin, "limits": limits}
  if job.call is not None:
    program["call"] = {
      "name": job.call.name,
      "args": [values.encode(x) for x in job.call.args],
      "changes_argument": job.call.changes_argument,
    }
  messages = [program]
  if job.tests is not None:
    # The tests wait for the program and need a moment longer to report.
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
