"""What the processes of a job report, as an outcome.

A program shares its process with what reports for it. So nothing but the form
of a report is believed, and one that is malformed is as if it had not come:
the worst that a program can do is to lie about itself.
"""

import json
from collections.abc import Mapping
from typing import Any

from distil_jax.envs.sandbox.jobs import Check, Checks, End, Fault, Outcome

_MAX_TEXT = 2000
_MAX_FRAMES = 20


def outcome(results: Mapping[str, Mapping[str, Any]]) -> Outcome:
  """One record of what the supervisors say.

  Args:
    results: of the `program`, and of the `tests` where there are any, as
      `inside.supervise.supervise` has them.
  """
  said = results["program"]
  report = _report(said)
  end, raised = End(said["end"]), _fault(report.get("raised"))
  checks = None
  if "tests" in results:
    told = _report(results["tests"])
    checks = _checks(told)
    stopped = told.get("stopped")
    if isinstance(stopped, dict):
      raised = _fault(stopped.get("raised")) or raised
    if checks is None and end is End.EXITED:
      # The tests, which are no part of the program, came to no end.
      end = End(results["tests"]["end"])
      end = End.CRASHED if end in (End.EXITED, End.KILLED) else end
  if raised is not None and end is End.EXITED:
    end = End.RAISED
  return Outcome(
    end=end,
    stdout=said.get("stdout", ""),
    stderr=said.get("stderr", ""),
    fault=raised if end is End.RAISED else None,
    exit_code=said.get("exit_code"),
    signal=said.get("signal"),
    value=report.get("value"),
    not_plain=_text(report.get("not_plain")),
    checks=checks,
    seconds=said.get("seconds", 0.0),
  )


def _report(said: Mapping[str, Any]) -> dict[str, Any]:
  try:
    found = json.loads(said.get("report") or "{}")
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _checks(told: Mapping[str, Any]) -> Checks | None:
  if not told:
    return None
  stopped = told["stopped"] or {}
  return Checks(
    num_passed=told["num_passed"],
    num_failed=told["num_failed"],
    failures=tuple(_check(x) for x in told["failures"]),
    stopped_at=_text(stopped.get("statement") or stopped.get("call")),
    broken=_text(told["broken"]),
  )


def _check(told: Mapping[str, Any]) -> Check:
  return Check(
    statement=_text(told.get("statement")),
    call=_text(told.get("call")),
    returned=_text(told.get("returned")),
    error=_text(told.get("error")),
  )


def _fault(told: Any) -> Fault | None:
  if not isinstance(told, dict):
    return None
  frames, skipped = told.get("frames"), told.get("num_skipped")
  return Fault(
    type=_text(told.get("type")) or "Exception",
    message=_text(told.get("message")),
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
  # JSON can spell half a surrogate pair, which no tokenizer takes.
  return value[:_MAX_TEXT].encode("utf-8", "replace").decode()
