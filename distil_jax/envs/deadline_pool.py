"""Runs tasks in threads, each within a time limit.

Threads suffice because heavy work runs in processes of its own, and a thread
that waits for a process lets the others run.

`concurrent.futures.ThreadPoolExecutor` and pebble's `ThreadPool` cannot replace
this pool. Neither has a time limit for a task: the caller may stop waiting, but
a task that hangs keeps its place in the pool, and a few of them stop all work.
And the interpreter waits for the executor's threads when it exits, so that one
that hangs would keep a finished run alive.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from distil_jax.envs.sandbox import pipes

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class _Task(Generic[T]):
  """A function to call, and the one that gives its result after a timeout."""

  function: Callable[[], T]
  on_timeout: Callable[[], T]
  future: Future[T] = dataclasses.field(default_factory=Future)


class DeadlinePool(Generic[T]):
  """Runs several tasks at once; a task that hangs does not keep its place.

  Threads exist only while there is work, and all of them end with the process.
  """

  def __init__(self, *, num_workers: int | None, seconds: float):
    """Starts no thread yet.

    Args:
      num_workers: Largest number of tasks at once; None means one for each
        core.
      seconds: Time limit of one task, from its beginning.

    Raises:
      ValueError: One of the two is not positive.
    """
    if num_workers is not None and num_workers < 1:
      raise ValueError(f"num_workers={num_workers} must be at least 1")
    if not seconds > 0:
      raise ValueError(f"seconds={seconds} must be above 0")
    self._num_workers = num_workers or pipes.num_cores()
    self._seconds = seconds
    self._waiting: collections.deque[_Task[T]] = collections.deque()
    # Deadlines by task, the earliest first: all tasks have the same time limit.
    self._running: dict[_Task[T], float] = {}
    self._num_threads = 0
    self._is_watched = False
    self._changed = threading.Condition()

  def submit(
    self, function: Callable[[], T], on_timeout: Callable[[], T]
  ) -> Future[T]:
    """Queues a task and returns its future.

    Args:
      function: Gives the result, or the exception. It is not called if the
        future is cancelled before its turn.
      on_timeout: Gives the result if `function` exceeds the time limit.
    """
    task = _Task(function, on_timeout)
    with self._changed:
      self._waiting.append(task)
      # Threads without work have ended, so those that exist are busy.
      if self._num_threads < self._num_workers:
        self._start_thread()
    return task.future

  def _start_thread(self) -> None:
    self._num_threads += 1
    threading.Thread(target=self._work, daemon=True).start()

  def _work(self) -> None:
    """Runs waiting tasks until there are none."""
    while (task := self._next()) is not None:
      # The result is kept apart until it is known that the task was in time,
      # because a future can be settled only once.
      done: Future[T] = Future()
      _settle(done, task.function)
      with self._changed:
        if self._running.pop(task, None) is None:
          return  # It timed out, and another thread has its place.
        # Nothing runs any more, so the watcher need not wait for the deadline.
        if not self._running:
          self._changed.notify()
      # Outside the lock, because callbacks of the future run in this call.
      _settle(task.future, done.result)

  def _next(self) -> _Task[T] | None:
    with self._changed:
      while self._waiting:
        task = self._waiting.popleft()
        if not task.future.set_running_or_notify_cancel():
          continue
        self._running[task] = time.monotonic() + self._seconds
        if not self._is_watched:
          self._is_watched = True
          threading.Thread(target=self._watch, daemon=True).start()
        return task
      self._num_threads -= 1
    return None

  def _watch(self) -> None:
    """Settles tasks that exceed their deadline, while any task runs."""
    while (task := self._overdue()) is not None:
      _settle(task.future, task.on_timeout)

  def _overdue(self) -> _Task[T] | None:
    """Waits for a task to reach its deadline; returns None if none runs."""
    with self._changed:
      while self._running:
        task, deadline = next(iter(self._running.items()))
        left = deadline - time.monotonic()
        if left > 0:
          self._changed.wait(left)
          continue
        # A thread cannot be stopped, so another one takes its place.
        del self._running[task]
        self._num_threads -= 1
        if self._waiting:
          self._start_thread()
        return task
      # Still under the lock: the next task to start sees that it needs a
      # watcher.
      self._is_watched = False
      return None


def _settle(future: Future[T], function: Callable[[], T]) -> None:
  """Puts the function's result or exception into the future."""
  try:
    result = function()
  except BaseException as error:
    future.set_exception(error)
  else:
    future.set_result(result)


@contextlib.contextmanager
def cancelled_on_failure(pending: Mapping[int, Future[Any]]) -> Iterator[None]:
  """Cancels waiting tasks if the block fails or is interrupted."""
  try:
    yield
  except BaseException:
    for future in pending.values():
      future.cancel()
    raise
