"""Judges completions in several threads, each within a time limit."""

import dataclasses
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from distil_jax.config.environments import JudgingConfig
from distil_jax.envs import deadline_pool, warn_once
from distil_jax.envs.base import Conversational, Environment
from distil_jax.types import Problem, Reply, Status, Verdict

_DEFAULTS = JudgingConfig()


class JudgePool:
  """Judges in the background and returns futures of verdicts.

  A judge that raises returns `crashed`, and one that exceeds the limit returns
  `timeout`, both with reward 0; other verdicts are not affected. Threads exist
  only while there is something to judge, and all of them end with the process.
  """

  def __init__(
    self,
    environment: Environment,
    config: JudgingConfig = _DEFAULTS,
    *,
    warn: warn_once.Warn = warn_once.to_stderr,
  ):
    """Starts no thread yet.

    Args:
      environment: Its methods are called by several threads at once.
      config: Number of threads, and the time limit of one verdict, which counts
        from the beginning of its judge.
      warn: Is called once for judges that raise and once for those that hang.
    """
    self._threads = deadline_pool.DeadlinePool[Any](
      num_workers=config.num_workers, seconds=config.seconds
    )
    self._environment = environment
    self._seconds = config.seconds
    self._warn_once = warn_once.WarnOnce(warn)

  def submit(self, problem: Problem, completion: str) -> Future[Verdict]:
    """Queues a completion and returns the future of its verdict.

    The verdict is `Status.CRASHED` if the judge raises and `Status.TIMEOUT` if
    it exceeds the limit. A future that is cancelled before its turn is not
    judged.
    """
    return self._threads.submit(
      lambda: self._judge(problem, completion),
      lambda: self._time_out(problem),
    )

  def reply(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Future[Reply]:
    """Queues a turn of a conversation and returns the future of its reply.

    An environment that raises or exceeds the limit ends the conversation, with
    the verdict that `submit` would return.

    Args:
      problem: Problem of the episode.
      turns: Turns of the student so far.
      replies: Replies of the environment so far; it is a `Conversational`.
    """
    environment = self._environment
    assert isinstance(environment, Conversational)
    # Copies, because the caller's lists grow while the thread reads them.
    turns, replies = tuple(turns), tuple(replies)

    def answer() -> Reply:
      try:
        return _checked_reply(environment.reply(problem, turns, replies))
      except BaseException as error:
        return Reply(verdict=self._crash(problem, error))

    return self._threads.submit(
      answer, lambda: Reply(verdict=self._time_out(problem))
    )

  def __call__(
    self, problems: Iterable[Problem], completions: Iterable[str]
  ) -> list[Verdict]:
    """Judges one completion of each problem and waits for all verdicts."""
    pending = {}
    with deadline_pool.cancelled_on_failure(pending):
      pairs = zip(problems, completions, strict=True)
      for i, (problem, completion) in enumerate(pairs):
        pending[i] = self.submit(problem, completion)
      return [future.result() for future in pending.values()]

  def _judge(self, problem: Problem, completion: str) -> Verdict:
    try:
      return _checked(self._environment.judge(problem, completion))
    # Also `sys.exit`, which would end this thread without a word.
    except BaseException as error:
      return self._crash(problem, error)

  def _crash(self, problem: Problem, error: BaseException) -> Verdict:
    text = "".join(traceback.format_exception(error))
    self._warn_once(
      Status.CRASHED,
      f"problem {problem.index}: the environment raised instead of judging. "
      "Nothing is learned from this completion; others to which this happens "
      f"are counted as {Status.CRASHED} and not reported:\n{text}",
    )
    message = "".join(traceback.format_exception_only(error)).strip()
    return Verdict(0.0, "", Status.CRASHED, {"error": message})

  def _time_out(self, problem: Problem) -> Verdict:
    self._warn_once(
      Status.TIMEOUT,
      f"problem {problem.index}: the environment has not judged within "
      f"judging.seconds={self._seconds:g}. Its thread cannot be stopped and "
      "stays until the end of the run; others to which this happens are "
      f"counted as {Status.TIMEOUT} and not reported. Give the judge a time "
      "limit of its own, or raise judging.seconds",
    )
    return Verdict(0.0, "", Status.TIMEOUT, {"seconds": self._seconds})


def _checked_reply(reply: Reply) -> Reply:
  """Returns the reply with fields of the declared types.

  Raises:
    TypeError: It is no reply, or its message is no text.
    ValueError: As `_checked`.
  """
  if not isinstance(reply, Reply):
    raise TypeError(f"reply returned {type(reply).__name__}, no Reply")
  if reply.message is not None and not isinstance(reply.message, str):
    raise TypeError(f"reply gave the message {reply.message!r}, no text")
  if reply.verdict is None:
    return reply
  return dataclasses.replace(reply, verdict=_checked(reply.verdict))


def _checked(verdict: Verdict) -> Verdict:
  """Returns the verdict with fields of the declared types.

  Lone surrogates in its feedback, which no tokenizer accepts, are replaced.

  Raises:
    TypeError: It is no verdict, or its feedback is no text.
    ValueError: Its reward is not in [0, 1], or its status is unknown.
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
    # A bool or a number of NumPy would be written to the log in another form.
    reward=float(reward),
    feedback=feedback.encode("utf-8", "replace").decode("utf-8"),
    status=Status(status),
    details=dict(verdict.details),
  )
