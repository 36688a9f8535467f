"""Verdicts from several threads at once, each by its deadline.

Threads suffice: what is heavy in a judge runs in processes of its own, and who
waits for a process lets others run.
"""

import collections
import contextlib
import dataclasses
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future

from distil_jax import processes
from distil_jax.envs import Environment
from distil_jax.records import Problem, Status, Verdict

Tell = Callable[[str], None]


@dataclasses.dataclass(eq=False)
class _Task:
  """One completion that is to be judged."""

  problem: Problem
  completion: str
  future: Future[Verdict] = dataclasses.field(default_factory=Future)


def _print(text: str) -> None:
  print(f"distil-jax: {processes.label()}{text}", file=sys.stderr, flush=True)


class Judges:
  """An environment whose verdicts are asked for now and read later.

  A judge that raises or that hangs costs its verdict, and nothing else. Threads
  are there only while something is to be judged; all of them end with the
  process.
  """

  def __init__(
    self,
    environment: Environment,
    *,
    num_workers: int | None = None,
    seconds: float = 60.0,
    tell: Tell = _print,
  ):
    """No thread is started yet.

    Args:
      environment: its `judge` is called by several threads at once.
      num_workers: threads at the most; None: one for each core.
      seconds: for one verdict, from when its judge begins.
      tell: is told, once each, of a judge that raises and of one that hangs.
    """
    if num_workers is not None and num_workers < 1:
      raise ValueError(f"num_workers={num_workers} must be positive")
    if not seconds > 0:
      raise ValueError(f"seconds={seconds} must be above 0")
    self._environment = environment
    self._num_workers = num_workers or num_cores()
    self._seconds = seconds
    self._tell = tell
    self._told: set[Status] = set()
    self._waiting: collections.deque[_Task] = collections.deque()
    # With their deadlines, the next one first: all have the same time.
    self._running: dict[_Task, float] = {}
    self._num_threads = 0
    self._is_watched = False
    self._changed = threading.Condition()

  def submit(self, problem: Problem, completion: str) -> Future[Verdict]:
    """Has it judged; `result` of what is returned waits for the verdict.

    Where the judge raises the verdict is `Status.CRASHED`, where it takes too
    long `Status.TIMEOUT`. What is cancelled before its turn is not judged.
    """
    task = _Task(problem, completion)
    with self._changed:
      self._waiting.append(task)
      if self._num_threads < self._num_workers:
        self._start_thread()
    return task.future

  def __call__(
    self, problems: Iterable[Problem], completions: Iterable[str]
  ) -> list[Verdict]:
    """Judges one completion of each problem, and waits for all of them."""
    pending = {}
    with cancelled_on_failure(pending):
      pairs = zip(problems, completions, strict=True)
      for i, (problem, completion) in enumerate(pairs):
        pending[i] = self.submit(problem, completion)
      return [future.result() for future in pending.values()]

  def _start_thread(self) -> None:
    self._num_threads += 1
    threading.Thread(target=self._work, daemon=True).start()

  def _work(self) -> None:
    """Judges what waits, until nothing does."""
    while (task := self._next()) is not None:
      verdict = self._judged(task)
      with self._changed:
        if self._running.pop(task, None) is None:
          return  # given up, and another thread has its place
        if not self._running:
          self._changed.notify()
      task.future.set_result(verdict)

  def _next(self) -> _Task | None:
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

  def _judged(self, task: _Task) -> Verdict:
    try:
      verdict = self._environment.judge(task.problem, task.completion)
      if not isinstance(verdict, Verdict):
        raise TypeError(f"judge returned {type(verdict).__name__}, no Verdict")
    except BaseException as error:  # sys.exit too: here it would end in silence
      text = "".join(traceback.format_exception(error))
      self._say(
        Status.CRASHED,
        f"problem {task.problem.index}: the environment raised instead of "
        "judging; nothing is learned from that completion, nor from others to "
        f"which this happens, which are counted as {Status.CRASHED}:\n{text}",
      )
      said = f"{type(error).__name__}: {error}"
      return Verdict(0.0, "", Status.CRASHED, {"error": said})
    return verdict

  def _watch(self) -> None:
    """Gives up what is not judged by its deadline, while anything is judged."""
    while (task := self._overdue()) is not None:
      details = {"seconds": self._seconds}
      task.future.set_result(Verdict(0.0, "", Status.TIMEOUT, details))
      self._say(
        Status.TIMEOUT,
        f"problem {task.problem.index}: the environment has not judged within "
        f"judging.seconds={self._seconds:g}; the thread in which it hangs "
        "stays until the end, and so do others to which this happens, which "
        f"are counted as {Status.TIMEOUT}. Its judge needs a deadline of its "
        "own",
      )

  def _overdue(self) -> _Task | None:
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

  def _say(self, status: Status, text: str) -> None:
    """Once for each kind of failure."""
    with self._changed:
      if status in self._told:
        return
      self._told.add(status)
    self._tell(text)


@contextlib.contextmanager
def cancelled_on_failure(
  pending: Mapping[int, Future[Verdict]],
) -> Iterator[None]:
  """Where the block fails or is interrupted, what waits is not judged."""
  try:
    yield
  except BaseException:
    for future in pending.values():
      future.cancel()
    raise


def num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
