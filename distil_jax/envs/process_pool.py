"""Processes that answer questions, and can be killed if they take too long.

For what is trusted but may hang, such as symbolic algebra: a deadline that
needs no signal, so it holds in any thread. As libraries may be talked into more
than they are meant for, they work behind the sandbox's outer walls where this
system has them: without network, and without a view of the user's files.
"""

import contextlib
import json
import os
import pathlib
import sys
import threading
import time
import weakref
from typing import Any

from distil_jax.envs.sandbox import isolation, pipes

# To import what the worker needs; not counted as time of the first question.
_START_SECONDS = 120.0
_MOST = 16


class WorkerTimeoutError(RuntimeError):
  """No answer came in time; the process is gone, the next has another."""


class WorkerCrashError(RuntimeError):
  """The process ended before it answered; the next question has another."""


class Worker:
  """Asks a module that runs `serve`, one question after the other."""

  def __init__(self, module: str):
    """Nothing is started yet.

    Args:
      module: run as `python -m module`.
    """
    self._module = module
    self._process: pipes.Child | None = None
    self._lock = threading.Lock()

  def __reduce__(self):
    return Worker, (self._module,)  # elsewhere it starts a process of its own

  def ask(self, question: Any, seconds: float) -> Any:
    """Waits for the answer.

    Args:
      question: JSON.
      seconds: until the process is killed.

    Raises:
      WorkerTimeoutError, WorkerCrashError: there is none.
    """
    with self._lock:
      process = self._started()
      deadline = time.monotonic() + seconds
      try:
        process.write(json.dumps(question).encode() + b"\n", deadline)
        return json.loads(process.line(deadline))
      except pipes.LateError as error:
        self._end()
        raise WorkerTimeoutError(str(error)) from None
      except pipes.GoneError as error:
        self._end()
        raise WorkerCrashError(str(error)) from None

  def close(self) -> None:
    """Ends the process, if there is one."""
    with self._lock:
      self._end()

  def kill(self) -> None:
    """Ends the process, also under who waits for its answer."""
    process = self._process
    if process is not None:
      process.kill()

  def _started(self) -> pipes.Child:
    if self._process is not None and self._process.is_running:
      return self._process
    self._end()
    self._process = pipes.Child(
      [*_walls(), sys.executable, "-m", self._module],
      # Sets of strings have one order, in every process and run.
      environment=os.environ | {"PYTHONHASHSEED": "0"},
    )
    try:
      self._process.line(time.monotonic() + _START_SECONDS)
    except (pipes.LateError, pipes.GoneError) as error:
      self._end()
      raise WorkerCrashError(
        f"{self._module} does not start: {error}"
      ) from None
    return self._process

  def _end(self) -> None:
    process, self._process = self._process, None
    if process is not None:
      process.end()


class ProcessPool:
  """As many workers as threads that ask at once, each started when needed."""

  def __init__(self, module: str, size: int | None = None):
    """Nothing is started yet.

    Args:
      module: run as `python -m module`.
      size: workers at the most; None: one for each core, up to 16, as each
        has all that it imports in memory.
    """
    self._module = module
    self._size = size or min(pipes.num_cores(), _MOST)
    self._turns = threading.BoundedSemaphore(self._size)
    # Who was asked last comes first: what it has in memory is warm.
    self._free: list[Worker] = []
    self._workers: list[Worker] = []
    # At the end of the program at the latest.
    self.close = weakref.finalize(self, _kill_all, self._workers)

  def __reduce__(self):
    return ProcessPool, (self._module, self._size)  # with processes of its own

  def ask(self, question: Any, seconds: float) -> Any:
    """Waits for a worker, and for its answer; see `Worker.ask`."""
    with self._turns:
      if not self.close.alive:
        raise WorkerCrashError("the pool is closed")
      worker = self._taken()
      try:
        return worker.ask(question, seconds)
      finally:
        self._free.append(worker)

  def _taken(self) -> Worker:
    """A worker that nobody asks."""
    # Several threads may be here: each operation is done whole.
    try:
      return self._free.pop()
    except IndexError:
      worker = Worker(self._module)
      self._workers.append(worker)
      return worker


def _walls() -> tuple[str, ...]:
  """They show Python, what is installed and imported from, and this package."""
  package = pathlib.Path(__file__).parents[1]
  named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
  # The worker runs in another directory: relative folders would be lost.
  import_path = [os.path.abspath(x) for x in named if os.path.isdir(x)]
  found = [sys.base_prefix, sys.prefix, str(package), *import_path]
  shown = dict.fromkeys(os.path.abspath(x) for x in found)
  return isolation.isolation_prefix(tuple(shown), os.pathsep.join(import_path))


def _kill_all(workers: list[Worker]) -> None:
  for worker in workers:
    worker.kill()


def serve(answer, *, memory_bytes: int, seconds: int) -> None:
  """Answers the questions of a `Worker`, until there are none.

  Args:
    answer: JSON to JSON.
    memory_bytes: more is refused by the system.
    seconds: of CPU for one question, after which the process ends by itself
      should nobody be left to kill it.
  """
  questions = sys.stdin.buffer
  # What anything prints must not be taken for an answer.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  _limit("RLIMIT_AS", memory_bytes)
  answers.write(b"ready\n")
  for line in questions:
    _limit("RLIMIT_CPU", int(time.process_time()) + seconds)
    answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


def _limit(name: str, value: int) -> None:
  """Lowers a limit; a system that has none goes without."""
  with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
    import resource

    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
