"""Jobs and outcomes as JSON, for a sandbox on another machine."""

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
  """All of a job.

  Raises:
    ValueError: an argument of its call is no plain value.
  """
  found = dataclasses.asdict(job)
  if job.call is not None:
    found["call"]["args"] = [values.encode(x) for x in job.call.args]
  return found


def job_from_json(said: Mapping[str, Any]) -> Job:
  """The job; nothing but its form is believed.

  Raises:
    ValueError: it is none.
  """
  try:
    call, tests = said["call"], said["tests"]
    job = Job(
      program=said["program"],
      stdin=said["stdin"],
      call=None
      if call is None
      else Call(call["name"], tuple(values.decode(x) for x in call["args"])),
      tests=None
      if tests is None
      else Tests(tests["source"], tests["prelude"], tuple(tests["names"])),
      limits=Limits(**said["limits"]),
    )
  except (KeyError, TypeError, RecursionError) as error:
    raise ValueError(f"no job: {type(error).__name__} {error}") from None
  texts = [job.program, job.stdin]
  texts += [] if job.call is None else [job.call.name]
  if job.tests is not None:
    texts += [job.tests.source, job.tests.prelude, *job.tests.names]
  if not all(isinstance(text, str) for text in texts):
    raise ValueError("no job: a text is none")
  return job


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
  """All of an outcome."""
  # A value may be nested so deep that it could not be copied.
  found = dataclasses.asdict(dataclasses.replace(outcome, value=None))
  return found | {"value": outcome.value}


def outcome_from_json(said: Mapping[str, Any]) -> Outcome:
  """The outcome.

  Raises:
    ValueError: it is none.
  """
  try:
    found: dict[str, Any] = dict(said)
    if found["fault"] is not None:
      frames = tuple(tuple(x) for x in found["fault"]["frames"])
      found["fault"] = Fault(**(found["fault"] | {"frames": frames}))
    if found["checks"] is not None:
      failures = tuple(Check(**x) for x in found["checks"]["failures"])
      found["checks"] = Checks(**(found["checks"] | {"failures": failures}))
    found["end"] = End(found["end"])
    return Outcome(**found)
  except (KeyError, TypeError) as error:
    raise ValueError(f"no outcome: {type(error).__name__} {error}") from None
