"""Builds the teacher's prompts.

The student's prompt is the problem. The teacher's prompt is the problem, a
solution or feedback, and the instruction to solve it. The teacher is then
scored on the student's own tokens, so the failed attempt itself is not in the
prompt but follows it.
"""

import dataclasses
from collections.abc import Callable, Sequence

from distil_jax.data import teacher_templates
from distil_jax.data.teacher_templates import Template, Told
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs import completion_text as envs_text
from distil_jax.types import Message, Problem


@dataclasses.dataclass(frozen=True)
class TeacherPrompt:
  """Holds a teacher prompt that fits its limit.

  Attributes:
    ids: the prompt, including the marker of the assistant's turn.
    was_truncated: true if solution or feedback had to be cut.
    has_solution, has_feedback: true if any of it is in the prompt.
  """

  ids: list[int]
  was_truncated: bool
  has_solution: bool
  has_feedback: bool


def teacher_prompt(
  problem: Problem,
  *,
  solution: str | None = None,
  feedback: str | None = None,
  attempt: str | None = None,
  template: Template = teacher_templates.block,
) -> list[Message]:
  """Returns the student's messages with what the teacher is told.

  Without solution and feedback the messages are the student's.

  Args:
    problem: the question.
    solution: a successful attempt or a reference; its thoughts are removed.
    feedback: what was wrong with the attempt.
    attempt: the student's completion; its thoughts are removed.
    template: the form of the prompt.

  Raises:
    ValueError: something is told, but the problem has no user message.
  """
  told = _told(solution, feedback, attempt)
  return _messages(problem, told, template)


def _told(
  solution: str | None, feedback: str | None, attempt: str | None
) -> Told:
  return Told(
    solution=envs_text.without_thought(solution or ""),
    feedback=feedback or "",
    attempt=envs_text.without_thought(attempt or ""),
  )


def _messages(
  problem: Problem, told: Told, template: Template
) -> list[Message]:
  return list(problem.messages) if told.is_empty else template(problem, told)


def choose_solution(
  rewards: Sequence[float],
  completions: Sequence[str],
  index: int,
  *,
  threshold: float,
) -> str | None:
  """Returns the first other success of a group, for the teacher of a sample.

  A success that has only thoughts shows nothing and is passed over.

  Args:
    rewards: the reward of each sample of the group. Length G.
    completions: the text of each sample of the group. Length G.
    index: the sample that is to be taught.
    threshold: the lowest reward of a success.

  Returns:
    The completion unchanged; None if no other sample succeeded.
  """
  if len(rewards) != len(completions):
    raise ValueError(f"{len(rewards)} rewards, {len(completions)} completions")
  if not 0 <= index < len(rewards):
    raise ValueError(f"index={index} in a group of {len(rewards)} samples")
  for other, completion in enumerate(completions):
    is_success = other != index and rewards[other] >= threshold
    if is_success and envs_text.without_thought(completion).strip():
      return completion
  return None


def fit_teacher_prompt(
  problem: Problem,
  *,
  solution: str | None,
  feedback: str | None,
  tokenizer: Tokenizer,
  limit: int,
  attempt: str | None = None,
  template: Template = teacher_templates.block,
) -> TeacherPrompt | None:
  """Returns the teacher's prompt as ids, its texts cut if it is too long.

  The feedback is cut first, then the attempt, then the solution, each from its
  end and between tokens; an empty one goes with its heading. The problem, the
  closing instruction and the marker of the assistant's turn always stay.

  Args:
    problem: the question.
    solution: see `teacher_prompt`.
    feedback: see `teacher_prompt`.
    tokenizer: of the teacher.
    limit: the largest number of tokens in the prompt.
    attempt: see `teacher_prompt`.
    template: see `teacher_prompt`.

  Returns:
    The prompt; None if the problem does not fit, or no part of the solution
    and the feedback fits beside it, or the template shows nothing of what is
    told: such a teacher would teach nothing.
  """
  told = _told(solution, feedback, attempt)

  def encode(told: Told) -> list[int]:
    return tokenizer.encode_messages(_messages(problem, told, template))

  if not told.is_empty and not _shows(problem, told, template):
    return None
  ids = encode(told)
  if len(ids) <= limit:
    return _prompt(ids, told, was_truncated=False)
  rest = told
  # A solution shows more of what is right than the others.
  for name in ("feedback", "attempt", "solution"):
    text = getattr(rest, name)
    rest = dataclasses.replace(rest, **{name: ""})
    if not text.strip():
      continue
    fits_without = len(without := encode(rest)) <= limit
    if not fits_without and name != "solution":
      continue
    kept = _longest(rest, name, text, encode, tokenizer, limit)
    if kept is not None:
      return _prompt(encode(kept), kept, was_truncated=True)
    if fits_without and not rest.is_empty:
      return _prompt(without, rest, was_truncated=True)
  return None


def _shows(problem: Problem, told: Told, template: Template) -> bool:
  """Returns True if a template shows solution or feedback.

  One of the user's own may have a place for one of them alone.
  """
  untold = Told(attempt=told.attempt)
  return template(problem, told) != template(problem, untold)


def _longest(
  told: Told,
  name: str,
  text: str,
  encode: Callable[[Told], list[int]],
  tokenizer: Tokenizer,
  limit: int,
) -> Told | None:
  """Returns what is told with the longest beginning of a text that fits."""
  tokens = tokenizer.encode(text)
  best, low, high = None, 0, min(len(tokens), limit) + 1
  while low + 1 < high:  # bisection: `low` tokens fit, `high` do not
    middle = (low + high) // 2
    # A cut inside a character leaves bytes that decode to U+FFFD.
    kept = tokenizer.decode(tokens[:middle]).rstrip("\ufffd")
    changed = dataclasses.replace(told, **{name: kept})
    if len(encode(changed)) > limit:
      high = middle
    else:
      low = middle
      best = changed if kept.strip() and not changed.is_empty else None
  return best


def _prompt(
  ids: list[int], told: Told, *, was_truncated: bool
) -> TeacherPrompt:
  return TeacherPrompt(
    ids,
    was_truncated,
    has_solution=bool(told.solution.strip()),
    has_feedback=bool(told.feedback.strip()),
  )
