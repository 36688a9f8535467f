"""Writes sampled completions as pages to read, and as JSON for the report."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax import types


@dataclasses.dataclass(frozen=True)
class Sample:
  """Holds one completion and what a reader wants to know about it.

  Attributes:
    problem: the problem.
    completion: the student's text; the last turn if there are several.
    num_tokens: length of the completion, tokens.
    stop_reason: why the completion ended.
    verdict: the environment's verdict.
    teacher_prompt: the teacher's prompt after truncation; None if the sample
      has no teacher signal.
    earlier: messages before the last turn, if there are several.
    earlier_verdicts: of the turns before the last one, if they are judged.
    tokens: lists by name, an entry for each token of the completion, see
      `token_values.rows`; empty if nothing is known of them.
  """

  problem: types.Problem
  completion: str
  num_tokens: int
  stop_reason: types.StopReason
  verdict: types.Verdict
  teacher_prompt: str | None = None
  earlier: Sequence[types.Message] = ()
  earlier_verdicts: Sequence[types.Verdict | None] = ()
  tokens: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


def step_of_page(page: pathlib.Path) -> int:
  """Returns the step in a page's name; -1 for a file that is not a page."""
  digits = page.stem.removeprefix("step_")
  return int(digits) if digits.isdecimal() else -1


def render_page(step: int, samples: Sequence[Sample]) -> str:
  """Returns a Markdown page with the samples of a step."""
  parts = [f"# Rollouts of step {step}\n"]
  for number, sample in enumerate(samples, start=1):
    verdict = sample.verdict
    stop_reason = types.StopReason(int(sample.stop_reason))
    parts.append(
      f"## Sample {number} of {len(samples)}\n\n"
      f"- problem: {sample.problem.index}{_of_set(sample.problem)}\n"
      f"- reward: {float(verdict.reward):g}\n"
      f"- status: {verdict.status}\n"
      f"- stop reason: {stop_reason.name.lower()}\n"
      f"- completion length: {int(sample.num_tokens)} tokens\n"
    )
    for message in sample.problem.messages:
      parts.append(f"### Prompt: {message['role']}\n")
      parts.append(_fenced(message["content"]))
    for number, message in enumerate(sample.earlier):
      turn, is_reply = divmod(number, 2)
      if is_reply and sample.earlier_verdicts:
        parts += _judged(turn, sample.earlier_verdicts[turn])
      parts.append(f"### Turn {turn + 1}: {message['role']}\n")
      parts.append(_fenced(message["content"]))
    parts += ["### Completion\n", _fenced(sample.completion)]
    parts += ["### Feedback\n", _fenced(verdict.feedback)]
    parts += ["### Teacher's prompt\n"]
    if sample.teacher_prompt is None:
      parts.append("None: there is no teacher signal for this sample.\n")
    else:
      parts.append(_fenced(sample.teacher_prompt))
  return "\n".join(parts)


def to_lines(samples: Sequence[Sample]) -> str:
  """Returns a line of JSON for each sample, failures first."""
  ordered = sorted(samples, key=lambda sample: float(sample.verdict.reward))
  return "".join(
    json.dumps(_record(x), allow_nan=False) + "\n" for x in ordered
  )


def _judged(turn: int, verdict: types.Verdict | None) -> list[str]:
  """Returns what is said of a turn before the last one."""
  if verdict is None:
    return []
  reward, status = float(verdict.reward), verdict.status
  return [
    f"### Turn {turn + 1}: feedback ({status}, reward {reward:g})\n",
    _fenced(verdict.feedback),
  ]


def _of_set(problem: types.Problem) -> str:
  return f" of {problem.source}" if problem.source else ""


def _fenced(text: str) -> str:
  """Returns the text in a fence longer than any run of backticks in it."""
  if not text:
    return "(empty)\n"
  # A completion may contain fences, which would end this one.
  longest = max((len(run) for run in re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  end = "" if text.endswith("\n") else "\n"
  return f"{fence}text\n{text}{end}{fence}\n"


def _record(sample: Sample) -> dict[str, Any]:
  problem = sample.problem
  record = {
    "problem": problem.index,
    "source": problem.source,
    "messages": [dict(message) for message in problem.messages],
    "answer": str(problem.answer),
    "earlier": [dict(message) for message in sample.earlier],
    "earlier_verdicts": [
      verdict and _verdict(verdict) for verdict in sample.earlier_verdicts
    ],
    "completion": sample.completion,
    "num_tokens": int(sample.num_tokens),
    "stop_reason": types.StopReason(int(sample.stop_reason)).name.lower(),
    **_verdict(sample.verdict),
    "teacher_prompt": sample.teacher_prompt,
  }
  if sample.tokens:
    record["tokens"] = dict(sample.tokens)
  return record


def _verdict(verdict: types.Verdict) -> Mapping[str, Any]:
  return {
    "reward": float(verdict.reward),
    "status": str(verdict.status),
    "feedback": verdict.feedback,
  }
