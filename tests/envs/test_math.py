import contextlib
import errno
import os
import pickle
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.config.environments import MathConfig
from distil_jax.envs import math as maths
from distil_jax.envs import process_pool
from distil_jax.envs.math_answers import boxes as math_boxes
from distil_jax.envs.math_answers import worker as math_worker
from distil_jax.types import Status
from tests.paths import ROOT

ENVIRONMENT = maths.Math(MathConfig(seconds=60.0))  # of a loaded machine
IMPATIENT = maths.Math(MathConfig(seconds=1.0))
FAST = maths.Math(MathConfig(symbolic=False))
WORKER = "tests.envs.answering_worker"


def problem(answer="18", environment=ENVIRONMENT, **fields):
  return environment.problem(
    {"prompt": "How many?", "answer": answer, **fields}
  )


def judge(completion, answer="18", environment=ENVIRONMENT):
  return environment.judge(problem(answer), completion)


def boxed(text):
  return f"So it is $\\boxed{{{text}}}$."


def test_a_row_of_gsm8k_becomes_a_problem():
  found = problem("She has 9*2=<<9*2=18>>18 left.\n#### 18")
  assert found.answer == "18"
  assert found.solution == "She has 9*2=18 left.\n\\boxed{18}"
  (message,) = found.messages
  assert message["content"] == (
    "How many?\n\nPut the final answer in \\boxed{}."
  )
  plain = maths.Math(MathConfig(instruction="")).problem(
    {"prompt": "p", "answer": "1"}
  )
  assert plain.messages[0]["content"] == "p"


@pytest.mark.parametrize(
  ("fields", "answer", "solution"),
  [
    ({"answer": " 1/2 "}, "1/2", None),
    ({"answer": "1/2", "solution": "It is."}, "1/2", "It is."),
    (
      {"answer": r"So \boxed{\frac{1}{2}}."},
      r"\frac{1}{2}",
      r"So \boxed{\frac{1}{2}}.",
    ),
  ],
)
def test_other_rows(fields, answer, solution):
  found = problem(**fields)
  assert (found.answer, found.solution) == (answer, solution)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"answer": "1"}, "no prompt"),
    ({"prompt": "p"}, "no answer"),
    ({"prompt": "p", "answer": "so #### "}, "no answer"),
    ({"prompt": "p", "answer": r"\boxed{}"}, "no answer"),
    ({"prompt": "p", "answer": {}}, "answer must be a text, a number"),
    ({"prompt": "p", "answer": "1" * 1001}, "1001 characters"),
  ],
)
def test_a_row_that_is_no_problem(row, message):
  with pytest.raises(ValueError, match=message):
    ENVIRONMENT.problem(row)


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("", None),
    ("boxed{1}", None),
    (r"\boxed{1}", "1"),
    (r"\boxed{1} or \boxed{2}", "2"),
    (r"\boxed{1} or \boxed{2", "1"),
    (r"\boxed{\frac{1}{2}} }", r"\frac{1}{2}"),
    (r"\boxed{a \boxed{b} c}", "b"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\{}", r"\{"),
    (r"\boxed{}", ""),
    ("\\boxed{" * 1000, None),
    ("\\boxed{" * 1000 + "}" * 1000, ""),
  ],
)
def test_the_last_box_that_is_closed(text, found):
  assert math_boxes.last_boxed(text) == found


@pytest.mark.parametrize(
  ("answer", "spelling"),
  [
    ("18", "18.0"),
    ("18", r"\$18"),
    ("18", r"\frac{36}{2}"),
    ("18", r"18\text{ dollars}"),
    ("18", "9 + 9"),
    ("18", "x = 18"),
    ("70000", "70,000"),
    ("70000", r"70\,000"),
    ("70000", r"7 \times 10^4"),
    ("1/2", "0.5"),
    ("1/2", r"\frac12"),
    ("-2", "- 2"),
    (".5", "+0.50"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("(1,2)", "(1, 2)"),
  ],
)
def test_correct(answer, spelling):
  verdict = judge(boxed(spelling), answer)
  assert verdict.feedback == ""
  assert verdict.reward == 1.0
  assert verdict.status is Status.CORRECT
  assert verdict.details == {"parsed": spelling}


@pytest.mark.parametrize(
  ("answer", "spelling"),
  [
    ("18", "17"),
    ("18", "-18"),
    ("18", "180"),
    ("18", "18.001"),
    ("18", "18x"),
    ("1/2", "2"),
    ("x+1", "x-1"),
    ("18", "unknown"),
  ],
)
def test_wrong(answer, spelling):
  verdict = judge(boxed(spelling), answer)
  assert verdict.feedback == f"{spelling} is not the correct answer."
  assert verdict.reward == 0.0
  assert verdict.status is Status.WRONG


@pytest.mark.parametrize(
  ("completion", "said"),
  [
    ("", r"no answer was found in \boxed{…}"),
    ("It is 18.", "no answer was found"),
    (r"\boxed{18", r"\boxed{ is never closed"),
    (r"\boxed{ }", r"\boxed{} is empty"),
    (boxed("1" * 1001), "has 1001 characters"),
  ],
)
def test_unparsable(completion, said):
  verdict = judge(completion)
  assert said in verdict.feedback
  assert verdict.reward == 0.0
  assert verdict.status is Status.UNPARSABLE


def test_the_answer_is_named_only_on_request():
  revealing = maths.Math(MathConfig(symbolic=False, reveal_answer=True))
  for completion in ("", boxed("7")):
    assert "18" not in judge(completion).feedback
    revealed = judge(completion, environment=revealing).feedback
    assert revealed.endswith(" The correct answer is 18.")
  silent = maths.Math(MathConfig(symbolic=False, feedback=False))
  assert judge(boxed("7"), environment=silent).feedback == ""
  assert judge(boxed("18"), environment=revealing).feedback == ""


def test_without_algebra_numbers_are_equal_by_value_and_nothing_else():
  assert judge(boxed("18.0"), environment=FAST).reward == 1.0
  assert judge(boxed("9 + 9"), environment=FAST).reward == 0.0
  assert judge(boxed("x"), "x", FAST).reward == 1.0


@pytest.mark.parametrize(
  "attack",
  [
    "9^{9^{9^{9}}}",
    "\\int_0^1 e^{\\sin(x^{x^x})} dx + 99999999999!",
    "\\sum_{n=1}^{10^{12}} \\frac{1}{n^n + \\sin n}",
    "(" * 900,
    "\\frac{" * 160,
    "\\left(" * 150,
    "10^{10^{10}} - 10^{10^{9}} + 18",
    "\x00\u202e\ud800",
  ],
  ids=range(8),
)
def test_what_may_hang_has_a_verdict_by_its_deadline(attack):
  verdict = judge(boxed(attack), environment=IMPATIENT)
  assert verdict.reward == 0.0
  assert verdict.status is not Status.CORRECT


@pytest.fixture
def numbered(monkeypatch):
  """Without walls, behind which processes have other numbers than here."""
  monkeypatch.setattr(process_pool, "_isolation_prefix", lambda: ())


@pytest.fixture
def worker(numbered):
  made = process_pool.Worker(WORKER)
  yield made
  made.close()


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  monkeypatch.setenv("PYTHONPATH", path)


def is_running(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def test_a_worker_answers_one_after_the_other_and_is_replaced(worker):
  said, first = worker.ask("a", 60)
  assert said == "a"
  assert worker.ask("print", 60) == ["print", first]
  large = "x" * 3_000_000
  assert worker.ask(large, 60) == [large, first]
  with pytest.raises(process_pool.WorkerTimeoutError):
    worker.ask("hang", 0.5)
  assert not is_running(first)
  _, second = worker.ask("b", 60)
  assert second != first
  with pytest.raises(process_pool.WorkerCrashError):
    worker.ask("die", 60)
  _, third = worker.ask("c", 60)
  assert third not in (first, second)
  worker.close()
  assert not is_running(third)


def test_threads_share_a_worker(worker):
  found = {}

  def ask(i):
    found[i] = worker.ask(i, 60)[0]

  threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {i: i for i in range(8)}


def test_a_worker_sees_no_secret_and_no_network(monkeypatch):
  monkeypatch.setenv("SECRET", "x")
  made = process_pool.Worker(WORKER)
  assert made.ask("look", 60) == [None, True, "/tmp"]
  assert made.ask("reach", 60) == errno.ENETUNREACH
  made.close()


@pytest.fixture
def pool(numbered):
  made = process_pool.ProcessPool(WORKER, 2)
  yield made
  made.close()


def asked_at_once(pool, questions, seconds=60):
  """What each is answered; None where there is no answer."""
  found = [None] * len(questions)

  def ask(i):
    with contextlib.suppress(
      process_pool.WorkerTimeoutError, process_pool.WorkerCrashError
    ):
      found[i] = pool.ask(questions[i], seconds)

  threads = [
    threading.Thread(target=ask, args=(i,)) for i in range(len(questions))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


def test_a_pool_has_as_many_processes_as_are_asked_at_once(pool):
  alone = {pool.ask(i, 60)[1] for i in range(3)}
  assert len(alone) == 1
  answers = asked_at_once(pool, ["wait"] * 5)
  assert [said for said, _ in answers] == ["wait"] * 5
  both = {pid for _, pid in answers}
  assert len(both) == 2
  assert alone < both


def test_one_of_a_pool_that_hangs_is_killed_alone(pool):
  (_, first), (_, second) = asked_at_once(pool, ["wait"] * 2)
  (nothing, (said, other)) = asked_at_once(pool, ["hang", "wait"], 1.0)
  assert nothing is None
  assert said == "wait"
  assert other in (first, second)
  assert not is_running(first + second - other)


def test_a_closed_pool_has_no_process_and_starts_none(pool):
  _, pid = pool.ask("a", 60)
  threading.Timer(0.3, pool.close).start()
  assert asked_at_once(pool, ["hang"]) == [None]
  assert not is_running(pid)
  with pytest.raises(process_pool.WorkerCrashError, match="is closed"):
    pool.ask("a", 60)


def test_a_worker_that_does_not_start_says_so():
  with pytest.raises(
    process_pool.WorkerCrashError, match="no_such_module does not"
  ):
    process_pool.Worker("no_such_module").ask("a", 60)


def test_an_environment_travels_and_is_equal_by_its_settings():
  copy = pickle.loads(pickle.dumps(ENVIRONMENT))
  assert copy == ENVIRONMENT
  assert judge(boxed("9 + 9"), environment=copy).reward == 1.0
  copy._workers.close()


def test_algebra_that_is_not_installed_is_refused(monkeypatch):
  monkeypatch.setattr(math_worker, "is_installed", lambda: False)
  with pytest.raises(ValueError, match=re.escape("distil_jax[math]")):
    maths.Math()
  assert maths.Math(MathConfig(symbolic=False))


@settings(deadline=None)
@given(
  st.lists(
    st.sampled_from(["\\boxed{", "}", "{", "\\", "1", ",", ".", "$", "####"])
    | st.text()
  ).map("".join)
)
def test_whatever_it_says_there_is_a_verdict(completion):
  verdict = judge(completion, environment=FAST)
  assert verdict.reward == (verdict.status is Status.CORRECT)
  assert bool(verdict.feedback) == (verdict.reward == 0)


@pytest.mark.parametrize(
  "completion",
  [
    "\\boxed{" * 140_000,
    "\\boxed{" * 100 + " " * 1_000_000,
    "\\boxed{" + "{}" * 500_000,
    "\\boxed{" + "9" * 1_000_000 + "}",
    "\\boxed{" + "," * 999 + "}",
    "}" * 1_000_000,
    "\\" * 1_000_000 + "boxed{1}",
  ],
  ids=range(7),
)
def test_a_huge_completion_is_judged_fast(completion):
  begun = time.process_time()
  assert judge(completion, environment=FAST).reward == 0.0
  assert time.process_time() - begun < 5  # not a speed, but no square of it
