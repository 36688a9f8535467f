"""Verdicts from several threads at once, each by its deadline."""

import dataclasses
import traceback
from collections.abc import Iterable
from concurrent.futures import Future

from distil_jax.envs import Environment, deadline_pool, warn_once
from distil_jax.types import Problem, Status, Verdict


class JudgePool:
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
    tell: warn_once.Tell = warn_once.to_stderr,
  ):
    """No thread is started yet.

    Args:
      environment: its `judge` is called by several threads at once.
      num_workers: threads at the most; None: one for each core.
      seconds: for one verdict, from when its judge begins.
      tell: is told, once each, of a judge that raises and of one that hangs.
    """
    self._threads = deadline_pool.DeadlinePool[Verdict](
      num_workers=num_workers, seconds=seconds
    )
    self._environment = environment
    self._seconds = seconds
    self._complain = warn_once.WarnOnce(tell)

  def submit(self, problem: Problem, completion: str) -> Future[Verdict]:
    """Has it judged; `result` of what is returned waits for the verdict.

    Where the judge raises the verdict is `Status.CRASHED`, where it takes too
    long `Status.TIMEOUT`. What is cancelled before its turn is not judged.
    """
    return self._threads.submit(
      lambda: self._judged(problem, completion),
      lambda: self._given_up(problem),
    )

  def __call__(
    self, problems: Iterable[Problem], completions: Iterable[str]
  ) -> list[Verdict]:
    """Judges one completion of each problem, and waits for all of them."""
    pending = {}
    with deadline_pool.cancelled_on_failure(pending):
      pairs = zip(problems, completions, strict=True)
      for i, (problem, completion) in enumerate(pairs):
        pending[i] = self.submit(problem, completion)
      return [future.result() for future in pending.values()]

  def _judged(self, problem: Problem, completion: str) -> Verdict:
    try:
      verdict = _checked(self._environment.judge(problem, completion))
    except BaseException as error:  # sys.exit too: here it would end in silence
      text = "".join(traceback.format_exception(error))
      self._complain(
        Status.CRASHED,
        f"problem {problem.index}: the environment raised instead of "
        "judging; nothing is learned from that completion, nor from others to "
        f"which this happens, which are counted as {Status.CRASHED}:\n{text}",
      )
      said = "".join(traceback.format_exception_only(error)).strip()
      return Verdict(0.0, "", Status.CRASHED, {"error": said})
    return verdict

  def _given_up(self, problem: Problem) -> Verdict:
    self._complain(
      Status.TIMEOUT,
      f"problem {problem.index}: the environment has not judged within "
      f"judging.seconds={self._seconds:g}; the thread in which it hangs "
      "stays until the end, and so do others to which this happens, which "
      f"are counted as {Status.TIMEOUT}. Its judge needs a deadline of its "
      "own",
    )
    return Verdict(0.0, "", Status.TIMEOUT, {"seconds": self._seconds})


def _checked(verdict: Verdict) -> Verdict:
  """The verdict, in the types that a step counts and reads.

  Half a character in its feedback, which no tokenizer takes, is replaced.

  Raises:
    TypeError, ValueError: it is none, or one that nothing can be done with.
  """
  if not isinstance(verdict, Verdict):
    raise TypeError(f"judge returned {type(verdict).__name__}, no Verdict")
  reward, feedback, status = verdict.reward, verdict.feedback, verdict.status
  if not 0 <= reward <= 1:
    raise ValueError(f"judge gave the reward {reward!r}, not one from 0 to 1")
  if not isinstance(feedback, str):
    raise TypeError(f"judge gave the feedback {feedback!r}, no text")
  return dataclasses.replace(
    verdict,
    reward=float(reward),
    feedback=feedback.encode("utf-8", "replace").decode("utf-8"),
    status=Status(status),
    details=dict(verdict.details),
  )
