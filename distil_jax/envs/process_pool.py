"""Runs code that may hang in processes that are killed at a time limit.

It is for libraries that are trusted but may hang, such as symbolic algebra. The
time limit needs no signal, so it holds in any thread. As crafted input may make
a library do more than it is meant for, workers run in the sandbox's namespaces
if this system has them: without network, and without the user's files.

Pebble's `ProcessPool`, which also kills a worker at its time limit and keeps
the others, cannot replace this pool: its workers are `multiprocessing` children
whose queues and semaphores belong to the parent's namespaces, so they cannot be
started by a command prefix such as bubblewrap. It also starts them by `fork` on
Linux, which is unsafe in a process that runs JAX, or by importing the user's
main module again.
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

# Importing the worker's libraries does not count as time of the first question.
_START_SECONDS = 120.0
_MAX_WORKERS = 16


class WorkerTimeoutError(RuntimeError):
  """Means that no answer came in time; the next question starts a process."""


class WorkerCrashError(RuntimeError):
  """Means that the process ended; the next question starts another one."""


class Worker:
  """Asks a module that runs `serve`, one question after the other."""

  def __init__(self, module: str):
    """Starts no process yet.

    Args:
      module: Runs as `python -m module`.
    """
    self._module = module
    self._process: pipes.Child | None = None
    self._lock = threading.Lock()

  def __reduce__(self):
    # A copy in another process starts a process of its own.
    return Worker, (self._module,)

  def ask(self, question: Any, seconds: float) -> Any:
    """Asks a question and waits for the answer.

    Args:
      question: JSON.
      seconds: Time limit after which the process is killed.

    Raises:
      WorkerTimeoutError: There is no answer within the time limit.
      WorkerCrashError: The process does not start, or ends before it answers.
    """
    with self._lock:
      # One question at a time, because answers do not say what they answer.
      process = self._running_process()
      deadline = time.monotonic() + seconds
      try:
        process.write(json.dumps(question).encode() + b"\n", deadline)
        return json.loads(process.line(deadline))
      except pipes.LateError as error:
        self._stop()
        raise WorkerTimeoutError(str(error)) from None
      except pipes.GoneError as error:
        self._stop()
        raise WorkerCrashError(str(error)) from None

  def close(self) -> None:
    """Ends the process, if there is one."""
    with self._lock:
      self._stop()

  def kill(self) -> None:
    """Ends the process even if a thread waits for its answer."""
    process = self._process
    if process is not None:
      process.kill()

  def _running_process(self) -> pipes.Child:
    if self._process is not None and self._process.is_running:
      return self._process
    self._stop()
    self._process = pipes.Child(
      [*_isolation_prefix(), sys.executable, "-m", self._module],
      # Sets of strings have the same order in every process and run.
      environment=os.environ | {"PYTHONHASHSEED": "0"},
    )
    try:
      self._process.line(time.monotonic() + _START_SECONDS)
    except (pipes.LateError, pipes.GoneError) as error:
      self._stop()
      raise WorkerCrashError(
        f"{self._module} does not start: {error}"
      ) from None
    return self._process

  def _stop(self) -> None:
    process, self._process = self._process, None
    if process is not None:
      process.end()


class ProcessPool:
  """Holds a worker for each thread that asks at once, started when needed."""

  def __init__(self, module: str, size: int | None = None):
    """Starts no process yet.

    Args:
      module: Runs as `python -m module`.
      size: Largest number of workers; None means one for each core, up to 16,
        because each holds all that it imports in memory.
    """
    self._module = module
    self._size = size or min(pipes.num_cores(), _MAX_WORKERS)
    self._turns = threading.BoundedSemaphore(self._size)
    # A stack: the worker that was asked last is asked first, as its caches and
    # imports are loaded.
    self._free: list[Worker] = []
    self._workers: list[Worker] = []
    # Also runs when the program ends, if nobody has called it before.
    self.close = weakref.finalize(self, _kill_all, self._workers)

  def __reduce__(self):
    # A copy in another process starts processes of its own.
    return ProcessPool, (self._module, self._size)

  def ask(self, question: Any, seconds: float) -> Any:
    """Waits for a free worker and for its answer; see `Worker.ask`."""
    with self._turns:
      # Nobody would end a worker that starts after the pool is closed.
      if not self.close.alive:
        raise WorkerCrashError("the pool is closed")
      worker = self._take()
      try:
        return worker.ask(question, seconds)
      finally:
        # Also after a failure, because a worker starts its next process itself.
        self._free.append(worker)

  def _take(self) -> Worker:
    """Returns a worker that no thread asks."""
    # No lock is needed: `pop` and `append` of a list are atomic.
    try:
      return self._free.pop()
    except IndexError:
      worker = Worker(self._module)
      self._workers.append(worker)
      return worker


def _isolation_prefix() -> tuple[str, ...]:
  """Returns a prefix that shows Python, its import path and this package."""
  package = pathlib.Path(__file__).parents[1]
  named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
  # The worker runs in another directory, so relative folders must be resolved.
  import_path = [os.path.abspath(x) for x in named if os.path.isdir(x)]
  folders = [sys.base_prefix, sys.prefix, str(package), *import_path]
  shown = dict.fromkeys(os.path.abspath(x) for x in folders)
  return isolation.isolation_prefix(tuple(shown), os.pathsep.join(import_path))


def _kill_all(workers: list[Worker]) -> None:
  for worker in workers:
    worker.kill()


def serve(answer, *, memory_bytes: int, seconds: int) -> None:
  """Answers the questions of a `Worker` until its input ends.

  Args:
    answer: Maps the JSON of a question to the JSON of its answer.
    memory_bytes: Limit of the process's memory.
    seconds: CPU time of one question, after which the process ends by itself if
      its parent no longer exists to kill it.
  """
  questions = sys.stdin.buffer
  # Whatever a library prints must not be taken for an answer.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  _limit("RLIMIT_AS", memory_bytes)
  answers.write(b"ready\n")
  for line in questions:
    # The kernel counts from the start of the process, so the limit moves along.
    _limit("RLIMIT_CPU", int(time.process_time()) + seconds)
    answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


def _limit(name: str, value: int) -> None:
  """Lowers a resource limit, if this system has it."""
  with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
    import resource

    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    # The hard limit stays, so that the soft one can be raised again.
    resource.setrlimit(kind, (value, hard))
