"""Converts jobs and outcomes to JSON, for a sandbox on another machine."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distil_jax.envs.sandbox.guest import values
from distil_jax.envs.sandbox.jobs import (
  Call,
  Check,
  Checks,
  End,
  Fault,
  Job,
  Limits,
  Outcome,
  Tests,
)

SERVICE = "distil_jax sandbox 1"


def job_to_json(job: Job) -> dict[str, Any]:
  """Converts a job to JSON.

  Raises:
    ValueError: An argument of its call is no plain value.
  """
  found = dataclasses.asdict(job)
  if job.call is not None:
    found["call"]["args"] = [values.encode(x) for x in job.call.args]
  return found


def job_from_json(content: Mapping[str, Any]) -> Job:
  """Converts untrusted JSON to a job and checks its form.

  Raises:
    ValueError: It is no job.
  """
  try:
    call, tests = content["call"], content["tests"]
    job = Job(
      program=content["program"],
      stdin=content["stdin"],
      call=None
      if call is None
      else Call(
        call["name"],
        tuple(values.decode(x) for x in call["args"]),
        # A client of an older version does not say.
        bool(call.get("changes_argument")),
      ),
      tests=None
      if tests is None
      else Tests(tests["source"], tests["prelude"], tuple(tests["names"])),
      limits=Limits(**content["limits"]),
    )
  except (KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"this JSON is no job: {type(error).__name__} {error}"
    ) from None
  # A dataclass checks no types, and what is no text would fail in the guest,
  # where it would count as a fault of the sandbox.
  texts = [job.program, job.stdin]
  texts += [] if job.call is None else [job.call.name]
  if job.tests is not None:
    texts += [job.tests.source, job.tests.prelude, *job.tests.names]
  if not all(isinstance(text, str) for text in texts):
    raise ValueError("this JSON is no job: a field that must be text is not")
  return job


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
  """Converts an outcome to JSON."""
  # `asdict` copies recursively, and a value may be nested too deep for that.
  found = dataclasses.asdict(dataclasses.replace(outcome, value=None))
  return found | {"value": outcome.value}


def outcome_from_json(content: Mapping[str, Any]) -> Outcome:
  """Converts JSON to an outcome.

  Raises:
    ValueError: It is no outcome.
  """
  try:
    found: dict[str, Any] = dict(content)
    if found["fault"] is not None:
      frames = tuple(tuple(x) for x in found["fault"]["frames"])
      found["fault"] = Fault(**(found["fault"] | {"frames": frames}))
    if found["checks"] is not None:
      failures = tuple(Check(**x) for x in found["checks"]["failures"])
      found["checks"] = Checks(**(found["checks"] | {"failures": failures}))
    found["end"] = End(found["end"])
    return Outcome(**found)
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"this JSON is no outcome: {type(error).__name__} {error}"
    ) from None
