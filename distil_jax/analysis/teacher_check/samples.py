"""Turns evidence into rows for a reader: samples, and tokens in them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distil_jax.analysis.teacher_check.records import Gathered, Numbers
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.types import StopReason

# Costs from here on are as bad as it gets for a reader, nats.
HIGH_COST = 1.0


@dataclasses.dataclass(frozen=True)
class Choice:
  """Holds a token that a policy might have written, and its probability."""

  text: str
  prob: float


@dataclasses.dataclass(frozen=True)
class Token:
  """Holds what is known of one token of a completion; nats.

  Attributes:
    position: from 0.
    text: with its white space made visible.
    student, teacher: their probabilities of it.
    cross_entropy: of the teacher's distribution under the student's.
    cost: what the objective takes.
    future: cost still to come; None without future credit.
    credit: weight of log π_θ; None without future credit.
    student_choices, teacher_choices: the most probable tokens.
    is_judged: False if a tool or the environment wrote it, or if the teacher of
      its turn is told nothing.
  """

  position: int
  text: str
  student: float
  teacher: float
  cross_entropy: float
  cost: float
  future: float | None
  credit: float | None
  student_choices: Sequence[Choice]
  teacher_choices: Sequence[Choice]
  is_judged: bool


@dataclasses.dataclass(frozen=True)
class Sample:
  """Holds a completion, its verdict and its tokens.

  Attributes:
    title: names problem and sample.
    facts: verdict, reward, length and stop reason.
    student_prompt, teacher_prompt: as text; the latter is None if the sample
      has no teacher signal.
    completion: as text.
    feedback: of the verdict.
    tokens: empty without a teacher signal.
  """

  title: str
  facts: str
  student_prompt: str
  teacher_prompt: str | None
  completion: str
  feedback: str
  tokens: Sequence[Token]


def all_samples(
  gathered: Gathered, numbers: Numbers | None, signal: Numbers | None
) -> list[Sample]:
  """Returns every sample of the batch.

  Args:
    gathered: the batch.
    numbers: of its tokens, see `Evidence`; None if no sample has a teacher.
    signal: what the objective computed; None likewise.
  """
  experience = gathered.experience
  found = []
  for row, verdict in enumerate(experience.verdicts):
    problem, member = divmod(row, experience.group_size)
    reason = StopReason(int(experience.rollout.stop_reasons[row]))
    decode = gathered.tokenizer.decode
    teacher = gathered.teacher_name(row)
    has_teacher = gathered.teacher_mask[row].any()
    found.append(
      Sample(
        title=f"problem {experience.problems[problem].index}, "
        f"sample {member + 1} of {experience.group_size}",
        facts=f"{verdict.status.value}, reward {verdict.reward:g}, "
        f"{len(gathered.completion(row))} tokens, ended by "
        f"{reason.name.lower().replace('_', ' ')}"
        + ("" if teacher is None else f", teacher {teacher}"),
        student_prompt=decode(gathered.student_prompt(row), skip_special=False),
        teacher_prompt=gathered.stats.teacher_prompts[row],
        completion=decode(gathered.completion(row), skip_special=False),
        feedback=verdict.feedback,
        tokens=_tokens(gathered, numbers, signal, row)
        if numbers is not None and signal is not None and has_teacher
        else [],
      )
    )
  return found


def visible(text: str) -> str:
  """Returns the text of a token with its white space made visible."""
  for sign, shown in (("\n", "⏎"), ("\t", "⇥"), (" ", "·")):
    text = text.replace(sign, shown)
  # Other control characters would move the cursor of a terminal.
  return "".join(x if x.isprintable() else "�" for x in text)


def _tokens(
  gathered: Gathered, found: Numbers, signal: Numbers, row: int
) -> list[Token]:
  tokenizer = gathered.tokenizer

  def number(name: str, t: int) -> float | None:
    return float(signal[name][row, t]) if name in signal else None

  def choices(name: str, t: int) -> list[Choice]:
    ids = found[f"{name}_choices"][row, t]
    probs = found[f"{name}_choice_probs"][row, t]
    return [
      Choice(_text(tokenizer, int(i)), float(p))
      for i, p in zip(ids, probs, strict=True)
    ]

  return [
    Token(
      position=t,
      text=_text(tokenizer, token),
      student=float(np.exp(found["student_log_probs"][row, t])),
      teacher=float(np.exp(found["teacher_log_probs"][row, t])),
      cross_entropy=float(found["cross_entropies"][row, t]),
      cost=float(signal["costs"][row, t]),
      future=number("future_costs", t),
      credit=number("score_weights", t),
      student_choices=choices("student", t),
      teacher_choices=choices("teacher", t),
      is_judged=bool(gathered.teacher_mask[row, t]),
    )
    for t, token in enumerate(gathered.completion(row))
  ]


def _text(tokenizer: Tokenizer, token: int) -> str:
  return visible(tokenizer.decode([token], skip_special=False))
