"""Writes the feedback on a program: an execution trace as on LeetCode.

It shows the first runtime error, else the first time-out, else up to two wrong
answers, the shortest first.
"""

import builtins
import dataclasses
import signal
from collections.abc import Sequence

from distil_jax.envs import completion_text as envs_text
from distil_jax.envs.program_tests.row_layouts import Asserts, Case
from distil_jax.envs.sandbox import Check, End, Fault, Outcome
from distil_jax.types import Status

MAX_LENGTH = 2000
_MAX_PART = 400
_MAX_WRONG = 2
_LIMITS = {
  End.MEMORY: "Memory Limit Exceeded",
  End.OUTPUT: "Output Limit Exceeded",
  End.PROCESSES: "Runtime Error\nThe program started too many processes.",
}
_HIDDEN = "A hidden test"


@dataclasses.dataclass(frozen=True)
class Trial:
  """One test of a program.

  Attributes:
    test: The test.
    outcome: Outcome of its run in the sandbox.
    is_passed: True if the program passed.
    returned: The value that a call returned, as text; empty if there is none.
    program: Source of the program.
  """

  test: Case | Asserts
  outcome: Outcome
  is_passed: bool
  returned: str = ""
  program: str = ""


def status(trials: list[Trial]) -> Status:
  """Returns a program's status; at least one of its trials has failed."""
  failed = [trial for trial in trials if not trial.is_passed]
  ends = [_kind(trial.outcome) for trial in failed]
  # A failure of the sandbox comes first, because it says nothing about the
  # program; then what hides whether the answers are right.
  for kind in (Status.CRASHED, Status.ERROR, Status.TIMEOUT):
    if kind in ends:
      return kind
  return Status.WRONG


def trace(trials: list[Trial], *, tells_hidden: bool) -> str:
  """Describes the failed trials in at most `MAX_LENGTH` characters.

  Args:
    trials: Trials of one program.
    tells_hidden: Show the content of hidden tests.
  """
  failed = [trial for trial in trials if not trial.is_passed]
  worst = status(trials)
  if worst is Status.CRASHED:
    return ""  # The sandbox has failed, not the program.
  if worst is Status.WRONG:
    # Tests that may be shown first: a hidden one says only that it fails.
    shortest = sorted(failed, key=lambda x: (x.test.is_hidden, _size(x.test)))
    text = "\n\n".join(_wrong(x, tells_hidden) for x in shortest[:_MAX_WRONG])
  else:
    first = next(x for x in failed if _kind(x.outcome) is worst)
    broken = _error if worst is Status.ERROR else _late
    text = broken(first, tells_hidden)
  return _shortened(text, MAX_LENGTH)


def crash(trials: Sequence[Trial]) -> str:
  """Returns what has failed beside the program, as its error says it."""
  for trial in trials:
    checks = trial.outcome.checks
    if checks is not None and checks.broken:
      return checks.broken
    if trial.outcome.end is End.CRASHED:
      return trial.outcome.stderr or "the sandbox has failed"
  return ""


def _shortened(text: str, length: int) -> str:
  return envs_text.shortened_inside(text, length, sign=" … ")


def _kind(outcome: Outcome) -> Status:
  if outcome.end is End.CRASHED or (outcome.checks and outcome.checks.broken):
    return Status.CRASHED
  if outcome.end is End.TIMEOUT:
    return Status.TIMEOUT
  if outcome.end is End.EXITED and not outcome.exit_code:
    return Status.WRONG
  return Status.ERROR


def _size(test: Case | Asserts) -> int:
  return len(test.source if isinstance(test, Asserts) else test.input)


def _error(trial: Trial, tells_hidden: bool) -> str:
  outcome, is_told = trial.outcome, tells_hidden or not trial.test.is_hidden
  lines = []
  if outcome.end in _LIMITS:
    lines.append(_LIMITS[outcome.end])
  elif outcome.fault is not None:
    fault = outcome.fault if is_told else _bare(outcome.fault, trial.program)
    lines += ["Runtime Error", *_fault(fault)]
  else:
    lines += ["Runtime Error", _death(outcome, is_told)]
  return "\n".join([*lines, *_where(trial, is_told, "Last input")])


def _late(trial: Trial, tells_hidden: bool) -> str:
  is_told = tells_hidden or not trial.test.is_hidden
  return "\n".join(
    ["Time Limit Exceeded", *_where(trial, is_told, "Last input")]
  )


def _where(trial: Trial, is_told: bool, label: str) -> list[str]:
  """Says at which test it happened."""
  if not is_told:
    return [f"{_HIDDEN} ends so."]
  if isinstance(trial.test, Asserts):
    checks = trial.outcome.checks
    at = checks.stopped_at if checks else ""
    return [f"At: {_shortened(at, _MAX_PART)}"] if at else []
  if not trial.test.input.strip():
    return []
  return [f"{label}: {_shortened(trial.test.input.strip(), _MAX_PART)}"]


def _bare(fault: Fault, program: str) -> Fault:
  """Removes all of an exception that may contain a test's input.

  A program can raise exceptions of its own names and forge their frames, so
  only names of built-in exceptions and lines of the program itself are kept.
  """
  kind = getattr(builtins, fault.type, None)
  is_known = isinstance(kind, type) and issubclass(kind, BaseException)
  source = program.splitlines()
  frames = tuple(
    (number, "", source[number - 1].strip())
    for number, _, _ in fault.frames
    if 0 < number <= len(source)
  )
  return Fault(fault.type if is_known else "Exception", "", frames)


def _fault(fault: Fault) -> list[str]:
  """Describes an exception with the program's frames."""
  message = _shortened(fault.message, _MAX_PART)
  lines = [f"{fault.type}: {message}" if message else fault.type]
  # The frames that were left out belong into the middle.
  half = len(fault.frames) // 2
  for i, (number, function, text) in enumerate(fault.frames):
    if fault.num_skipped and i == half:
      lines.append(f"  … {fault.num_skipped} more")
    place = f", in {function}" if function not in ("", "<module>") else ""
    lines.append(f"  line {number}{place}: {_shortened(text, _MAX_PART)}")
  return lines


def _death(outcome: Outcome, is_told: bool) -> str:
  # A program can end with a status that it has read from the hidden input.
  if outcome.signal is None and not is_told:
    return "The program ended with an exit status other than 0"
  if outcome.signal is None:
    said = outcome.stderr.strip().splitlines()[-1:] or [""]
    told = f": {_shortened(said[0], _MAX_PART)}" if said[0] else ""
    return f"The program ended with exit status {outcome.exit_code}{told}"
  try:
    name = signal.Signals(outcome.signal).name
  except ValueError:
    name = f"signal {outcome.signal}"
  deep = " (a recursion too deep?)" if name == "SIGSEGV" else ""
  return f"The program was killed by {name}{deep}"


def _wrong(trial: Trial, tells_hidden: bool) -> str:
  if trial.test.is_hidden and not tells_hidden:
    return f"Wrong Answer\n{_HIDDEN} fails."
  if isinstance(trial.test, Asserts):
    return _failed_checks(trial.outcome)
  test, prints = trial.test, trial.outcome.stdout.strip()
  parts = [("Input", test.input.strip())]
  if test.function is None:
    parts += [("Output", prints), ("Expected", test.output.strip())]
  else:
    parts += [("Output", trial.returned), ("Expected", test.output)]
    if prints:
      parts.append(("Printed", prints))
  told = [f"{name}: {_shortened(text, _MAX_PART)}" for name, text in parts]
  return "\n".join(["Wrong Answer", *told])


def _failed_checks(outcome: Outcome) -> str:
  checks = outcome.checks
  if checks is None or not checks.failures:
    return "Wrong Answer\nThe tests came to no end, or to no assertion."
  texts = [_failed_check(x) for x in checks.failures[:_MAX_WRONG]]
  prints = outcome.stdout.strip()
  if prints:
    texts.append(f"Printed: {_shortened(prints, _MAX_PART)}")
  return "\n\n".join(texts)


def _failed_check(check: Check) -> str:
  lines = ["Wrong Answer", f"Failed: {_shortened(check.statement, _MAX_PART)}"]
  if check.call:
    returned = _shortened(check.returned, _MAX_PART)
    lines.append(f"{_shortened(check.call, _MAX_PART)} returned {returned}")
  if check.error:
    lines.append(check.error)
  return "\n".join(lines)
