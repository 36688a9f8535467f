"""Converts the reports of a job's processes to an outcome.

A program shares its process with the code that reports for it, so reports are
untrusted: only their form is checked, and a malformed one is treated as if it
had not come. The worst that a program can do is to lie about itself.
"""

import json
from collections.abc import Mapping
from typing import Any

from distil_jax.envs.sandbox.jobs import Check, Checks, End, Fault, Outcome

_MAX_TEXT = 2000
_MAX_FRAMES = 20


def outcome(results: Mapping[str, Mapping[str, Any]]) -> Outcome:
  """Combines the results of a job's supervisors.

  Args:
    results: Results of `guest.supervise.supervise` by role: of the `program`,
      and of the `tests` if there are any.
  """
  result = results["program"]
  report = _report(result)
  end, raised = End(result["end"]), _fault(report.get("raised"))
  checks = None
  if "tests" in results:
    tests_report = _report(results["tests"])
    checks = _checks(tests_report)
    # Only the tests know what a call has raised: the program's process answers
    # with the exception and goes on.
    stopped = tests_report.get("stopped")
    if isinstance(stopped, dict):
      raised = _fault(stopped.get("raised")) or raised
    if checks is None and end is End.EXITED:
      # The program is done, but the tests gave no report: they are to blame.
      end = End(results["tests"]["end"])
      end = End.CRASHED if end in (End.EXITED, End.KILLED) else end
  if raised is not None and end is End.EXITED:
    end = End.RAISED
  return Outcome(
    end=end,
    stdout=result.get("stdout", ""),
    stderr=result.get("stderr", ""),
    fault=raised if end is End.RAISED else None,
    exit_code=result.get("exit_code"),
    signal=result.get("signal"),
    value=report.get("value"),
    not_plain=_text(report.get("not_plain")),
    checks=checks,
    seconds=result.get("seconds", 0.0),
  )


def _report(result: Mapping[str, Any]) -> dict[str, Any]:
  try:
    found = json.loads(result.get("report") or "{}")
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _checks(report: Mapping[str, Any]) -> Checks | None:
  if not report:
    return None
  stopped = report["stopped"] or {}
  return Checks(
    num_passed=report["num_passed"],
    num_failed=report["num_failed"],
    failures=tuple(_check(x) for x in report["failures"]),
    stopped_at=_text(stopped.get("statement") or stopped.get("call")),
    broken=_text(report["broken"]),
  )


def _check(failure: Mapping[str, Any]) -> Check:
  return Check(
    statement=_text(failure.get("statement")),
    call=_text(failure.get("call")),
    returned=_text(failure.get("returned")),
    error=_text(failure.get("error")),
  )


def _fault(raised: Any) -> Fault | None:
  if not isinstance(raised, dict):
    return None
  frames, skipped = raised.get("frames"), raised.get("num_skipped")
  return Fault(
    type=_text(raised.get("type")) or "Exception",
    message=_text(raised.get("message")),
    frames=tuple(
      (int(frame[0]), _text(frame[1]), _text(frame[2]))
      for frame in (frames if isinstance(frames, list) else [])[:_MAX_FRAMES]
      if isinstance(frame, list)
      and len(frame) == 3
      and isinstance(frame[0], int)
    ),
    num_skipped=skipped if isinstance(skipped, int) else 0,
  )


def _text(value: Any) -> str:
  if not isinstance(value, str):
    return ""
  # JSON can contain a lone surrogate, which no tokenizer accepts.
  return value[:_MAX_TEXT].encode("utf-8", "replace").decode()
