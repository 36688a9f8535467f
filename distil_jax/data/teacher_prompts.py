"""The prompts of student and teacher.

The student sees the problem. The teacher sees the problem, what came of it and
the instruction to solve it; it is then scored on the student's own tokens, so
the failed attempt itself is not in its prompt but follows it.
"""

import dataclasses
from collections.abc import Callable, Sequence

from distil_jax.envs import completion_text as envs_text
from distil_jax.types import Message, Problem

_SOLUTION = "\n\nCorrect solution:\n\n{}"
_FEEDBACK = (
  "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}"
)
_INSTRUCTION = "\n\nCorrectly solve the original question."


@dataclasses.dataclass(frozen=True)
class TeacherPrompt:
  """A teacher prompt that fits its limit.

  Attributes:
    ids: the prompt up to and with the marker of the assistant's turn.
    was_truncated: whether solution or feedback had to be cut.
    has_solution, has_feedback: whether anything of it is left.
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
) -> list[Message]:
  """The student's messages with what the teacher knows in the last question.

  A block stands only where there is something to say; with none the messages
  are the student's.

  Args:
    problem: the question.
    solution: a successful attempt or a reference; thoughts are taken out.
    feedback: what was wrong with the attempt.

  Raises:
    ValueError: a block is given, but the problem has no user message.
  """
  solution = envs_text.without_thought(solution or "")
  messages = list(problem.messages)
  blocks = ""
  if solution.strip():
    blocks += _SOLUTION.format(solution)
  if feedback and feedback.strip():
    blocks += _FEEDBACK.format(feedback)
  if not blocks:
    return messages
  last = _last_user(messages, problem.index)
  content = messages[last]["content"] + blocks + _INSTRUCTION
  messages[last] = {**messages[last], "content": content}
  return messages


def choose_solution(
  rewards: Sequence[float],
  completions: Sequence[str],
  index: int,
  *,
  threshold: float,
) -> str | None:
  """The first other success of the group, for the teacher of one sample.

  A success that is nothing but thought shows nothing and is passed over.

  Args:
    rewards: of each sample of the group. Length G.
    completions: of each sample of the group, as text. Length G.
    index: the sample that is to be taught.
    threshold: a reward from here on is a success.

  Returns:
    The completion as it is, or None where no other sample succeeded.
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
  encode: Callable[[list[Message]], list[int]],
  encode_text: Callable[[str], list[int]],
  decode: Callable[[Sequence[int]], str],
  limit: int,
) -> TeacherPrompt | None:
  """The teacher's prompt as ids, with the blocks cut where it is too long.

  The feedback is cut first, then the solution, each from its end and between
  tokens; a block of which nothing is left goes with its heading. The problem,
  the closing instruction and the marker of the assistant's turn always stay.

  Args:
    problem: the question.
    solution: see `teacher_prompt`.
    feedback: see `teacher_prompt`.
    encode: messages -> ids of the whole prompt.
    encode_text: text -> ids.
    decode: ids -> text.
    limit: most tokens in the prompt.

  Returns:
    None where the problem does not fit, or nothing of what the teacher was to
    know fits beside it: a teacher that knows no more teaches nothing.
  """
  solution = envs_text.without_thought(solution or "")
  feedback = feedback or ""
  ids = encode(teacher_prompt(problem, solution=solution, feedback=feedback))
  if len(ids) <= limit:
    has = bool(solution.strip()), bool(feedback.strip())
    return TeacherPrompt(ids, False, *has)

  def longest(
    text: str, build: Callable[[str], list[Message]]
  ) -> list[int] | None:
    """The prompt with the longest beginning of the text that fits."""
    tokens = encode_text(text)
    best, low, high = None, 0, min(len(tokens), limit) + 1
    while low + 1 < high:  # `low` tokens fit, `high` do not
      middle = (low + high) // 2
      # The cut may go through a character, whose rest is no text.
      kept = decode(tokens[:middle]).rstrip("\ufffd")
      ids = encode(build(kept))
      if len(ids) > limit:
        high = middle
      else:
        low = middle
        best = ids if kept.strip() else None
    return best

  has_feedback = False
  without_feedback = encode(teacher_prompt(problem, solution=solution))
  if len(without_feedback) > limit:
    best = longest(
      solution, lambda kept: teacher_prompt(problem, solution=kept)
    )
  else:
    best = longest(
      feedback,
      lambda kept: teacher_prompt(problem, solution=solution, feedback=kept),
    )
    has_feedback = best is not None
    if best is None and solution.strip():
      best = without_feedback
  if best is None:
    return None
  return TeacherPrompt(best, True, bool(solution.strip()), has_feedback)


def _last_user(messages: Sequence[Message], index: int) -> int:
  for position in reversed(range(len(messages))):
    if messages[position]["role"] == "user":
      return position
  raise ValueError(
    f"problem {index} has no user message to put solution or feedback into"
  )
