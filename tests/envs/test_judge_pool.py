"""A judge that raises or hangs costs its verdict, and nothing else."""

import signal
import subprocess
import sys
import threading
import time
from typing import Any, cast

import pytest

from distil_jax.config import JudgingConfig
from distil_jax.envs import deadline_pool, judge_pool
from distil_jax.types import Problem, Status, Verdict

PROBLEM = Problem(index=7, messages=(), answer="")
HANG = 100  # seconds, after which a test fails that would hang


class UnsaidError(Exception):
  def __str__(self):
    raise ValueError("it cannot be said")


class Judge:
  """Does what the completion says."""

  def __init__(self):
    self.num_at_once = self.most_at_once = self.num_begun = 0
    self.company = threading.Barrier(4)
    self.all_waiting = threading.Event()
    self.released = threading.Event()
    self._lock = threading.Lock()

  def problem(self, row, index=0):
    raise NotImplementedError("these problems come from no file")

  def judge(self, problem, completion):
    with self._lock:
      self.num_begun += 1
      self.num_at_once += 1
      self.most_at_once = max(self.most_at_once, self.num_at_once)
    try:
      return self._judge(completion)
    finally:
      with self._lock:
        self.num_at_once -= 1

  def _judge(self, completion):
    word, _, number = completion.partition(" ")
    match word:
      case "sleep":
        time.sleep(float(number))
      case "meet":
        self.company.wait(HANG)
      case "hang":
        self.released.wait()
      case "interrupt":
        self.all_waiting.wait()
        # Again and again: a signal that comes just before the main thread
        # begins to wait does not end its waiting.
        while not self.released.wait(0.05):
          signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
      case "raise":
        raise ValueError(f"no verdict on {number}")
      case "exit":
        sys.exit(3)
      case "raise_unsaid":
        raise UnsaidError
      case "nothing":
        return None
      case "reward":
        return Verdict(float(number), "", Status.CORRECT)
      case "feedback":
        return Verdict(0.0, cast(Any, 3), Status.WRONG)
      case "status":
        return Verdict(0.0, "", cast(Any, "good"))
      case "details":
        return Verdict(0.0, "", Status.WRONG, cast(Any, None))
      case "half":
        return Verdict(0.0, "\ud800 is half", Status.WRONG)
    return Verdict(1.0, completion, Status.CORRECT)


@pytest.fixture
def judge():
  made = Judge()
  yield made
  made.released.set()


@pytest.fixture
def threads_end():
  """Waits for all threads that the test has started, and must be called."""
  before = set(threading.enumerate())

  def wait():
    for thread in set(threading.enumerate()) - before:
      thread.join(HANG)
      assert not thread.is_alive(), thread

  return wait


def make(judge, **settings):
  """Returns judges, and the list of their warnings."""
  warnings = []
  config = JudgingConfig(**settings)
  return judge_pool.JudgePool(judge, config, warn=warnings.append), warnings


def test_verdicts_come_in_the_order_in_which_they_were_asked_for(judge):
  judges, warnings = make(judge, num_workers=3)
  said = [f"sleep {0.02 * (2 - i % 3)}" for i in range(9)]
  said += [f"word {i}" for i in range(100)]
  verdicts = judges([PROBLEM] * len(said), said)
  assert [verdict.feedback for verdict in verdicts] == said
  assert not warnings


def test_as_many_at_once_as_there_are_workers(judge):
  judges, _ = make(judge, num_workers=4)
  verdicts = judges([PROBLEM] * 8, ["meet"] * 8)  # none goes on without 4
  assert {verdict.status for verdict in verdicts} == {Status.CORRECT}
  assert judge.most_at_once == 4


def test_threads_end_with_their_work(judge, threads_end):
  judges, _ = make(judge, num_workers=4)
  judges([PROBLEM] * 8, ["sleep 0.01"] * 8)
  threads_end()


@pytest.mark.parametrize(
  ("said", "error"),
  [
    ("raise it", "ValueError: no verdict on it"),
    ("exit", "SystemExit: 3"),
    ("raise_unsaid", f"{__name__}.UnsaidError: <exception str() failed>"),
    ("nothing", "TypeError: judge returned NoneType, no Verdict"),
    (
      "reward nan",
      "ValueError: judge gave the reward nan, not one from 0 to 1",
    ),
    ("reward 2", "ValueError: judge gave the reward 2.0, not one from 0 to 1"),
    ("feedback", "TypeError: judge gave the feedback 3, no text"),
    ("status", "ValueError: 'good' is not a valid Status"),
    ("details", "TypeError: 'NoneType' object is not iterable"),
  ],
)
def test_one_that_raises_costs_its_verdict_and_is_told_of_once(
  judge, said, error
):
  judges, warnings = make(judge, num_workers=2)
  first, *others, last = judges([PROBLEM] * 5, ["a", *[said] * 3, "b"])
  assert first.status is last.status is Status.CORRECT
  for verdict in others:
    assert verdict == Verdict(0.0, "", Status.CRASHED, {"error": error})
  (text,) = warnings
  assert text.startswith("problem 7: the environment raised")
  assert "Traceback" in text
  assert error in text


def test_one_that_hangs_costs_its_verdict_and_its_thread(judge):
  judges, warnings = make(judge, num_workers=2, seconds=0.8)
  said = ["hang"] * 3 + ["a", "sleep 0.01", "b", "sleep 0.01"]
  verdicts = judges([PROBLEM] * 7, said)
  late = Verdict(0.0, "", Status.TIMEOUT, {"seconds": 0.8})
  assert verdicts[:3] == [late] * 3
  assert [verdict.feedback for verdict in verdicts[3:]] == said[3:]
  assert judge.num_at_once == 3
  (text,) = warnings
  assert "judging.seconds=0.8" in text


def test_feedback_can_be_encoded(judge):
  judges, warnings = make(judge)
  (verdict,) = judges([PROBLEM], ["half"])
  assert verdict == Verdict(0.0, "? is half", Status.WRONG)
  assert not warnings


@pytest.mark.parametrize("said", ["raise it", "hang"])
def test_who_waits_hears_that_nobody_could_be_told(judge, said):
  def warn(text):
    raise BrokenPipeError("the terminal is gone")

  judges = judge_pool.JudgePool(
    judge, JudgingConfig(num_workers=1, seconds=0.8), warn=warn
  )
  with pytest.raises(BrokenPipeError):
    judges.submit(PROBLEM, said).result(HANG)
  assert judges([PROBLEM], ["a"])[0].feedback == "a"


def test_waiting_for_a_turn_is_no_part_of_the_deadline(judge):
  judges, warnings = make(judge, num_workers=1, seconds=1.2)
  verdicts = judges([PROBLEM] * 3, ["sleep 0.5"] * 3)
  assert {verdict.status for verdict in verdicts} == {Status.CORRECT}
  assert not warnings


def test_a_verdict_after_the_deadline_is_none(judge, threads_end):
  judges, _ = make(judge, num_workers=1, seconds=0.8)
  verdicts = judges([PROBLEM] * 2, ["hang", "a"])
  judge.released.set()
  threads_end()  # it comes, and nobody listens
  assert [v.status for v in verdicts] == [Status.TIMEOUT, Status.CORRECT]
  assert judges([PROBLEM], ["b"])[0].feedback == "b"


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_takes_back_what_has_not_begun(
  judge, threads_end
):
  judges, _ = make(judge, num_workers=1)
  received = []

  def interrupt_once(*_):
    received.append(True)
    if len(received) == 1:
      raise KeyboardInterrupt

  signal.signal(signal.SIGINT, interrupt_once)

  def completions():
    yield "interrupt"
    yield from ["a"] * 19
    judge.all_waiting.set()

  with pytest.raises(KeyboardInterrupt):
    judges([PROBLEM] * 20, completions())
  judge.released.set()
  threads_end()
  assert judge.num_begun == 1


_LEFT_BEHIND = """
import threading
from distil_jax.config import JudgingConfig
from distil_jax.envs import judge_pool
class Judge:
  def judge(self, problem, completion):
    threading.Event().wait()
judges = judge_pool.JudgePool(Judge(), JudgingConfig(num_workers=2))
for _ in range(5):
  judges.submit(None, "")
"""


def test_one_that_hangs_does_not_keep_the_process():
  program = [sys.executable, "-c", _LEFT_BEHIND]
  subprocess.run(program, check=True, timeout=HANG)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"num_workers": 0}, "num_workers=0 must be at least 1"),
    ({"seconds": 0}, "seconds=0 must be above 0"),
  ],
)
def test_unusable_settings(settings, said):
  usable = {"num_workers": 1, "seconds": 1.0}
  with pytest.raises(ValueError, match=said):
    deadline_pool.DeadlinePool(**usable | settings)
