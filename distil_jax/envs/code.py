"""Judges programs: the last fenced block runs against tests in a sandbox."""

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distil_jax.config.environments import CodeConfig
from distil_jax.envs import code_blocks, rows, warn_once
from distil_jax.envs.program_tests import feedback as code_feedback
from distil_jax.envs.program_tests import imports as code_imports
from distil_jax.envs.program_tests import json_values as code_json
from distil_jax.envs.program_tests import outputs as code_outputs
from distil_jax.envs.program_tests import prompts as code_prompts
from distil_jax.envs.program_tests import row_layouts as code_tests
from distil_jax.envs.program_tests.feedback import Trial
from distil_jax.envs.program_tests.row_layouts import Asserts, Case
from distil_jax.envs.sandbox import (
  Call,
  End,
  Job,
  Limits,
  Outcome,
  Sandbox,
  Tests,
)
from distil_jax.envs.sandbox.guest import values
from distil_jax.types import Problem, Reply, Status, Verdict

_MAX_PROGRAM = 200_000
_AGAIN = "Write the whole program again, so that it passes all tests."


# Errors of a checker that are its own.
_BROKEN = frozenset(
  ["SyntaxError", "NameError", "ImportError", "ModuleNotFoundError"]
)


@dataclasses.dataclass(frozen=True)
class Code:
  """Judges by what a program does.

  Attributes:
    config: Feedback, instruction and limits.
    sandbox: Runs the programs.
  """

  config: CodeConfig
  sandbox: Sandbox = dataclasses.field(repr=False, compare=False)
  required_fields: ClassVar = ("prompt",)
  _warn_once: warn_once.WarnOnce = dataclasses.field(
    default_factory=lambda: warn_once.WarnOnce(warn_once.to_stderr),
    init=False,
    repr=False,
    compare=False,
  )

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt`, and tests as `code_tests` reads them. Optionally `system`,
        `starter_code`, and `solution`; or `canonical_solution`, which completes
        the prompt.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed, or there is no test.
    """
    messages = list(rows.messages(row))
    tests = code_tests.read(row)
    code_imports.check(tests, self.sandbox)
    question = code_prompts.question(row, tests, self.config.instruction)
    messages[-1] = {**messages[-1], "content": question}
    return Problem(
      index=index,
      messages=tuple(messages),
      answer="",
      solution=_solution(row),
      details={"tests": code_tests.as_data(tests)},
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Runs the program of the last closed ``` block against all tests.

    Each test has a process of its own. No test starts after one that exceeds
    its time limit.

    Returns:
      A verdict whose reward is 1 if all tests pass, else 0; `details` has
      `num_passed`, `num_tests` (assertions, if tests have any) and `pass_rate`.
    """
    return self._judged(problem, completion)[0]

  def _judged(
    self, problem: Problem, completion: str
  ) -> tuple[Verdict, list[Trial]]:
    """Returns the verdict, and the trials that it is made from."""
    program, fault = last_program(completion)
    if program is None:
      feedback = f"The format is wrong: {fault}"
      return self._verdict(0.0, feedback, Status.UNPARSABLE, []), []
    tests = code_tests.from_data(problem.details["tests"])
    trials = self._trials(program, tests)
    if len(trials) == len(tests) and all(x.is_passed for x in trials):
      return self._verdict(1.0, "", Status.CORRECT, trials, tests), trials
    feedback = code_feedback.trace(
      trials, tells_hidden=self.config.reveal_hidden_tests
    )
    status = code_feedback.status(trials)
    if status is Status.CRASHED:
      return self._crashed(problem.index, trials, tests), trials
    return self._verdict(0.0, feedback, status, trials, tests), trials

  @property
  def max_turns(self) -> int:
    """Most programs that the student may write."""
    return self.config.max_attempts

  def reply(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Reply:
    """Judges the newest program, and shows its trace if it fails.

    The verdict is that of `judge`. The student reads an execution trace of its
    own, which says of a hidden test only that it fails, whatever
    `reveal_hidden_tests` lets the teacher see.
    """
    del replies
    verdict, trials = self._judged(problem, turns[-1])
    if verdict.status in (Status.CORRECT, Status.CRASHED):
      return Reply(verdict=verdict)
    trace = code_feedback.trace(trials, tells_hidden=False) if trials else ""
    shown = trace or f"The format is wrong: {last_program(turns[-1])[1]}"
    return Reply(f"{shown}\n\n{_AGAIN}", verdict)

  def _crashed(
    self, index: int, trials: Sequence[Trial], tests: Sequence[Case | Asserts]
  ) -> Verdict:
    """Says once for each kind of error why nothing is learned from a row."""
    said = code_feedback.crash(trials)
    self._warn_once(
      said.partition(":")[0],
      f"problem {index}: its tests break, not the program: {said}. Nothing is "
      f"learned from it. {code_imports.CURE} Others to which this happens are "
      f"counted as {Status.CRASHED} and not reported",
    )
    verdict = self._verdict(0.0, "", Status.CRASHED, trials, tests)
    details = {**verdict.details, "error": said}
    return dataclasses.replace(verdict, details=details)

  def _verdict(
    self,
    reward: float,
    feedback: str,
    status: Status,
    trials: Sequence[Trial],
    tests: Sequence[Case | Asserts] = (),
  ) -> Verdict:
    passed = [_counts(trial) for trial in trials]
    not_run = len(tests) - len(trials)
    details = {
      "num_passed": sum(count for count, _ in passed),
      "num_tests": sum(count for _, count in passed) + not_run,
    }
    rate = details["num_passed"] / max(1, details["num_tests"])
    return Verdict(
      reward,
      feedback if self.config.feedback else "",
      status,
      {**details, "pass_rate": rate},
    )

  def _trials(
    self, program: str, tests: Sequence[Case | Asserts]
  ) -> list[Trial]:
    trials: list[Trial] = []
    deadline = time.monotonic() + self.config.total_seconds
    for test in tests:
      trials.append(self._trial(program, test))
      # A program that is too slow once is so again, at the same cost.
      is_late = trials[-1].outcome.end is End.TIMEOUT
      if is_late or time.monotonic() > deadline:
        break
    if trials and len(trials) < len(tests) and trials[-1].is_passed:
      # Each test was fast enough, but all together exceeded `total_seconds`.
      late = Outcome(End.TIMEOUT)
      trials.append(Trial(tests[len(trials)], late, is_passed=False))
    return trials

  def _trial(self, program: str, test: Case | Asserts) -> Trial:
    outcome = self.sandbox.run(self._job(program, test))
    is_over = outcome.end is End.EXITED and not outcome.exit_code
    if isinstance(test, Asserts):
      checks = outcome.checks
      is_passed = (
        is_over
        and checks is not None
        and checks.num_passed > 0  # a loop over an empty list asserts nothing
        and not checks.num_failed
        and not checks.stopped_at
        and not checks.broken
      )
      return Trial(test, outcome, is_passed, program=program)
    if test.function is None:
      return self._script_trial(program, test, outcome, is_over)
    value, returned = _returned(outcome)
    # Compared as JSON, which has one kind of list: data cannot tell a tuple
    # from a list either.
    is_passed = is_over and returned == ""
    if is_passed and test.checker:
      expected = code_json.decoded(test.output)
      given = list(test.arguments), value, expected
      outcome, is_passed = self._checked(test, outcome, given)
    elif is_passed:
      is_passed = any(
        code_outputs.is_same_value(value, code_json.decoded(x))
        for x in test.outputs
      )
    shown = returned or _shown(value)
    return Trial(test, outcome, is_passed, returned=shown, program=program)

  def _script_trial(
    self, program: str, test: Case, outcome: Outcome, is_over: bool
  ) -> Trial:
    written, is_passed = outcome.stdout, is_over
    if is_over and test.checker:
      texts = test.input, written, test.output
      outcome, is_passed = self._checked(test, outcome, texts)
    elif is_over:
      is_passed = any(
        code_outputs.is_same_output(written, x) for x in test.outputs
      )
    return Trial(test, outcome, is_passed, program=program)

  def _checked(
    self, test: Case, outcome: Outcome, given: tuple[Any, ...]
  ) -> tuple[Outcome, bool]:
    """Asks the row's checker, in a process that the program never shares.

    Returns:
      The outcome of the program, or one that has crashed if the checker is
      broken, and True if the output is right.
    """
    job = Job(test.checker, call=Call("check", given), limits=self._limits())
    found = self.sandbox.run(job)
    if found.end is End.EXITED and not found.exit_code:
      value, fault = _returned(found)
      return outcome, value is True and not fault
    kind = found.fault.type if found.fault else str(found.end)
    # Whatever else a checker raises is about an output that it cannot read.
    if found.end is End.RAISED and kind not in _BROKEN:
      return outcome, False
    text = found.fault.message if found.fault else ""
    said = f"the checker is broken: {kind}: {text}"
    return Outcome(End.CRASHED, stderr=said), False

  def _job(self, program: str, test: Case | Asserts) -> Job:
    if isinstance(test, Asserts):
      tests = Tests(test.source, test.prelude, test.names)
      return Job(program, tests=tests, limits=self._limits())
    if test.function is None:
      return Job(program, stdin=test.input, limits=self._limits())
    name = test.function
    # LeetCode's programs put the function into a class of this name.
    if re.search(r"^class Solution\b", program, re.MULTILINE) and (
      "." not in name
    ):
      name = f"Solution.{name}"
    call = Call(name, test.arguments, test.changes_argument)
    return Job(program, call=call, limits=self._limits())

  def _limits(self) -> Limits:
    return Limits(
      seconds=self.config.seconds,
      # A program that waits uses no CPU time, so it has a limit of its own.
      wall_seconds=2 * self.config.seconds + 2,
      memory_bytes=int(self.config.memory_gib * (1 << 30)),
    )


def last_program(text: str) -> tuple[str | None, str]:
  """Returns the last closed block of Python, or None and what is wrong.

  A block without a language counts if none is said to be Python.
  """
  program, is_open = code_blocks.last_python(text, takes_unlabelled=True)
  if program is None:
    if is_open:
      return None, (
        "the code block is never closed. Write the whole program, and end its "
        "block with ```."
      )
    return None, (
      "no code block was found. Write the whole program in one ```python block."
    )
  if len(program) > _MAX_PROGRAM:
    return None, f"the program has {len(program)} characters."
  return program, ""


def _returned(outcome: Outcome) -> tuple[Any, str]:
  """Returns the value of a call, and an error text or an empty one."""
  if outcome.not_plain:
    return None, outcome.not_plain
  try:
    return values.as_json(outcome.value), ""
  except values.PlainError as error:
    return None, str(error)


def _shown(value: Any) -> str:
  try:
    return json.dumps(value)
  except ValueError:  # Python refuses to print integers of so many digits
    return "a value with too large a number to show"


def _solution(row: Mapping[str, Any]) -> str | None:
  """Returns a reference solution; a program is shown as a block."""
  solution = rows.text(row, "solution")
  if solution:
    return solution
  rest = rows.text(row, "canonical_solution")
  if rest:
    return code_prompts.fenced((rows.text(row, "prompt") or "") + rest)
  program = rows.text(row, "code") or _first_solution(row.get("solutions"))
  return code_prompts.fenced(program) if program else None


def _first_solution(solutions: Any) -> str | None:
  """Returns the first of the solutions of APPS, a list or its JSON text."""
  if isinstance(solutions, str):
    try:
      solutions = json.loads(solutions) if solutions.strip() else []
    except (ValueError, RecursionError):
      raise ValueError("solutions is no JSON") from None
  if not isinstance(solutions, list) or not solutions:
    return None
  first = solutions[0]
  if not isinstance(first, str):
    raise ValueError("solutions must be a list of texts")
  if "```" not in first:
    return first
  return code_blocks.last_python(first, takes_unlabelled=True)[0]


def _counts(trial: Trial) -> tuple[int, int]:
  """Returns how many tests passed and how many there are."""
  checks = trial.outcome.checks
  if isinstance(trial.test, Asserts) and checks is not None:
    total = checks.num_passed + checks.num_failed
    # Tests that reached no assertion count as one that failed.
    return checks.num_passed, max(1, total + (not total))
  return int(trial.is_passed), 1
