"""Pages of sampled completions to read."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from distil_jax import types


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion as a person wants to read it.

  Attributes:
    problem: what was asked.
    completion: the student's text; of an episode the last turn.
    num_tokens: length of the completion, tokens.
    stop_reason: why the completion ended.
    verdict: what the environment said about it.
    teacher_prompt: the teacher's prompt as it was built, after truncation;
      None where the sample has no teacher signal.
    earlier: of an episode, what was said before the last turn, and by whom.
  """

  problem: types.Problem
  completion: str
  num_tokens: int
  stop_reason: types.StopReason
  verdict: types.Verdict
  teacher_prompt: str | None = None
  earlier: Sequence[types.Message] = ()


def step_of_page(page: pathlib.Path) -> int:
  digits = page.stem.removeprefix("step_")
  return int(digits) if digits.isdecimal() else -1  # not one of our pages


def render_page(step: int, samples: Sequence[Sample]) -> str:
  parts = [f"# Rollouts of step {step}\n"]
  for number, sample in enumerate(samples, start=1):
    verdict = sample.verdict
    stop_reason = types.StopReason(int(sample.stop_reason))
    parts.append(
      f"## Sample {number} of {len(samples)}\n\n"
      f"- problem: {sample.problem.index}\n"
      f"- reward: {float(verdict.reward):g}\n"
      f"- status: {verdict.status}\n"
      f"- stop reason: {stop_reason.name.lower()}\n"
      f"- completion length: {int(sample.num_tokens)} tokens\n"
    )
    for message in sample.problem.messages:
      parts.append(f"### Prompt: {message['role']}\n")
      parts.append(_fenced(message["content"]))
    for number, message in enumerate(sample.earlier):
      parts.append(f"### Turn {number // 2 + 1}: {message['role']}\n")
      parts.append(_fenced(message["content"]))
    parts += ["### Completion\n", _fenced(sample.completion)]
    parts += ["### Feedback\n", _fenced(verdict.feedback)]
    parts += ["### Teacher's prompt\n"]
    if sample.teacher_prompt is None:
      parts.append("None: there is no teacher signal for this sample.\n")
    else:
      parts.append(_fenced(sample.teacher_prompt))
  return "\n".join(parts)


def _fenced(text: str) -> str:
  """Text as it is, in a fence longer than any run of backticks inside it."""
  if not text:
    return "(empty)\n"
  longest = max((len(run) for run in re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  end = "" if text.endswith("\n") else "\n"
  return f"{fence}text\n{text}{end}{fence}\n"
