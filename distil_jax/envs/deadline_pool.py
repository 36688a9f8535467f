"""Work that is asked for now and read later, in threads, each by a deadline.

Threads suffice: what is heavy runs in processes of its own, and who waits for
a process lets others run. They are there only while there is work; all of them
end with the process.
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
  """What is to be done, and what stands in where it takes too long."""

  do: Callable[[], T]
  give_up: Callable[[], T]
  future: Future[T] = dataclasses.field(default_factory=Future)


class DeadlinePool(Generic[T]):
  """Does several things at once. What hangs costs its thread, not its place."""

  def __init__(self, *, num_workers: int | None = None, seconds: float = 60.0):
    """No thread is started yet.

    Args:
      num_workers: at once at the most; None: one for each core.
      seconds: for one task, from when it begins.
    """
    if num_workers is not None and num_workers < 1:
      raise ValueError(f"num_workers={num_workers} must be positive")
    if not seconds > 0:
      raise ValueError(f"seconds={seconds} must be above 0")
    self._num_workers = num_workers or pipes.num_cores()
    self._seconds = seconds
    self._waiting: collections.deque[_Task[T]] = collections.deque()
    # With their deadlines, the next one first: all have the same time.
    self._running: dict[_Task[T], float] = {}
    self._num_threads = 0
    self._is_watched = False
    self._changed = threading.Condition()

  def submit(self, do: Callable[[], T], give_up: Callable[[], T]) -> Future[T]:
    """Has it done; `result` of what is returned waits for it.

    Args:
      do: what it raises is raised to who waits. What is cancelled before its
        turn is not done.
      give_up: the same, in place of `do` where it is not back by its deadline.
    """
    task = _Task(do, give_up)
    with self._changed:
      self._waiting.append(task)
      if self._num_threads < self._num_workers:
        self._start_thread()
    return task.future

  def _start_thread(self) -> None:
    self._num_threads += 1
    threading.Thread(target=self._work, daemon=True).start()

  def _work(self) -> None:
    """Does what waits, until nothing does."""
    while (task := self._next()) is not None:
      done: Future[T] = Future()
      _settle(done, task.do)
      with self._changed:
        if self._running.pop(task, None) is None:
          return  # given up, and another thread has its place
        if not self._running:
          self._changed.notify()
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
    """Gives up what is not done by its deadline, while anything is."""
    while (task := self._overdue()) is not None:
      _settle(task.future, task.give_up)

  def _overdue(self) -> _Task[T] | None:
    """Waits for a task to come to its deadline; None where none runs."""
    with self._changed:
      while self._running:
        task, deadline = next(iter(self._running.items()))
        left = deadline - time.monotonic()
        if left > 0:
          self._changed.wait(left)
          continue
        # Its thread cannot be ended; another one takes its place.
        del self._running[task]
        self._num_threads -= 1
        if self._waiting:
          self._start_thread()
        return task
      self._is_watched = False
      return None


def _settle(future: Future[T], do: Callable[[], T]) -> None:
  """Does it; who waits hears of it, however it ends."""
  try:
    result = do()
  except BaseException as error:
    future.set_exception(error)
  else:
    future.set_result(result)


@contextlib.contextmanager
def cancelled_on_failure(pending: Mapping[int, Future[Any]]) -> Iterator[None]:
  """Where the block fails or is interrupted, what waits is not done."""
  try:
    yield
  except BaseException:
    for future in pending.values():
      future.cancel()
    raise
